"""Accuracy on validation mazes during the training, as `Row.validation` holds it."""

from __future__ import annotations

import itertools
import math

__all__ = ["FIELDS", "check_validation", "solved_measure"]

# Steps and epochs (from 0) that were taken, seconds of training alone so far, validation mazes, shares of them.
FIELDS = ("step", "epoch", "seconds", "mazes", "reached", "optimal")
EXACT = "exact"  # a share too, where it is known: see Row.exact


def solved_measure(points: list[dict]) -> str:
    """The share by which mazes are called solved: the strictest one that all points have."""
    return EXACT if all(EXACT in point for point in points) else "optimal"


def check_validation(name: str, points: list) -> None:
    """Raise ValueError that names the first point that is invalid or contradicts the one before it."""
    for i, point in enumerate(points):
        if not isinstance(point, dict) or set(point) - {EXACT} != set(FIELDS):
            given = ", ".join(map(str, point)) if isinstance(point, dict) else type(point).__name__
            raise ValueError(f"{name}: validation[{i}] must have the fields {', '.join(FIELDS)}, not {given}")
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in point.values()):
            raise ValueError(f"{name}: validation[{i}] must be finite numbers, not {list(point.values())}")
        shares = [point[measure] for measure in (EXACT, "optimal", "reached") if measure in point]
        if not (point["mazes"] >= 1 and all(a <= b for a, b in itertools.pairwise([0, *shares, 1]))):
            raise ValueError(f"{name}: validation[{i}] must have shares of 1 maze or more with 0 <= exact <= optimal "
                             f"<= reached <= 1, not {' and '.join(map(str, shares))} of {point['mazes']}")
    for before, after in itertools.pairwise(points):
        if after["step"] <= before["step"] or after["seconds"] < before["seconds"]:
            raise ValueError(f"{name}: validation goes back, from step {before['step']} at {before['seconds']} s to "
                             f"step {after['step']} at {after['seconds']} s")
