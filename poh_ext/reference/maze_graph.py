"""PyTorch versions of the ops on maze graphs: neighbours, masks, distances, shortest paths, endpoints of tasks, greedy
rollouts, and the one rule by which every rollout chooses its move. csrc/maze/graph.h is the same in C++."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from poh_ext._sharing import of_each
from poh_ext.reference.maze_generate import neighbor_table
from poh_ext.reference.philox import STREAM_ENDPOINTS, below, words

__all__ = [
    "at_goals",
    "check_cells",
    "choose_move",
    "distances",
    "endpoints",
    "greedy_rollout",
    "neighbors",
    "shortest_paths",
    "valid_mask",
    "walk",
]

# up, left, right, down: by rising cell index, so that the first of equal scores is the lower index.
_CELL_ORDER = (0, 2, 3, 1)


def check_cells(name: str, cells: Tensor, n_cells: int) -> None:
    """IndexError naming the first entry of `cells` outside [0, n_cells); not checked inside a compiled graph."""
    if torch.compiler.is_compiling():
        return
    outside = (cells < 0) | (cells >= n_cells)
    if cells.dim() == 2:  # goals of a maze, padded with -1
        outside &= cells != -1
    if outside.any():
        at = outside.nonzero()[0].tolist()
        place = ", ".join(map(str, at))
        raise IndexError(f"{name}[{place}] = {int(cells[tuple(at)])} is out of range for {n_cells} cells")


def at_goals(goal: Tensor, n_cells: int) -> Tensor:
    """bool [n, N]: which cells are goals, [n] or [n, G]."""
    columns = goal if goal.dim() == 2 else goal[:, None]
    marks = torch.zeros(len(goal), n_cells + 1, dtype=torch.bool, device=goal.device)
    return marks.scatter(1, torch.where(columns < 0, n_cells, columns), True)[:, :n_cells]


def neighbors(passages: Tensor) -> Tensor:
    batch, height, width = passages.shape
    table = neighbor_table(height, width, passages.device)
    bits = torch.arange(4, device=passages.device, dtype=torch.uint8)
    is_open = (passages.view(batch, height * width, 1) >> bits) & 1 != 0
    return torch.where(is_open & (table < height * width), table, -1)


def valid_mask(passages: Tensor) -> Tensor:
    batch, height, width = passages.shape
    n = height * width
    around = neighbors(passages)
    mask = torch.zeros(batch, n, n + 1, dtype=torch.bool, device=passages.device)
    mask.scatter_(2, torch.where(around < 0, n, around), torch.ones_like(around, dtype=torch.bool))
    return mask[..., :n].contiguous()


def distances(passages: Tensor, goal: Tensor) -> Tensor:
    batch, height, width = passages.shape
    n = height * width
    check_cells("goal", goal, n)
    bits = torch.arange(4, device=passages.device, dtype=torch.uint8).view(4, 1, 1, 1)
    up, down, left, right = ((passages >> bits) & 1 != 0).unbind()
    front = at_goals(goal, n).view(batch, height, width)
    distance = front.int() - 1
    for step in range(1, n):
        new = torch.zeros_like(front)
        new[:, :-1] |= (front & up)[:, 1:]
        new[:, 1:] |= (front & down)[:, :-1]
        new[:, :, :-1] |= (front & left)[:, :, 1:]
        new[:, :, 1:] |= (front & right)[:, :, :-1]
        front = new & (distance < 0)
        if not torch.compiler.is_compiling() and not front.any():
            break
        distance = torch.where(front, step, distance)
    return distance.view(batch, n)


def shortest_paths(passages: Tensor, start: Tensor, goal: Tensor, length: int) -> tuple[Tensor, Tensor]:
    batch, n = len(passages), passages.shape[1] * passages.shape[2]
    check_cells("start", start, n)
    distance = distances(passages, goal)
    around = neighbors(passages)
    # Column n: what lies behind a wall is never one step nearer.
    padded = torch.cat((distance, distance.new_full((batch, 1), n + 1)), 1)
    rows = torch.arange(batch, device=passages.device)
    cells = distance.gather(1, start[:, None])[:, 0].long() + 1
    path = start.new_full((batch, length), -1)
    cell = start
    for step in range(min(length, n)):  # no path has more cells
        path[:, step] = torch.where(step < cells, cell, -1)
        near = around[rows, cell]
        nearer = padded.gather(1, torch.where(near < 0, n, near)) == distance.gather(1, cell[:, None]) - 1
        there = near.gather(1, nearer.to(torch.uint8).argmax(1, keepdim=True))[:, 0]
        cell = torch.where(step + 1 < cells, there, cell)
    return path, cells


def _eccentricity_bound(passages: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """What a search from one cell, int32 [B, N], says of the other cells in its reach.

    Returns upper bounds int32 [B, N] of their eccentricities (N out of reach) and the longest distance seen [B]. In
    a tree the bounds are exact: the cell farthest from anywhere is an end of a longest path, and the farther of its
    two ends gives the eccentricity. With loops: the way by the search's own start.
    """
    inside, n = distance >= 0, distance.shape[1]
    degree = (neighbors(passages) >= 0).sum(2)
    tree = ((degree * inside).sum(1) == 2 * (inside.sum(1) - 1))[:, None]
    from_end = distances(passages, distance.argmax(1))
    from_other_end = distances(passages, from_end.argmax(1))
    farthest = distance.amax(1, keepdim=True)
    bound = torch.where(tree, torch.maximum(from_end, from_other_end), distance + farthest)
    seen = torch.where(tree, from_end.amax(1, keepdim=True), farthest)[:, 0]
    return torch.where(inside, bound, n), seen


def endpoints(
    passages: Tensor, indices: Tensor, seed: int, min_path: int, max_path: int, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    batch, n = len(passages), passages.shape[1] * passages.shape[2]
    draws = words(seed, STREAM_ENDPOINTS, indices, n + 1)
    start, goal = torch.full_like(indices, -1), torch.full_like(indices, -1)
    order = torch.arange(n, device=indices.device).repeat(batch, 1)
    bound = n * (neighbors(passages) >= 0).any(2).int()  # no way leads from a cell without passages
    if allowed is not None:
        bound = bound.masked_fill(~allowed, -2)  # less than any path needs, of one cell too
    longest = (bound == 0).any(1).long()
    todo = torch.arange(batch, device=indices.device)
    for attempt in range(n):
        if not len(todo):
            break
        place = attempt + below(draws[todo, attempt], n - attempt)
        cell = order[todo, place]
        order[todo, place] = order[todo, attempt]
        promising = bound[todo, cell] >= min_path - 1
        search, origin = todo[promising], cell[promising]
        if not len(search):
            continue
        distance = distances(passages[search], origin)
        reach = distance.amax(1)
        longest[search] = torch.maximum(longest[search], reach.long() + 1)
        found = reach >= min_path - 1
        fits = (distance >= min_path - 1) & (distance < max_path)
        which = below(draws[search, n], fits.sum(1))
        target = ((fits.cumsum(1) - 1 == which[:, None]) & fits).to(torch.uint8).argmax(1)
        start[search[found]], goal[search[found]] = origin[found], target[found]
        failed = search[~found]
        if len(failed):
            limit, seen = _eccentricity_bound(passages[failed], distance[~found])
            bound[failed] = torch.minimum(bound[failed], limit)
            longest[failed] = torch.maximum(longest[failed], seen.long() + 1)
        todo = todo[start[todo] < 0]
    return start, goal, longest


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
    around, position, at_goal = of_each(passages, neighbors), start.clone(), at_goals(goal, n)
    path = start.new_full((batch, max_steps + 1), -1)
    path[:, 0] = start
    visited = torch.zeros(batch, n, dtype=torch.bool, device=passages.device)
    visited.scatter_(1, start[:, None], True)
    steps = torch.zeros_like(start)
    active = torch.arange(batch, device=passages.device)
    for step in range(max_steps):
        going = ~at_goal[active, position[active]] & (around[active, position[active]] >= 0).any(1)
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
    return at_goal.gather(1, position[:, None])[:, 0], path, steps


def greedy_rollout(
    logits: Tensor, passages: Tensor, start: Tensor, goal: Tensor, max_steps: int, moves: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`walk` by a table of logits: [n, N, 4] for the moves if `moves`, else [n, N, N] for the cells to step to."""
    if not moves:
        logits = logits.gather(2, neighbors(passages).clamp(min=0))
    return walk(lambda active, here: logits[active, here], passages, start, goal, max_steps)
