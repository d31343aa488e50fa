"""What a planner was trained on, from the notes of its weights: the sizes, and whether it met a maze."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from poh_ext.training.batches import OnlineBatches
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.protocol import make_data

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A training of the benchmark program.

    Attributes:
        planner: the row of its table: "looped_baseline", "poh", ...
        seed: seed of the weights and of the mazes.
        steps: number of updates.
        config: the options of the program.
    """

    planner: str
    seed: int
    steps: int
    config: BenchmarkConfig

    @classmethod
    def of(cls, notes: dict[str, Any]) -> Recipe:
        """Read the recipe from the notes that `--save-weights` writes; raises KeyError for other notes."""
        known = {f.name for f in fields(BenchmarkConfig)}
        options = {name: tuple(value) if isinstance(value, list) else value
                   for name, value in notes["config"].items() if name in known}
        return cls(notes["row"], notes["seed"], notes["steps"], BenchmarkConfig(**options))

    @property
    def sizes(self) -> tuple[int, int]:
        """Smallest and largest side of the mazes."""
        return self.config.size_range

    def keys(self, size: int) -> Tensor:
        """int64 [n], MazeTasks.keys() of all training mazes of this side. The mazes are made again for this."""
        low, high = self.sizes
        if not low <= size <= high:
            return torch.zeros(0, dtype=torch.int64)
        batches = make_data(self.config, self.seed).batches
        if not isinstance(batches, OnlineBatches):
            return batches.tasks.keys()
        steps = (step for step in range(self.steps) if batches.side(step) == size)
        return torch.cat([torch.zeros(0, dtype=torch.int64), *(batches.draw(step)[0].keys() for step in steps)])
