"""Bounds of time, so that a run ends when it should on any machine: a clock with an alarm, shares of what is left."""

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
    """The alarm of a Watch. No Exception, so that nothing on its way takes it for a fault of the call."""


class Watch:
    """The clock of a run and its alarm. Tests give one of their own, whose time stands still."""

    def now(self) -> float:
        """In seconds, from anywhere."""
        return time.perf_counter()

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Raise TimeIsUp in the body when it takes longer. Not for compilers: torch's does not survive it.

        Python looks for signals between two of its own steps, so a call of one long operator ends first. There is no
        limit outside the main thread and on systems without SIGALRM.
        """
        if seconds == math.inf or not hasattr(signal, "SIGALRM") or (
                threading.current_thread() is not threading.main_thread()):
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
    """Seconds for what cannot be stopped, as compilers: one more is begun if the last took no more than is left.

    Args:
        seconds: may be math.inf.
    """

    def __init__(self, seconds: float) -> None:
        self.left, self.last = seconds, 0.0

    def affords(self) -> bool:
        """Whether one more may be begun; a first one may."""
        return 0 < self.left >= self.last

    def pay(self, seconds: float) -> None:
        self.last = seconds
        self.left = max(0.0, self.left - seconds)


class Allowance:
    """Shares `seconds` out among cases one after the other; what one leaves, or takes too much, is that of the rest.

    Args:
        seconds: for all; may be math.inf.
        weights: of the cases in their order: what one gets of what is left is its part of the weights that are left.

    Example:
        >>> allowance = Allowance(120, [1, 1, 2], Watch())
        >>> allowance.next()   # the first case
        30.0
    """

    def __init__(self, seconds: float, weights: Sequence[float], watch: Watch) -> None:
        self.watch, self.end, self._weights = watch, watch.now() + seconds, list(weights)

    def next(self, reserved: float = 0.0) -> float:
        """Seconds for the next case, at least 0; `reserved` are left for something else."""
        left = self.end - self.watch.now()
        left = max(0.0, left - reserved) if left < math.inf else left
        share = self._weights[0] / sum(self._weights)
        del self._weights[0]
        return left * share


def share_out(needs: dict[str, float], seconds: float) -> dict[str, float]:
    """Parts of `seconds`: to each, the smallest first, what it needs, or an equal part of what is left if that is less.

    What nobody needs is shared equally.
    """
    parts, left = {}, max(seconds, 0.0)
    for taken, name in enumerate(sorted(needs, key=needs.__getitem__)):
        parts[name] = min(needs[name], left / (len(needs) - taken))
        left -= parts[name]
    return {name: part + left / len(needs) for name, part in parts.items()}
