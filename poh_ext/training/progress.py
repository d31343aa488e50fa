"""A long loop: its progress, on a terminal or in a log file, and its interruption by a signal."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time

from poh_ext._optional import require

tqdm = require("tqdm").tqdm


class Progress:
    """Counts steps, from `done` on, and shows loss, learning rate and time left.

    On a terminal a tqdm bar. Elsewhere (a file, a pipe) one plain line every `log_seconds` and, with `ends`, at the
    first and the last step: no carriage returns or other control characters.

    Examples:
        >>> with Progress("baseline", total=390, unit="step") as progress:
        ...     progress.step(loss=2.31, lr=1e-4)
    """

    def __init__(
        self,
        label: str,
        *,
        total: int,
        unit: str,
        log_seconds: float = 15.0,
        ends: bool = True,
        done: int = 0,
        shown: bool = True,
    ) -> None:
        self.label, self.total, self.unit, self.log_seconds, self.ends = label, total, unit, log_seconds, ends
        self.done = self._before = done
        self._shown = shown
        self._started = self._logged = time.monotonic()
        self._bar = (
            tqdm(
                total=total,
                desc=label,
                unit=unit,
                file=sys.stderr,
                dynamic_ncols=True,
                leave=ends,
                mininterval=0.3,
                initial=done,
            )
            if shown and sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, count: int = 1, **values: float) -> None:
        """Advance by `count`; `values` are shown beside the bar."""
        self.done += count
        shown = {name: f"{value:.3g}" for name, value in values.items()}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(count)
            return
        if not self._shown:
            return
        now = time.monotonic()
        at_end = self.ends and (self.done == self._before + count or self.done >= self.total)
        if at_end or now - self._logged >= self.log_seconds:
            self._logged = now
            elapsed = now - self._started
            left = elapsed / (self.done - self._before) * (self.total - self.done)
            text = "  ".join(
                [
                    f"{self.label}: {self.unit} {self.done}/{self.total}",
                    *(f"{name} {value}" for name, value in shown.items()),
                    f"{tqdm.format_interval(elapsed)} elapsed",
                    f"{tqdm.format_interval(left)} left",
                ]
            )
            print(text, file=sys.stderr, flush=True)


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
        with contextlib.suppress(OSError):  # of a terminal or a pipe that is gone
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
