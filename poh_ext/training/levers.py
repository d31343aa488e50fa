"""Options of the training beyond the published form, for the benchmarks.

docs/solve.md describes which of them make a planner that solves mazes. `--preset solve` sets these. The defaults are
the published form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["TrainingLevers"]


@dataclass(frozen=True, kw_only=True)
class TrainingLevers:
    """Options of the training data and of the training."""

    supervision: Literal["path", "all"] = "path"
    """Cells that get a target. path: the cells of the true path. all: every cell within --reach of the goal gets its
    next move toward the goal (needs --head moves). With all and --train online, start and goal are any cells, and
    --min-path holds for the test mazes only."""
    reach: Literal["passes", "seen", "all"] = "passes"
    """Cells that --supervision all trains. passes: cells at most as many moves from the goal as passes are run, because
    heads that see neighbours carry information by one cell a pass. seen: also cells whose other ways all end within
    that many moves; a planner can then need fewer passes than moves. all: every cell, which needs heads that see all
    cells."""
    train_R: tuple[int, int] | None = None
    """Lowest and highest number of passes in training [passes]. Each step draws a number between them. None: always
    --R."""
    train_R_growth: int | None = None
    """Number that the upper end of --train-R grows to, linearly from 20 % to 60 % of the steps [passes]. None: no
    growth."""
    grad_passes: int | Literal["all"] = "all"
    """Passes at the end of a run that gradients flow through [passes, or all]. Earlier passes run without a graph."""
    test_R: int | Literal["R"] = "R"
    """Passes at test [passes]. R: the same as --R."""
    tolerance: float = 0.0
    """Largest change of a state that counts as none at test [units of the state]. A cell that a pass changes by no
    more, in every feature, keeps its state and rests until a neighbour changes. If all heads see only neighbours, cells
    at rest cost nothing. 0: every pass computes every cell."""
    deep_supervision: int = 1
    """States that the loss is averaged over [count]. They are evenly spread over the passes with gradients and include
    the last state. 1: the last state alone."""
    train_sizes: tuple[int, int] | None = None
    """Smallest and largest side of the training mazes [cells]. Each step draws a side between them. Needs --train
    online, --head moves and --positions none. None: --maze-size."""
    train_sizes_growth: int | None = None
    """Side that the upper end of --train-sizes grows to, linearly from 20 % to 60 % of the steps [cells]: a curriculum.
    None: no growth."""
    state_noise: float = 0.0
    """Gaussian noise that training adds to the state of every cell before the first pass with gradients, unless that is
    the first pass of all [standard deviation; the features of a state have about 1]. It helped larger mazes after 4,000
    steps with --reach seen, but not after 12,000 (docs/solve.md). 0: none."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights [per step, below 1; after n steps at most
    (1 + n) / (10 + n)]. The averaged weights are evaluated and saved. 0: the last weights are."""
    weight_decay: float = 0.01
    """Weight decay of AdamW, on all weights [per step and unit of the learning rate]."""
    validate_every: int = 0
    """Epochs between evaluations on validation mazes [epochs]; one always follows the last epoch. The report then shows
    accuracy over training time. Training gives the same weights, and the time is not counted. 0: never."""
    validation: int = 200
    """Validation mazes of --validate-every [count]. None of them is a training or a test maze."""

    def pass_range(self, step: int, total_steps: int) -> tuple[int, int]:
        """Lowest and highest number of passes that step `step` (from 0) may draw."""
        if self.train_R is None:
            return self.R, self.R
        return _grown(self.train_R, self.train_R_growth, step / total_steps)

    def size_range_at(self, step: int, total_steps: int) -> tuple[int, int]:
        """Smallest and largest side that step `step` (from 0) may draw."""
        return _grown(self.train_sizes or self.size_range, self.train_sizes_growth, step / total_steps)

    def most_passes(self) -> int:
        """The largest number of passes that a step of the training may draw."""
        return max(self.pass_range(step, 100)[1] for step in range(100))

    def graded(self, run):
        """The number of passes with gradients, of `run` passes."""
        return run if self.grad_passes == "all" else min(run, self.grad_passes)

    def mean_passes(self) -> float:
        """The mean number of passes of a step, over the whole training."""
        spans = [self.pass_range(step, 100) for step in range(100)]
        return sum(low + high for low, high in spans) / 200

    @property
    def size_range(self) -> tuple[int, int]:
        """Smallest and largest side of the training mazes, over the whole training."""
        low, high = self.train_sizes or (self.maze_size, self.maze_size)
        return low, self.train_sizes_growth or high

    @property
    def test_passes(self) -> int:
        return self.R if self.test_R == "R" else self.test_R


def _grown(span: tuple[int, int], to: int | None, progress: float) -> tuple[int, int]:
    """`span` with its upper end grown towards `to`, after the share `progress` of the steps."""
    low, high = span
    if to is not None:
        high = round(high + min(max((progress - 0.2) / 0.4, 0.0), 1.0) * (to - high))
    return low, high
