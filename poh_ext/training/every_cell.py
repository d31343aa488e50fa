"""Supervise moves, of every cell and not only of the path: the next one toward the goal from wherever it can be known.

A planner that passes messages between neighbours knows after p passes what lies within p moves of a cell. So a cell
that sees no answer in there, neither the goal nor that all other ways end, is left out and not punished for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks

__all__ = ["UNSUPERVISED", "moves_loss", "next_move_targets", "on_paths", "passes_to_know",
           "passes_to_know_paths"]

UNSUPERVISED = -100  # F.cross_entropy's ignore_index


def next_move_targets(mazes: MazeBatch, goal: Tensor, *, reach: int, dead_ends: bool = False) -> Tensor:
    """int64 [B, N]: the first move (0 up, 1 down, 2 left, 3 right) of a shortest way to the goal.

    Of several shortest ways, that of the lowest move, as in `MazeBatch.shortest_paths`. UNSUPERVISED at the goal
    itself, where there is no way, and where more than `reach` passes would be needed.

    Args:
        mazes: B mazes of N cells.
        goal: int64 [B], cell indices.
        reach: most moves to the goal, >= 1.
        dead_ends: cells farther from it count too if they need no more than `reach` of `passes_to_know`.

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
    needed = passes_to_know(mazes, goal, most=reach) if dead_ends else distance
    supervised = (distance > 0) & (needed <= reach)
    return around.argmin(-1).masked_fill(~supervised, UNSUPERVISED)


def passes_to_know(mazes: MazeBatch, goal: Tensor, *, most: int | None = None) -> Tensor:
    """int64 [B, N]: passes between neighbours after which the next move of a cell toward the goal can be known.

    Either the goal has been seen, as many moves away; or all ways but one have been seen to end without it, and it
    must lie that way: the ends of a maze are filled from pass to pass, the goal excepted. No planner whose heads see
    neighbours only can know it earlier in a maze without loops (with loops it might, of ways that lead back).

    Args:
        mazes: B mazes of N cells.
        goal: int64 [B], cell indices.
        most: higher numbers are not told apart from having no way: both are 2^30. None: all are found.

    Raises:
        Of goal: as `MazeBatch.distances`.
    """
    distance = mazes.distances(goal).long()
    far = 1 << 30
    # From here on the cells of all mazes in one row.
    neighbors, first = mazes.neighbors(), torch.arange(len(distance), device=goal.device) * mazes.n_cells
    around = torch.where(neighbors < 0, -1, neighbors + first[:, None, None]).view(-1, 4)
    ways = (around >= 0).sum(-1).index_fill_(0, goal + first, 9)  # so many that the goal is never an end
    known = torch.full_like(ways, far)
    filled, passes = (ways <= 1).nonzero().flatten(), 0
    while len(filled) and (most is None or passes <= most):
        known[filled] = passes
        # Only a cell that has just lost a way can be a new end: some cells a pass, however large the mazes are.
        touched = around[filled].flatten()
        touched = touched[touched >= 0]
        ways.index_add_(0, touched, torch.full_like(touched, -1))
        touched = touched.unique()
        filled = touched[(ways[touched] <= 1) & (known[touched] == far)]
        passes += 1
    needed = torch.where(distance < 0, far, torch.minimum(distance, known.view_as(distance)))
    return needed if most is None else needed.masked_fill(needed > most, far)


def passes_to_know_paths(tasks: MazeTasks) -> Tensor:
    """int64 [n]: passes after which the moves of all cells on a task's path can be known (see `passes_to_know`)."""
    needed = passes_to_know(tasks.mazes, tasks.goal).gather(1, tasks.path.clamp(min=0))
    return needed.masked_fill(tasks.path < 0, 0).amax(1)


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
        allowed: bool [B, N, 4]: the softmax runs over these moves alone; every supervised move is one. None: all are.
        label_smoothing: probability mass spread evenly over the allowed moves.
        reduction: "mean" over the supervised cells, or "sum".
    """
    supervised = targets != UNSUPERVISED
    scores, wanted = logits[supervised].float(), targets[supervised]
    if allowed is None:
        loss = F.cross_entropy(scores, wanted, label_smoothing=label_smoothing, reduction="sum")
    else:
        open_ = allowed[supervised]
        log_p = scores.masked_fill(~open_, -torch.inf).log_softmax(-1)
        hit = log_p.gather(1, wanted[:, None]).sum()
        even = (log_p.masked_fill(~open_, 0).sum(-1) / open_.sum(-1)).sum()
        loss = -(1 - label_smoothing) * hit - label_smoothing * even
    return loss if reduction == "sum" else loss / max(1, len(wanted))
