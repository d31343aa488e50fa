"""Time variants of one computation side by side: interleaved rounds, so that a drift of the machine hits all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

MIN_SAMPLE_SECONDS = 1e-3  # shorter calls are repeated within a sample: the clock and the call cost must not show
LONG_SECONDS = 0.25  # longer calls bring memory and caches into their own state: they need no untimed call before


@dataclass(frozen=True)
class Spread:
    """20th, 50th and 80th percentile of a sample."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values) -> Spread:
        return cls(*(float(q) for q in np.percentile(np.asarray(values), (20, 50, 80))))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _sample(call: Callable[[], object], repeats: int, device: torch.device, warm: bool = True) -> float:
    if warm:
        call()  # untimed: no variant may pay for the memory and the caches as another left them
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / repeats


def interleave(
    variants: dict[str, Callable[[], object]],
    device: torch.device,
    *,
    seconds: float = 2.0,
    min_rounds: int = 5,
    max_rounds: int = 200,
) -> dict[str, list[float]]:
    """Seconds per call of every variant, one value per round; each round runs every variant once, in turn.

    Args:
        variants: name -> call. Each is warmed up before anything is timed, and again before each sample unless
            it takes longer than LONG_SECONDS.
        device: where the work runs; accelerators are synchronised around each sample.
        seconds: budget for all variants together; at least `min_rounds` rounds run whatever they take.

    Returns:
        name -> list of seconds per call, of equal length for all variants.
    """
    repeats, short = {}, {}
    for name, call in variants.items():
        once = _sample(call, 1, device, warm=False)
        if once < LONG_SECONDS:  # else the first call says enough
            once = _sample(call, 1, device)
        repeats[name], short[name] = max(1, math.ceil(MIN_SAMPLE_SECONDS / max(once, 1e-9))), once < LONG_SECONDS
    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    start = time.perf_counter()
    for round_ in range(max_rounds):
        if round_ >= min_rounds and time.perf_counter() - start > seconds:
            break
        shift = round_ % len(names)  # no variant always runs on the cache another has warmed
        for name in names[shift:] + names[:shift]:
            times[name].append(_sample(variants[name], repeats[name], device, short[name]))
    return times


def ratio(base: list[float], ours: list[float]) -> Spread:
    """How many times faster `ours` is than `base`, from the ratios of the rounds."""
    return Spread.of(np.asarray(base) / np.asarray(ours))
