"""The learning rate at each step: linear warm-up to the peak, then a cosine down to a tenth of it."""

from __future__ import annotations

import math

__all__ = ["FINAL_FRACTION", "learning_rate", "peak_reached", "warmup_warning"]

FINAL_FRACTION = 0.1  # of the peak, at the last step


def learning_rate(step: int, *, total_steps: int, peak: float, warmup_steps: int, from_zero: bool = False) -> float:
    """Learning rate of update `step` (0-based) of `total_steps`.

    Warm-up: `peak * (step + 1) / warmup_steps`, so its last step has the peak. After it, with
    `t = (step + 1 - warmup_steps) / (total_steps - warmup_steps)` in (0, 1], it is
    `peak * (0.1 + 0.9 * (1 + cos(pi t)) / 2)`, so the run's last step has exactly a tenth of the peak.

    from_zero: every step has the rate of the step before, as published: the first step of a warm-up has the rate 0.

    Example:
        >>> learning_rate(0, total_steps=100, peak=1e-3, warmup_steps=10)
        0.0001
    """
    updates = step + (not from_zero)
    if warmup_steps and updates <= warmup_steps:
        return peak * updates / warmup_steps
    t = min(1.0, (updates - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (FINAL_FRACTION + (1 - FINAL_FRACTION) * 0.5 * (1 + math.cos(math.pi * t)))


def peak_reached(*, total_steps: int, peak: float, warmup_steps: int, from_zero: bool = False) -> float:
    """The highest learning rate of the run: below `peak` when the warm-up is longer than the run."""
    return peak * min(1.0, (total_steps - from_zero) / warmup_steps) if warmup_steps else peak


def warmup_warning(*, total_steps: int, peak: float, warmup_steps: int, from_zero: bool = False) -> str | None:
    """A sentence for the user when the warm-up never ends, else None."""
    if total_steps - from_zero >= warmup_steps:
        return None
    reached = peak_reached(total_steps=total_steps, peak=peak, warmup_steps=warmup_steps, from_zero=from_zero)
    return (f"the warm-up ({warmup_steps} steps) is longer than the run ({total_steps} steps): the learning rate only "
            f"rises, to {reached:.3g} instead of {peak:.3g}, and never decays")
