"""Time variants of one computation in interleaved rounds, so that a drift of the machine affects all of them alike.

The time of a whole run may be limited: a clock that stops a call, and shares of what is left.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

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

    Examples:
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


MIN_SAMPLE_SECONDS = 1e-3  # shorter calls are repeated within a sample: the clock and the call cost must not show
LONG_SECONDS = 0.25  # longer calls bring memory and caches into their own state: they need no untimed call before
WATCH = Watch()


@dataclass(frozen=True)
class Spread:
    """20th, 50th and 80th percentile of a sample."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values) -> Spread:
        """The percentiles of the values that are not None."""
        return cls(*(float(q) for q in np.percentile([v for v in values if v is not None], (20, 50, 80))))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def sample(
    call: Callable[[], object], device: torch.device, *, repeats: int = 1, warm: bool = True, watch: Watch = WATCH
) -> float:
    """Seconds per call, of `repeats` calls in a row. Accelerators are synchronised before and after them."""
    if warm:
        call()  # untimed: no variant may pay for the memory and the caches as another left them
    _synchronize(device)
    start = watch.now()
    for _ in range(repeats):
        call()
    _synchronize(device)
    return (watch.now() - start) / repeats


class _Variant:
    """One of the calls that are timed: how it is sampled, the cost of a sample, and its results."""

    def __init__(self, call: Callable[[], object], first: float | None, device: torch.device, watch: Watch) -> None:
        self.call, self.device, self.watch = call, device, watch
        once = sample(call, device, warm=False, watch=watch) if first is None else first
        if once < LONG_SECONDS:  # else the first call says enough
            once = sample(call, device, watch=watch)
        self.once, self.warm = once, once < LONG_SECONDS
        self.repeats = max(1, math.ceil(MIN_SAMPLE_SECONDS / max(once, 1e-9)))
        self.cost = once * (self.repeats + self.warm)
        self.times: list[float | None] = []
        self.rounds = 0

    def take_sample(self) -> None:
        start = self.watch.now()
        self.times.append(sample(self.call, self.device, repeats=self.repeats, warm=self.warm, watch=self.watch))
        self.cost = self.watch.now() - start
        self.rounds += 1


def interleave(
    variants: dict[str, Callable[[], object]],
    device: torch.device,
    *,
    seconds: float = 2.0,
    min_rounds: int = 5,
    max_rounds: int = 200,
    allowed: float = math.inf,
    first: dict[str, float] | None = None,
    watch: Watch = WATCH,
) -> dict[str, list[float | None]]:
    """Seconds per call of every variant, one value per round. Each round runs every variant once, in turn.

    Args:
        variants: name -> call. Each is called untimed before the first sample, and again before each sample unless it
            takes longer than LONG_SECONDS.
        device: device of the work. Accelerators are synchronised before and after each sample.
        seconds: time for the rounds of all variants together. At least `min_rounds` rounds run, even if they take
            longer, within `allowed`.
        allowed: the most seconds for everything. If `min_rounds` rounds take longer, slow variants skip rounds.
        first: seconds of a call already made, for some of the variants. It is used for a variant that no round has time
            for.
        watch: the clock.

    Returns:
        name -> list of seconds per call, of equal length for all variants. None stands for a round that a variant
        skipped; at least one value of each list is a number.
    """
    end = watch.now() + allowed
    timed = {name: _Variant(call, (first or {}).get(name), device, watch) for name, call in variants.items()}

    def affords(name: str) -> bool:
        """Whether the time that the variant still needs, or an equal part of the time left, is enough for a sample."""
        needs = {other: v.cost * max(min_rounds - v.rounds, 1) for other, v in timed.items()}
        return timed[name].cost <= share_out(needs, end - watch.now())[name]

    names, start = list(timed), watch.now()
    for round_ in range(max_rounds):
        if round_ >= min_rounds and watch.now() - start > seconds:
            break
        shift = round_ % len(names)  # no variant always runs on the cache another has warmed
        for name in names[shift:] + names[:shift]:
            if affords(name):
                timed[name].take_sample()
        if all(len(v.times) <= round_ for v in timed.values()):
            break
        for v in timed.values():
            v.times += [None] * (round_ + 1 - len(v.times))
    for v in timed.values():
        if not v.rounds:
            v.times[:1] = [v.once]
    return {name: v.times for name, v in timed.items()}


def ratio(base: Sequence[float | None], ours: Sequence[float | None]) -> Spread:
    """How many times faster `ours` is than `base`, from the ratios of the rounds that both took part in.

    If there is no such round, it is the ratio of their medians, without a spread.
    """
    shared = [b / o for b, o in zip(base, ours, strict=True) if b is not None and o is not None]
    return Spread.of(shared or [Spread.of(base).p50 / Spread.of(ours).p50])
