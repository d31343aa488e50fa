"""Trained planners: those that come with the package, those that the benchmark programs save, and their training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poh_ext.models.base import Planner
from poh_ext.models.weights import load as load_planner
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.data import OnlineBatches, make_data

__all__ = ["SHIPPED", "Recipe", "load"]

SHIPPED = Path(__file__).parent  # <name>.safetensors, built by `make solve`
NAMES = ("baseline", "poh")


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
        options = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in notes["config"].items()
            if name in known
        }
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


def load(source: str | Path) -> tuple[Planner, Recipe, dict[str, Any]]:
    """Load a trained planner.

    Args:
        source: "baseline" (the looped one of `--preset solve`) or "poh" for the weights that come with the package, or
            the path of a file that `--save-weights` wrote.

    Returns:
        The planner in eval mode, what it was trained on, and its notes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, holds no weights of this format, or its notes do not say what it was trained on.
        ImportError: safetensors (the extra `experiments`) is missing.

    Examples:
        >>> model, recipe, notes = load("poh")
        >>> table = model.policy(tasks.mazes, tasks.start, tasks.goal, passes=200)      # [B, N, 4], mazes of any size
    """
    path = SHIPPED / f"{source}.safetensors" if str(source) in NAMES else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --save-weights of `poh-ext benchmark` writes weights")
    model, notes = load_planner(path)
    try:
        return model, Recipe.of(notes), notes
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say what its planner was trained on: {error}") from error
