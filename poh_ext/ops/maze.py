"""Mazes: the compiled kernels where there are any, else the PyTorch reference.

`passages` is uint8 [B, H, W]. Bits that would lead out of the grid are ignored. Where there are starts or goals, one
maze may be shared by all n of them: kernels get it once, as [1, H, W], the reference expanded. `goal` is int64 [n], or
[n, G] padded with -1.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from poh_ext._backend import has_kernel
from poh_ext._sharing import is_shared
from poh_ext.reference import maze_generate as generate
from poh_ext.reference import maze_graph as graph

__all__ = [
    "BLOCKED",
    "distances",
    "endpoints",
    "generate_mazes",
    "greedy_rollout",
    "neighbors",
    "shortest_paths",
    "valid_mask",
]


BLOCKED = generate.BLOCKED
_CELL_BY_CELL = ("dfs", "prim", "kruskal")  # what the reference makes in as many steps as cells
_MANY_CELLS = 40_000


def _once(passages: Tensor) -> Tensor:
    """A shared maze as a batch of one."""
    return passages[:1] if is_shared(passages) else passages.contiguous()


def generate_mazes(
    indices: Tensor, seed: int, height: int, width: int, algorithm: str, low: float, high: float
) -> Tensor:
    """Mazes `indices` int64 [B] of `seed` -> passages uint8 [B, H, W]; a cell that is blocked is BLOCKED.

    low, high: the range of the share of walls that stand (percolation), of blocked cells (obstacles), or of the
    remaining walls that are opened (the others).
    """
    levels = round(low * 2**32), round(high * 2**32)
    if has_kernel(indices.device):
        return torch.ops.poh_ext.generate_mazes(indices.contiguous(), seed, height, width, algorithm, *levels)
    if height * width > _MANY_CELLS and algorithm in _CELL_BY_CELL and len(indices):
        _warn_of_slow_generator(height, width, algorithm)
    return generate.generate_mazes(indices, seed, height, width, algorithm, *levels)


@functools.cache  # once
def _warn_of_slow_generator(height: int, width: int, algorithm: str) -> None:
    warnings.warn(
        f"poh_ext: the PyTorch reference makes {algorithm} mazes of {height} x {width} cell by cell, in minutes where "
        "the kernels take milliseconds; wilson has no such loop. `python -m poh_ext` tells why they are not used.",
        RuntimeWarning,
        stacklevel=4,
    )


def neighbors(passages: Tensor) -> Tensor:
    """int64 [B, N, 4] (up, down, left, right), -1 where walled."""
    if has_kernel(passages.device):
        return torch.ops.poh_ext.maze_neighbors(passages.contiguous())
    return graph.neighbors(passages)


def valid_mask(passages: Tensor) -> Tensor:
    """bool [B, N, N]."""
    if has_kernel(passages.device):
        return torch.ops.poh_ext.maze_valid_mask(passages.contiguous())
    return graph.valid_mask(passages)


def distances(passages: Tensor, goal: Tensor) -> Tensor:
    """int32 [B, N]: moves to the nearest goal, -1 out of reach."""
    if has_kernel(passages.device):
        return torch.ops.poh_ext.maze_distances(_once(passages), goal.contiguous())
    return graph.distances(passages, goal)


def shortest_paths(passages: Tensor, start: Tensor, goal: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Paths int64 [B, length] padded with -1 or cut, and their full length in cells int64 [B], 0 out of reach."""
    if has_kernel(passages.device):
        contiguous = (_once(passages), start.contiguous(), goal.contiguous())
        return torch.ops.poh_ext.maze_shortest_paths(*contiguous, length)
    return graph.shortest_paths(passages, start, goal, length)


def endpoints(
    passages: Tensor, indices: Tensor, seed: int, min_path: int, max_path: int, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Start and goal int64 [B] of a path of min_path to max_path cells, -1 where there is none, and the cells of the
    longest path seen in the search int64 [B]. Start: uniform over the cells from which some goal fits; goal: uniform
    over the cells that fit it. Draws are those of maze `indices` int64 [B] of `seed`. `allowed` bool [B, N] limits the
    starts."""
    if has_kernel(passages.device):
        allowed = None if allowed is None else allowed.contiguous()
        contiguous = (passages.contiguous(), indices.contiguous())
        return torch.ops.poh_ext.maze_endpoints(*contiguous, seed, min_path, max_path, allowed)
    return graph.endpoints(passages, indices, seed, min_path, max_path, allowed)


def greedy_rollout(
    logits: Tensor, passages: Tensor, start: Tensor, goal: Tensor, max_steps: int, moves: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Reached bool [n], path int64 [n, max_steps + 1] padded with -1, steps int64 [n]; logits [n, N, 4] of the moves if
    `moves`, else [n, N, N] of the cells to step to."""
    if has_kernel(passages.device):
        contiguous = (logits.contiguous(), _once(passages), start.contiguous(), goal.contiguous())
        return torch.ops.poh_ext.greedy_rollout(*contiguous, max_steps, moves)
    return graph.greedy_rollout(logits, passages, start, goal, max_steps, moves)


if has_kernel(torch.device("cpu")):

    @torch.library.register_fake("poh_ext::generate_mazes")
    def _(indices, seed, height, width, algorithm, low, high):
        return indices.new_empty((indices.shape[0], height, width), dtype=torch.uint8)

    @torch.library.register_fake("poh_ext::maze_neighbors")
    def _(passages):
        batch, height, width = passages.shape
        return passages.new_empty((batch, height * width, 4), dtype=torch.int64)

    @torch.library.register_fake("poh_ext::maze_valid_mask")
    def _(passages):
        batch, height, width = passages.shape
        return passages.new_empty((batch, height * width, height * width), dtype=torch.bool)

    @torch.library.register_fake("poh_ext::maze_distances")
    def _(passages, goal):
        height, width = passages.shape[1:]
        return passages.new_empty((goal.shape[0], height * width), dtype=torch.int32)

    @torch.library.register_fake("poh_ext::maze_shortest_paths")
    def _(passages, start, goal, length):
        return start.new_empty((start.shape[0], length)), start.new_empty(start.shape[0])

    @torch.library.register_fake("poh_ext::maze_endpoints")
    def _(passages, indices, seed, min_path, max_path, allowed):
        batch = passages.shape[0]
        return tuple(passages.new_empty(batch, dtype=torch.int64) for _ in range(3))

    @torch.library.register_fake("poh_ext::greedy_rollout")
    def _(logits, passages, start, goal, max_steps, moves):
        batch = start.shape[0]
        path = start.new_empty((batch, max_steps + 1))
        return start.new_empty(batch, dtype=torch.bool), path, start.new_empty(batch)
