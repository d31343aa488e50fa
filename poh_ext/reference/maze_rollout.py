"""PyTorch version of the greedy rollout, and the one rule by which every rollout chooses its move."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from poh_ext.reference.maze_graph import check_cells, neighbors

__all__ = ["choose_move", "greedy_rollout", "walk"]

# up, left, right, down: by rising cell index, so that the first of equal scores is the lower index.
_CELL_ORDER = (0, 2, 3, 1)


def choose_move(scores: Tensor, near: Tensor, visited: Tensor) -> Tensor:
    """The best-scored unvisited passable neighbour, else the best-scored passable one, else -1 -> int64 [m].

    Args:
        scores: [m, 4] of the moves up, down, left, right; NaN counts as -inf.
        near: int64 [m, 4], the cells they lead to, -1 where walled.
        visited: bool [m, N].
    """
    near, scores = near[:, _CELL_ORDER], scores[:, _CELL_ORDER]
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    passable = near >= 0
    fresh = passable & ~visited.gather(1, near.clamp(min=0))
    allowed = torch.where(fresh.any(1, keepdim=True), fresh, passable)
    best = torch.where(allowed, scores, -torch.inf).amax(1, keepdim=True)
    pick = (allowed & (scores == best)).to(torch.uint8).argmax(1, keepdim=True)
    return torch.where(passable.any(1), near.gather(1, pick)[:, 0], -1)


def walk(
    scores_at: Callable[[Tensor, Tensor], Tensor], passages: Tensor, start: Tensor, goal: Tensor, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Walk all mazes abreast, each until its goal, max_steps or, on a cell walled all around, not at all.

    `scores_at(active [m], position [m])` gives the scores [m, 4] of the moves, or [m, N] of the cells to step to, of
    the mazes still walking. Returns reached bool [n], path int64 [n, max_steps + 1] padded with -1, steps int64 [n].
    """
    batch, n = len(passages), passages.shape[1] * passages.shape[2]
    check_cells("start", start, n)
    check_cells("goal", goal, n)
    around, position = neighbors(passages), start.clone()
    path = start.new_full((batch, max_steps + 1), -1)
    path[:, 0] = start
    visited = torch.zeros(batch, n, dtype=torch.bool, device=passages.device)
    visited.scatter_(1, start[:, None], True)
    steps = torch.zeros_like(start)
    active = torch.arange(batch, device=passages.device)
    for step in range(max_steps):
        going = (position[active] != goal[active]) & (around[active, position[active]] >= 0).any(1)
        active = active[going]
        if not len(active):
            break
        here = position[active]
        near, scores = around[active, here], scores_at(active, here)
        if scores.shape[1] != 4:
            scores = scores.gather(1, near.clamp(min=0))
        to = choose_move(scores, near, visited[active])
        position[active] = to
        visited[active, to] = True
        path[active, step + 1] = to
        steps[active] = step + 1
    return position == goal, path, steps


def greedy_rollout(
    logits: Tensor, passages: Tensor, start: Tensor, goal: Tensor, max_steps: int, moves: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`walk` by a table of logits: [n, N, 4] for the moves if `moves`, else [n, N, N] for the cells to step to."""
    if not moves:
        logits = logits.gather(2, neighbors(passages).clamp(min=0))
    return walk(lambda active, here: logits[active, here], passages, start, goal, max_steps)
