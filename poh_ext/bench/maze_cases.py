"""Timed cases of the maze engine: generation by every algorithm, solution, and the tensors made from mazes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import poh_ext
from poh_ext.bench import maze_rivals
from poh_ext.bench.case import OURS, Case, close


def maze_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(size name, builder) of generation, with and without solution, and of the tensors made from mazes."""

    def generate(size, algorithm, count):
        def build() -> Case:
            def ours():
                return (poh_ext.generate_mazes(count, size, algorithm=algorithm, device=device).passages,)

            variants, items = maze_rivals.generation(size, algorithm, count, device)
            name = f"generate {algorithm} {size}x{size}"
            return Case(
                "mazes",
                name,
                {OURS: ours, **variants},
                maze_rivals.same_mazes(algorithm, size),
                items={OURS: count, **items},
            )

        return f"{size}", build

    def solve(size, count):
        def build() -> Case:
            def ours():
                mazes = poh_ext.generate_mazes(count, size, device=device)
                corner = torch.zeros(count, dtype=torch.int64, device=device)
                return mazes.passages, mazes.shortest_paths(corner, corner + size * size - 1)

            variants, items = maze_rivals.solution(size, count, device)
            name = f"generate+solve dfs {size}x{size}"
            return Case(
                "mazes",
                name,
                {OURS: ours, **variants},
                maze_rivals.same_mazes("dfs", size),
                items={OURS: count, **items},
            )

        return f"{size}", build

    def masks(size, count):
        def build() -> Case:
            mazes = poh_ext.generate_mazes(count, size, device=device)
            cells = size * size
            variants = {
                OURS: lambda: (mazes.neighbors(), mazes.valid_mask()),
                "eager": lambda: maze_rivals.masks(mazes.passages),
            }
            traffic = mazes.passages.nbytes * 2 + count * cells * (4 * 8 + cells)
            return Case("mazes", f"neighbors+valid_mask {size}x{size}", variants, close(0.0), traffic)

        return f"{size}", build

    for size, count in ((12, 4096), (16, 2048), (30, 512)):
        for algorithm in poh_ext.GENERATORS if size == 12 else ("dfs",):
            yield generate(size, algorithm, count)
        yield solve(size, count)
        yield masks(size, count // 4)
