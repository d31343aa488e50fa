"""Limits of time, with which a run ends on time on any machine: a clock with an alarm, and shares of the time left."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence

__all__ = ["Allowance", "Purse", "TimeIsUp", "Watch", "share_out"]

RING_AGAIN = 1.0  # seconds; an alarm that rings within a destructor is swallowed


class TimeIsUp(BaseException):
    """The alarm of a Watch. It is not an Exception, so that no code takes it for a failure of the call."""


class Watch:
    """The clock of a run and its alarm. Tests replace it by a clock that stands still."""

    def now(self) -> float:
        """The time in seconds, from an arbitrary start."""
        return time.perf_counter()

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Raise TimeIsUp in the body if it takes longer. Not for compilers: torch's does not survive it.

        Python handles signals only between two of its own steps, so a call of one long operator ends first. There is no
        limit outside the main thread and on systems without SIGALRM.
        """
        if (
            seconds == math.inf
            or not hasattr(signal, "SIGALRM")
            or (threading.current_thread() is not threading.main_thread())
        ):
            yield
            return
        armed = True

        def ring(*_: object) -> None:
            if armed:
                raise TimeIsUp

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), RING_AGAIN)
        try:
            yield
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class Purse:
    """Seconds for work that cannot be stopped, such as compilation.

    Another piece of work is begun if the one before took at most what is left.

    Args:
        seconds: may be math.inf.
    """

    def __init__(self, seconds: float) -> None:
        self.left, self.last = seconds, 0.0

    def affords(self) -> bool:
        """Whether another piece may be begun. The first one may."""
        return 0 < self.left >= self.last

    def pay(self, seconds: float) -> None:
        self.last = seconds
        self.left = max(0.0, self.left - seconds)


class Allowance:
    """Divides `seconds` among cases one after the other.

    The rest of the cases get what a case leaves, and lose what it takes too much.

    Args:
        seconds: for all cases together; may be math.inf.
        weights: weights of the cases in their order. A case gets the part of the time left that its weight is of the
            weights left.

    Example:
        >>> allowance = Allowance(120, [1, 1, 2], Watch())
        >>> allowance.next()   # the first case
        30.0
    """

    def __init__(self, seconds: float, weights: Sequence[float], watch: Watch) -> None:
        self.watch, self.end, self._weights = watch, watch.now() + seconds, list(weights)

    def next(self, reserved: float = 0.0) -> float:
        """Seconds for the next case, at least 0; `reserved` seconds are kept for something else."""
        left = self.end - self.watch.now()
        left = max(0.0, left - reserved) if left < math.inf else left
        share = self._weights[0] / sum(self._weights)
        del self._weights[0]
        return left * share


def share_out(needs: dict[str, float], seconds: float) -> dict[str, float]:
    """Divide `seconds` by needs, the smallest need first.

    Each gets its need, or an equal part of the time left if that is less. Time that nobody needs is divided equally.
    """
    parts, left = {}, max(seconds, 0.0)
    for taken, name in enumerate(sorted(needs, key=needs.__getitem__)):
        parts[name] = min(needs[name], left / (len(needs) - taken))
        left -= parts[name]
    return {name: part + left / len(needs) for name, part in parts.items()}
