"""What a step draws before its mazes, and which of its passes carry gradients and are supervised."""

from __future__ import annotations

import math
from typing import NamedTuple

from poh_ext.models.base import Planner
from poh_ext.training.batches import draw
from poh_ext.training.config import BenchmarkConfig

__all__ = ["Passes", "draw_passes", "passes_at_test", "step_passes"]


class Passes(NamedTuple):
    """The passes of one training step.

    Attributes:
        run: how many a planner that loops runs; what is farther from the goal is not supervised by --supervision all.
        after: numbers of passes whose states are supervised, rising.
        grad: gradients through so many passes before each of these; None: through all.
        looped: False: the planner runs one pass whatever `run` is.
    """

    run: int
    after: tuple[int, ...]
    grad: int | None = None
    looped: bool = True


def passes_at_test(model: Planner, config: BenchmarkConfig) -> int | None:
    """How many passes `model` is tested with; None: its own one."""
    return config.test_passes if model.looped else None


def step_passes(config: BenchmarkConfig, run: int, looped: bool) -> Passes:
    """Which of `run` passes are supervised: `deep_supervision` of the last `grad_passes`, evenly spread.

    Example:
        >>> step_passes(BenchmarkConfig(grad_passes=12, deep_supervision=3), 30, looped=True)
        Passes(run=30, after=(22, 26, 30), grad=4, looped=True)
    """
    if not looped:
        return Passes(run, (run,), looped=False)
    graded = config.graded(run)
    states = min(config.deep_supervision, graded)
    # The first gap is the largest, so that gradients through as many passes before each state are through `graded`.
    after = tuple(run - graded + math.ceil(graded * i / states) for i in range(1, states + 1))
    return Passes(run, after, None if graded == run else math.ceil(graded / states))


def draw_passes(config: BenchmarkConfig, seed: int, step: int, total_steps: int, looped: bool) -> Passes:
    """The passes of step `step`: a function of the seed and the step alone, the same for every planner."""
    span = config.pass_range(step, total_steps)
    return step_passes(config, draw(seed, step, config.size_range, span).passes, looped)
