"""The levers of the planners and of their training beyond the published form, as options of the benchmarks.

What each is worth, and which of them make a planner that solves mazes, stands in docs/solve.md; `--preset solve` sets
them all. The defaults are the published form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["PlannerLevers", "TrainingLevers"]


@dataclass(frozen=True, kw_only=True)
class PlannerLevers:
    """What the planners are made of."""

    valid_heads: int | Literal["all"] = 0
    """Heads of each layer that see a cell and its passable neighbours only [count, or all]; the others see all cells.
    Where there are any, --parity depth narrows the heads and keeps their number."""
    norm: Literal["published", "pre", "post"] = "published"
    """Layer norm before each sublayer or after each residual. published: post in the baseline, pre in PoH."""
    head: Literal["cells", "moves"] = "cells"
    """What is scored from each cell: all cells as the next one, or the four moves."""
    positions: Literal["absolute", "none"] = "absolute"
    """A learned vector for each cell, or none: with --head moves mazes of any size can then be planned."""
    cell_features: Literal[4, 6] = 4
    """Features of a cell that the planners see: its 4 passage bits (start and goal are marked by vectors), or 6, with
    a bit each for start and goal."""
    reinject: Literal["published", "on", "off"] = "published"
    """Add the embedded maze again before each pass but the first. published: on in the looped baseline, off in PoH."""
    residual: Literal["rezero", "none"] = "rezero"
    """What PoH does with the result of a pass: takes a trained share of it (rezero), or takes it (none)."""
    route_scale: float | Literal["heads"] = 1.0
    """Factor on PoH's routing weights; heads: their number, so that even routing leaves attention at full strength."""
    routing: Literal["pooled", "token"] = "pooled"
    """PoH's routing weights: one for each head and maze, or each head and cell (always so in the row poh_token)."""

    def heads_in_sight(self, n_heads: int) -> int:
        """--valid-heads of a planner with so many heads."""
        return n_heads if self.valid_heads == "all" else self.valid_heads

    def shared_levers(self, n_heads: int) -> dict[str, Any]:
        """Keyword arguments of both planners, for what is not as published."""
        found: dict[str, Any] = {}
        if valid_heads := self.heads_in_sight(n_heads):
            found["valid_heads"] = valid_heads
        for name, published in (("norm", "published"), ("head", "cells"), ("positions", "absolute")):
            if getattr(self, name) != published:
                found[name] = getattr(self, name)
        if self.reinject != "published":
            found["reinject"] = self.reinject == "on"
        return found

    def poh_levers(self, n_heads: int, routing: str) -> dict[str, Any]:
        """Further ones of PoH."""
        scale = float(n_heads if self.route_scale == "heads" else self.route_scale)
        found = {"residual": self.residual, "routing": routing, "route_scale": scale}
        published = {"residual": "rezero", "routing": "pooled", "route_scale": 1.0}
        return {name: value for name, value in found.items() if value != published[name]}


@dataclass(frozen=True, kw_only=True)
class TrainingLevers:
    """What the planners are trained on, and how."""

    supervision: Literal["path", "all"] = "path"
    """Cells that are trained: those of the true path, or all within --reach of the goal (their next move toward it;
    needs --head moves). With all and --train online start and goal are any cells, and --min-path holds for the test
    mazes only."""
    reach: Literal["passes", "seen", "all"] = "passes"
    """Cells that --supervision all trains. passes: those from which the goal is no more moves away than passes are
    run, which is how far heads that see neighbours carry news. seen: also those from which all other ways are seen to
    end within so many moves, so that fewer passes than moves can do. all: heads that see all cells must jump ahead."""
    train_R: tuple[int, int] | None = None
    """Passes in training: drawn for each step from lowest to highest [passes]. None: always --R."""
    train_R_growth: int | None = None
    """Let the highest of --train-R grow to this, linearly from 20 % to 60 % of the steps [passes]. None: it stays."""
    grad_passes: int | Literal["all"] = "all"
    """Gradients through the last so many passes; the others run without a graph [passes, or all]."""
    test_R: int | Literal["R"] = "R"
    """Passes at test [passes]. R: as many as --R says."""
    tolerance: float = 0.0
    """At test a cell that a pass moves by no more, in any feature of its state, stays as it is, and is at rest until a
    neighbour moves [in units of the state]. Where all heads see neighbours, cells at rest cost nothing. 0: every cell
    in every pass."""
    deep_supervision: int = 1
    """States that the loss is averaged over, evenly spread over the passes with gradients, the last of them among them
    [count]. 1: the last state alone."""
    train_sizes: tuple[int, int] | None = None
    """Sides of the training mazes: drawn for each step from lowest to highest [cells]; needs --train online, --head
    moves and --positions none. None: --maze-size."""
    train_sizes_growth: int | None = None
    """Let the highest of --train-sizes grow to this, linearly from 20 % to 60 % of the steps [cells]: a
    curriculum. None: it stays."""
    state_noise: float = 0.0
    """Gaussian noise that training adds to the state of every cell where the passes with gradients begin, unless that
    is the first pass [standard deviation; the features of a state have about 1]. What a planner has found out must
    then outlast an error, and does so over many more passes. 0: none."""
    ema: float = 0.0
    """Evaluate and save the exponential moving average of the weights, with this decay [per step, below 1; after n
    steps at most (1 + n) / (10 + n)]. 0: the last weights."""
    weight_decay: float = 0.01
    """AdamW's decay of all weights [per step and unit of the learning rate]."""
    validate_every: int = 0
    """Evaluate the planner on validation mazes after every so many epochs, and after the last [epochs]: accuracy over
    training time. What is trained stays the same, and the time it takes does not count. 0: never."""
    validation: int = 200
    """Validation mazes, neither training nor test mazes, of --validate-every [count]."""

    def pass_range(self, step: int, total_steps: int) -> tuple[int, int]:
        """Lowest and highest number of passes that step `step` (from 0) may draw."""
        if self.train_R is None:
            return self.R, self.R
        return _grown(self.train_R, self.train_R_growth, step / total_steps)

    def size_range_at(self, step: int, total_steps: int) -> tuple[int, int]:
        """Smallest and largest side that step `step` (from 0) may draw."""
        return _grown(self.train_sizes or self.size_range, self.train_sizes_growth, step / total_steps)

    def most_passes(self) -> int:
        """That a step may draw, over a whole training."""
        return max(self.pass_range(step, 100)[1] for step in range(100))

    def graded(self, run):
        """Of so many passes, those with gradients."""
        return run if self.grad_passes == "all" else min(run, self.grad_passes)

    def mean_passes(self) -> float:
        """Over a whole training."""
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
    """`span`, its highest grown towards `to` after this share of the steps."""
    low, high = span
    if to is not None:
        high = round(high + min(max((progress - 0.2) / 0.4, 0.0), 1.0) * (to - high))
    return low, high
