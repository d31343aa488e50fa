"""The table of an evaluation: exact shares on held-out mazes with 95 % intervals, as lines of Markdown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from poh_ext.report.statistics import estimate
from poh_ext.solve.evaluate import exact_over_passes
from poh_ext.solve.recipe import Recipe
from poh_ext.tasks import MazeTasks, sample_tasks

__all__ = ["DEFAULT_SETS", "MazeSet", "seen_in_training", "table"]

TEST_SEED = 6_000_000  # plus the side: no training or choice of anything has looked at these


class MazeSet(NamedTuple):
    """Test mazes: side, fewest cells on the shortest path, how many."""

    size: int
    min_path: int
    count: int

    def __str__(self) -> str:
        return ":".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> MazeSet:
        """From "SIZE:PATH:COUNT"; ValueError, naming the text, if it is not that."""
        parts = text.split(":")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"mazes must be SIZE:PATH:COUNT, three whole numbers, got {text!r}")
        made = cls(*map(int, parts))
        if made.size < 2 or made.min_path < 2 or made.count < 1:
            raise ValueError(f"mazes must have SIZE >= 2, PATH >= 2 and COUNT >= 1, got {text!r}")
        return made

    def tasks(self, algorithm: str) -> MazeTasks:
        return sample_tasks(self.count, self.size, min_path=self.min_path, algorithm=algorithm,
                            seed=TEST_SEED + self.size)


DEFAULT_SETS = (MazeSet(12, 50, 1000), MazeSet(20, 140, 200), MazeSet(30, 225, 200))


def seen_in_training(recipe: Recipe, tasks: MazeTasks) -> int:
    """How many of the test mazes the training of this recipe met: its mazes are made again and compared."""
    low, high = recipe.sizes
    size = tasks.mazes.height
    if not low <= size <= high:
        return 0
    keys = [batch.mazes.hash() for step in range(recipe.steps)
            if (batch := recipe.batch(step)).mazes.height == size]
    return int(torch.isin(tasks.keys(), torch.cat(keys)).sum()) if keys else 0


def table(model: torch.nn.Module, recipe: Recipe, sets: Sequence[MazeSet], factors: Sequence[float],
          algorithm: str = "dfs") -> Iterator[str]:
    """The lines of the table, each as soon as it is known. A cell is the share solved exactly, in percent, and
    Wilson's 95 % interval over the mazes."""
    heads = [f"{factor:g} x" for factor in factors]
    yield " | ".join(["| mazes", "shortest path, cells", "n", "met in training", *heads, "seconds |"])
    yield "|---" * (5 + len(heads)) + "|"
    for wanted in sets:
        tasks = wanted.tasks(algorithm)
        began = time.perf_counter()
        solved = exact_over_passes(model, tasks, factors)
        seconds = time.perf_counter() - began
        cells = []
        for row in solved.tolist():
            share = estimate({0: row})
            cells.append(f"{share.percent:.1f} [{share.wilson[0]:.1f}-{share.wilson[1]:.1f}]")
        side = f"{wanted.size}x{wanted.size} {algorithm}"
        lengths = f"{int(tasks.length.min())}-{int(tasks.length.max())}"
        met = str(seen_in_training(recipe, tasks))
        yield " | ".join([f"| {side}", lengths, str(wanted.count), met, *cells, f"{seconds:.0f} |"])
