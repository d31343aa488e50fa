"""Lengths of shortest paths with diagonal moves, as the benchmarks of MovingAI count them."""

from __future__ import annotations

import heapq
import math

import numpy as np

__all__ = ["octile_length"]

_SQRT2 = math.sqrt(2.0)


def octile_length(free: np.ndarray, start: int, goal: int) -> float:
    """The length of a shortest path where a diagonal move costs sqrt(2), and needs both cells beside it to be free.

    A* with the octile distance. math.inf: out of reach.

    Args:
        free: bool [H, W]. start, goal: free cells.
    """
    height, width = free.shape
    side = width + 2
    padded = np.zeros((height + 2, side), dtype=bool)
    padded[1:-1, 1:-1] = free
    way = padded.ravel().tobytes()
    start, goal = ((cell // width + 1) * side + cell % width + 1 for cell in (start, goal))
    goal_row, goal_column = divmod(goal, side)
    straight = (-side, side, -1, 1)
    diagonal = [(down + right, down, right) for down in (-side, side) for right in (-1, 1)]

    def estimate(cell: int) -> float:
        row, column = divmod(cell, side)
        down, right = abs(row - goal_row), abs(column - goal_column)
        return max(down, right) + (_SQRT2 - 1) * min(down, right)

    best = {start: 0.0}
    closed = set()
    queue = [(estimate(start), 0.0, start)]
    while queue:
        _, minus, cell = heapq.heappop(queue)  # of equal sums the one farthest from the start comes first
        if cell in closed:
            continue
        if cell == goal:
            return -minus
        closed.add(cell)
        steps = [(cell + step, 1.0) for step in straight if way[cell + step]]
        steps += [
            (cell + step, _SQRT2)
            for step, down, right in diagonal
            if way[cell + step] and way[cell + down] and way[cell + right]
        ]
        for there, cost in steps:
            length = cost - minus
            if there not in closed and length < best.get(there, math.inf):
                best[there] = length
                heapq.heappush(queue, (length + estimate(there), -length, there))
    return math.inf
