"""Supervise every cell, not only the path: the next move toward the goal from wherever it can be known.

A planner that passes messages between neighbours knows after p passes what lies within p moves of a cell. So a cell
farther from the goal than the passes run has no answer to give, and is left out instead of being punished for it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from poh_ext.mazes import MazeBatch, generate_mazes
from poh_ext.training.batches import stream_seed

__all__ = ["UNSUPERVISED", "EveryCellBatch", "every_cell_batch", "every_cell_loss", "next_move_targets"]

UNSUPERVISED = -100  # F.cross_entropy's ignore_index


def next_move_targets(mazes: MazeBatch, goal: Tensor, *, reach: int) -> Tensor:
    """int64 [B, N]: the first move (0 up, 1 down, 2 left, 3 right) of a shortest way to the goal.

    Of several shortest ways, that of the lowest move, as in `MazeBatch.shortest_paths`. UNSUPERVISED at the goal
    itself, where there is no way, and farther than `reach` moves.

    Args:
        mazes: B mazes of N cells.
        goal: int64 [B], cell indices.
        reach: most moves to the goal, >= 1.

    Raises:
        ValueError: reach < 1. Of goal: as `MazeBatch.distances`.
    """
    if reach < 1:
        raise ValueError(f"reach must be at least 1, got {reach}")
    distance = mazes.distances(goal).long()
    neighbors = mazes.neighbors()
    around = distance.gather(1, neighbors.clamp(min=0).flatten(1)).view_as(neighbors)
    # A passable neighbour of a cell with a way to the goal has one too, so that -1 never wins where it counts.
    around = around.masked_fill(neighbors < 0, mazes.n_cells)
    supervised = (distance > 0) & (distance <= reach)
    return around.argmin(-1).masked_fill(~supervised, UNSUPERVISED)


class EveryCellBatch(NamedTuple):
    """One step's mazes, all of one size, with targets [B, N] for the passes to be run."""

    mazes: MazeBatch
    start: Tensor
    goal: Tensor
    passes: int
    targets: Tensor


def every_cell_batch(step: int, *, seed: int, batch_size: int, sizes: tuple[int, int], passes: tuple[int, int],
                     algorithm: str = "dfs") -> EveryCellBatch:
    """New mazes for one step: a function of the seed and the step alone, so that a training can go on anywhere.

    Size and passes are drawn uniformly from their (lowest, highest), start and goal from the cells.

    Example:
        >>> batch = every_cell_batch(0, seed=0, batch_size=32, sizes=(5, 12), passes=(4, 40))
        >>> logits = model(batch.mazes, batch.start, batch.goal, passes=batch.passes)   # [32, N, 4]
        >>> every_cell_loss(logits, batch.targets).backward()
    """
    stream = stream_seed(seed, step)
    draws = torch.Generator().manual_seed(stream)
    size, run = (int(torch.randint(low, high + 1, (), generator=draws)) for low, high in (sizes, passes))
    start, goal = torch.randint(size * size, (2, batch_size), generator=draws)
    mazes = generate_mazes(batch_size, size, algorithm=algorithm, seed=stream)
    return EveryCellBatch(mazes, start, goal, run, next_move_targets(mazes, goal, reach=run))


def every_cell_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the supervised cells: logits [B, N, 4] of the moves, targets of `next_move_targets`."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=UNSUPERVISED)
