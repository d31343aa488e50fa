"""Types of keyword arguments that several public functions share, for type checkers; nothing is checked by them.

An overload of a loss says what `return_metrics` returns, and names the other options by these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

__all__ = ["ClassOptions", "ModuleOptions", "PlanningOptions"]


class ClassOptions(TypedDict, total=False):
    """Keyword arguments of `cross_entropy` and `linear_cross_entropy`."""

    z_loss: float
    softcap: float | None
    valid: Tensor | None
    candidates: Tensor | None


class ModuleOptions(TypedDict, total=False):
    """Options of the planning losses that a module form fixes."""

    horizons: int | Sequence[int]
    label_smoothing: float
    horizon_weights: Tensor | Sequence[float] | None
    ignore_index: int
    reduction: str
    z_loss: float
    softcap: float | None


class PlanningOptions(ModuleOptions, total=False):
    """Keyword arguments of both planning losses."""

    rows: Tensor | None
    valid: Tensor | None
    candidates: Tensor | None
    segments: Tensor | None
