"""Supervise moves, of every cell and not only of the path: the next one toward the goal from wherever it can be known.

A planner that passes messages between neighbours knows after p passes what lies within p moves of a cell. So a cell
farther from the goal than the passes run has no answer to give, and is left out instead of being punished for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks

__all__ = ["UNSUPERVISED", "moves_loss", "next_move_targets", "on_paths"]

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


def on_paths(targets: Tensor, tasks: MazeTasks) -> Tensor:
    """The targets [B, N] of the cells on the tasks' paths; all other cells become UNSUPERVISED."""
    walked = torch.zeros(len(tasks), tasks.mazes.n_cells + 1, dtype=torch.bool, device=targets.device)
    walked.scatter_(1, tasks.path % (tasks.mazes.n_cells + 1), True)  # padding goes to the last column
    return targets.masked_fill(~walked[:, :-1], UNSUPERVISED)


def moves_loss(logits: Tensor, targets: Tensor, *, allowed: Tensor | None = None, label_smoothing: float = 0.0,
               reduction: str = "mean") -> Tensor:
    """Cross-entropy of the supervised cells, 0 if there are none.

    Args:
        logits: [B, N, 4], of the moves.
        targets: int64 [B, N], moves; UNSUPERVISED cells do not count.
        allowed: bool [B, N, 4]: logits of the other moves become -1e4. None: all are allowed.
        label_smoothing: probability mass spread evenly over the allowed moves.
        reduction: "mean" over the supervised cells, or "sum".
    """
    supervised = targets != UNSUPERVISED
    scores, wanted = logits[supervised].float(), targets[supervised]
    if allowed is None:
        loss = F.cross_entropy(scores, wanted, label_smoothing=label_smoothing, reduction="sum")
    else:
        open_ = allowed[supervised]
        log_p = scores.masked_fill(~open_, -1e4).log_softmax(-1)
        hit = log_p.gather(1, wanted[:, None]).sum()
        even = (log_p.masked_fill(~open_, 0).sum(-1) / open_.sum(-1)).sum()
        loss = -(1 - label_smoothing) * hit - label_smoothing * even
    return loss if reduction == "sum" else loss / max(1, len(wanted))
