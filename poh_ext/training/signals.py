"""Stop at the next safe place on Ctrl-C or SIGTERM, so that results are never half written."""

from __future__ import annotations

import signal
import sys
import threading

__all__ = ["Interrupted", "StopSignals"]


class Interrupted(Exception):
    """The user asked to stop; raised between two steps, never inside one."""


class StopSignals:
    """Context manager: the first SIGINT or SIGTERM is remembered, `check()` raises it; a second one acts at once.

    Outside the main thread Python does not allow handlers: there `check()` only sees `request()`.
    """

    def __init__(self) -> None:
        self._requested: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: object) -> None:
        if self._requested is not None:
            raise KeyboardInterrupt  # the user insists
        self.request(signal.Signals(number).name)
        print(
            f"\n{self._requested}: stopping after this step, keeping what is finished; repeat to stop at once",
            file=sys.stderr,
            flush=True,
        )

    def request(self, reason: str) -> None:
        """Ask for a stop, as a signal would."""
        self._requested = reason

    def check(self) -> None:
        """Raise Interrupted if a stop was asked for."""
        if self._requested is not None:
            raise Interrupted(self._requested)
