"""Timed cases of mazes: generation, solving and masks, beside PyTorch's and other packages' ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

import poh_ext
from poh_ext.bench.case import OURS, Case, close

PERFECT = ("dfs", "wilson", "prim", "kruskal")


def same_mazes(algorithm: str, size: int) -> Callable[[tuple, tuple], str]:
    """Comparison: the reference must give the same bits, another package only perfect mazes (N - 1 edges)."""
    exact = close(0.0)

    def compare(found, expected) -> str:
        if not (len(found) == 1 and found[0].dim() == 1):  # edge counts are all a foreign generator can share
            return exact(found, expected)
        wrong = (found[0] != size * size - 1).sum().item() if algorithm in PERFECT else 0
        return f"{wrong} of its mazes are not perfect" if wrong else ""

    return compare


def _reference_twin(call: Callable[[], tuple]) -> Callable[[], tuple]:
    """The same public call, computed by the PyTorch reference."""

    def run():
        from poh_ext import _backend

        kernels, silent = _backend._kernels, _backend._silent_about_cuda
        _backend._kernels, _backend._silent_about_cuda = {}, True
        try:
            return call()
        finally:
            _backend._kernels, _backend._silent_about_cuda = kernels, silent

    return run


def _maze_dataset():
    try:
        from maze_dataset.generation import LatticeMazeGenerators
    except ImportError:
        return None
    return LatticeMazeGenerators


def generation(size, algorithm, count, device):
    """(variants, items per call) that generate mazes."""
    few = min(count, 64)  # a foreign package makes one maze at a time: fewer give the same rate
    variants = {
        "PyTorch reference": _reference_twin(
            lambda: (poh_ext.generate_mazes(count, size, algorithm=algorithm, device=device).passages,)
        )
    }
    items = {"PyTorch reference": count}
    rival = _maze_dataset()
    if rival is not None and hasattr(rival, f"gen_{algorithm}"):
        make = getattr(rival, f"gen_{algorithm}")

        def foreign():
            return (torch.tensor([int(make((size, size)).connection_list.sum()) for _ in range(few)]),)

        variants["maze-dataset"], items["maze-dataset"] = foreign, few
    return variants, items


def solution(size, count, device):
    """(variants, items per call) that generate dfs mazes and find the path between two corners."""

    def twin():
        mazes = poh_ext.generate_mazes(count, size, device=device)
        corner = torch.zeros(count, dtype=torch.int64, device=device)
        return mazes.passages, mazes.shortest_paths(corner, corner + size * size - 1)

    few = min(count, 32)
    variants, items = {"PyTorch reference": _reference_twin(twin)}, {"PyTorch reference": count}
    rival = _maze_dataset()
    if rival is not None:

        def foreign():
            edges = []
            for _ in range(few):
                maze = rival.gen_dfs((size, size))
                maze.find_shortest_path((0, 0), (size - 1, size - 1))
                edges.append(int(maze.connection_list.sum()))
            return (torch.tensor(edges),)

        variants["maze-dataset"], items["maze-dataset"] = foreign, few
    return variants, items


def masks(passages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Neighbour list and validity mask by plain tensor operations."""
    batch, height, width = passages.shape
    cells = torch.arange(height * width, device=passages.device)
    offsets = torch.tensor([-width, width, -1, 1], device=passages.device)
    bits = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=passages.device)
    open_ = (passages.reshape(batch, -1, 1) & bits) != 0
    neighbors = torch.where(open_, cells[:, None] + offsets, -1)
    mask = torch.zeros(batch, height * width, height * width + 1, dtype=torch.bool, device=passages.device)
    mask.scatter_(2, neighbors.where(open_, height * width), True)
    return neighbors, mask[..., :-1]


def maze_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(size name, builder) of generation, with and without solution, and of the tensors made from mazes."""

    def generate(size, algorithm, count):
        def build() -> Case:
            def ours():
                return (poh_ext.generate_mazes(count, size, algorithm=algorithm, device=device).passages,)

            variants, items = generation(size, algorithm, count, device)
            name = f"generate {algorithm} {size}x{size}"
            return Case(
                "mazes", name, {OURS: ours, **variants}, same_mazes(algorithm, size), items={OURS: count, **items}
            )

        return f"{size}", build

    def solve(size, count):
        def build() -> Case:
            def ours():
                mazes = poh_ext.generate_mazes(count, size, device=device)
                corner = torch.zeros(count, dtype=torch.int64, device=device)
                return mazes.passages, mazes.shortest_paths(corner, corner + size * size - 1)

            variants, items = solution(size, count, device)
            name = f"generate+solve dfs {size}x{size}"
            return Case("mazes", name, {OURS: ours, **variants}, same_mazes("dfs", size), items={OURS: count, **items})

        return f"{size}", build

    def masks(size, count):
        def build() -> Case:
            mazes = poh_ext.generate_mazes(count, size, device=device)
            cells = size * size
            variants = {OURS: lambda: (mazes.neighbors(), mazes.valid_mask()), "eager": lambda: masks(mazes.passages)}
            traffic = mazes.passages.nbytes * 2 + count * cells * (4 * 8 + cells)
            return Case("mazes", f"neighbors+valid_mask {size}x{size}", variants, close(0.0), traffic)

        return f"{size}", build

    for size, count in ((12, 4096), (16, 2048), (30, 512)):
        for algorithm in poh_ext.GENERATORS if size == 12 else ("dfs",):
            yield generate(size, algorithm, count)
        yield solve(size, count)
        yield masks(size, count // 4)
