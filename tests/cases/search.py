"""Breadth-first search in plain Python, one maze at a time: what the kernels and the reference are held against."""

from collections.abc import Iterable

import torch

STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right


def plain_distances(passages: torch.Tensor, goals: Iterable[int]) -> list[int]:
    """Moves from each cell of uint8 [H, W] to the nearest of `goals`, -1 where no way leads; a goal of -1 is none."""
    rows = passages.tolist()
    height, width = passages.shape
    queue = [goal for goal in dict.fromkeys(goals) if goal >= 0]
    distance = dict.fromkeys(queue, 0)
    for cell in queue:
        row, column = divmod(cell, width)
        for bit, (down, right) in enumerate(STEPS):
            to = (row + down) * width + column + right
            if rows[row][column] >> bit & 1 and to not in distance:
                distance[to] = distance[cell] + 1
                queue.append(to)
    return [distance.get(cell, -1) for cell in range(height * width)]


def plain_path(passages: torch.Tensor, start: int, goals: Iterable[int]) -> list[int]:
    """The cells of the shortest path whose first differing step comes first in up, down, left, right; [] for none."""
    distance, width = plain_distances(passages, goals), passages.shape[1]
    if distance[start] < 0:
        return []
    path = [start]
    while distance[path[-1]] > 0:
        row, column = divmod(path[-1], width)
        ways = [(row + down) * width + column + right for bit, (down, right) in enumerate(STEPS)
                if int(passages[row, column]) >> bit & 1]  # fmt: skip
        path.append(next(to for to in ways if distance[to] == distance[path[-1]] - 1))
    return path
