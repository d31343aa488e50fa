"""How long will it take? A few timed steps of each planner, scaled to the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from poh_ext.tasks import MazeTasks
from poh_ext.training.loop import train_planner
from poh_ext.training.plan import PlannedRow

__all__ = ["describe_seconds", "seconds_per_maze"]

BUDGET = 3.0  # seconds to spend on timing one planner, where one maze does not take longer


def seconds_per_maze(row: PlannedRow, tasks: MazeTasks, *, device: torch.device, precision: str,
                     check: Callable[[], None]) -> float:
    """Seconds of training per maze, from two steps of a whole batch or of as many mazes as fit the time for it.

    The planner trained here is thrown away, and no generator of the run is touched.
    """
    model = row.build(0, device)
    mean = max(1, round(row.config.mean_passes()))  # of the run, where each step draws its own number

    def train(mazes: int, steps: int) -> float:
        config = dataclasses.replace(row.config, epochs=steps, train_R=(mean, mean), train_R_growth=None)
        took = train_planner(model, tasks[:mazes], config, seed=0, label="timing", precision=precision, check=check,
                             quiet=True)
        return took.seconds / (steps * mazes)

    train(1, 1)  # the first step also loads code and allocates
    one = train(1, 1)
    mazes = min(len(tasks), row.config.batch_size, int(BUDGET / 2 / one))
    return one if mazes <= 1 else train(mazes, 2)


def describe_seconds(seconds: float) -> str:
    """Two units at most: 42 s, 3 min 10 s, 5 h 20 min, 2 d 3 h."""
    s = round(seconds)
    for unit, name, lower_unit, lower in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if s >= unit:
            rest = s % unit // lower_unit
            return f"{s // unit} {name}" + (f" {rest} {lower}" if rest else "")
    return f"{seconds:.2g} s" if s < 10 else f"{s} s"
