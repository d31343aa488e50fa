"""Time variants of one computation in interleaved rounds, so that a drift of the machine affects all of them alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from poh_ext.bench.limits import Watch, share_out

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
