"""Batches of mazes: generators, open grids, and what a planner, a loss and a plot need to know of a maze.

A maze is a grid of H x W cells, numbered row by row. `passages` holds the directions in which each cell may be left.
Tasks (a maze, a start and a goal) are in poh_ext.tasks.

With the kernels, `greedy_rollout` and all functions here compile under torch.compile(fullgraph=True), except
`shortest_paths` without a length. The PyTorch reference loops until the mazes are done, which cannot be traced.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from poh_ext._checks import check_int, check_size, one_as_slice, work_device
from poh_ext.ops import maze
from poh_ext.reference.philox import philox4x32

__all__ = ["GENERATORS", "MazeBatch", "generate_mazes"]

GENERATORS: dict[str, str] = {
    "dfs": "depth-first search with backtracking from a random start: long corridors, few branches",
    "wilson": "uniform over all spanning trees, by Wilson's loop-erased random walks",
    "prim": "randomised Prim: a random wall of the frontier (each equally likely) opens to a new cell; short branches",
    "kruskal": "walls in random order, each opened if it joins two parts (a minimum spanning tree of random weights)",
    "percolation": "each wall open with probability 1/2, independently: loops, and parts that cannot be reached",
}
"""Maze generators by name, each with a description. All but `percolation` make perfect mazes, that is, spanning trees.

Example:
    >>> for name in poh_ext.GENERATORS:
    ...     mazes = poh_ext.generate_mazes(10, 12, algorithm=name)
"""


class MazeBatch:
    """B mazes of one size.

    Args:
        passages: uint8 [B, H, W]. Bits 0, 1, 2 and 3 of a cell are set if the way up, down, left and right is open. A
            passage is set in both of its cells, and none leads out of the grid.
        seed, algorithm: the origin of the mazes, if known. Slices keep it; nothing else uses it.
        index: int64 [B], the places of the mazes in the stream of `seed`, if known; kept like the seed.
        check: verify passages as described above. This reads the data, so it does not run inside torch.compile.

    Raises:
        TypeError: passages is no uint8 tensor.
        ValueError: passages is not [B, H, W] with H, W >= 1, has a bit above 3, or has a passage that leads out of the
            grid or is open from one side only (the message names maze and cell); or index is not int64 [B].

    Example:
        >>> corridor = MazeBatch(torch.tensor([[[8, 12, 4]]], dtype=torch.uint8))  # three cells in a row
        >>> corridor.shortest_paths(torch.tensor([0]), torch.tensor([2]))
        tensor([[0, 1, 2]])
    """

    def __init__(
        self,
        passages: Tensor,
        *,
        seed: int | None = None,
        algorithm: str | None = None,
        index: Tensor | None = None,
        check: bool = True,
    ):
        if not isinstance(passages, Tensor) or passages.dtype != torch.uint8:
            given = passages.dtype if isinstance(passages, Tensor) else type(passages).__name__
            raise TypeError(f"passages must be a uint8 tensor, got {given}")
        if passages.dim() != 3 or passages.shape[1] < 1 or passages.shape[2] < 1:
            raise ValueError(f"passages must be [B, H, W] with H, W >= 1, got {list(passages.shape)}")
        if index is not None and (index.dtype != torch.int64 or index.shape != passages.shape[:1]):
            raise ValueError(f"index must be int64 [{passages.shape[0]}], got {index.dtype} {list(index.shape)}")
        self.passages = passages.contiguous()
        self.seed, self.algorithm, self.index = seed, algorithm, index
        if check and not torch.compiler.is_compiling():
            self._check()

    @classmethod
    def open(cls, n: int, size: int | tuple[int, int], *, device: torch.device | str = "cpu") -> MazeBatch:
        """n grids without inner walls: each cell has a passage to all of its two to four neighbours in the grid.

        Args:
            n: number of grids, >= 0.
            size: int, or (height, width), in cells, each >= 1, together at most 2^26 cells.
            device: where they are wanted.

        Raises:
            TypeError: n or size is no int. ValueError: out of range.

        Example:
            >>> MazeBatch.open(1, (2, 3)).passages[0].tolist()  # 2 down + 8 right = 10, ...
            [[10, 14, 6], [9, 13, 5]]
        """
        height, width = check_size(size)
        passages = torch.full((check_int("n", n, 0), height, width), 15, dtype=torch.uint8, device=device)
        for edge, bit in ((passages[:, 0], 1), (passages[:, -1], 2), (passages[:, :, 0], 4), (passages[:, :, -1], 8)):
            edge -= bit
        return cls(passages, check=False)

    def _check(self) -> None:
        p = self.passages
        up, down, left, right = (p & 1 != 0, p & 2 != 0, p & 4 != 0, p & 8 != 0)
        bad = p > 15
        bad[:, 0] |= up[:, 0]
        bad[:, -1] |= down[:, -1]
        bad[:, :, 0] |= left[:, :, 0]
        bad[:, :, -1] |= right[:, :, -1]
        bad[:, 1:] |= up[:, 1:] != down[:, :-1]
        bad[:, :, 1:] |= left[:, :, 1:] != right[:, :, :-1]
        if bad.any():
            maze, row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"passages[{maze}, {row}, {column}] = {int(p[maze, row, column])}: a passage leads out of the grid, is "
                "open from one side only, or a bit above 3 is set"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width

    @property
    def height(self) -> int:
        return self.passages.shape[1]

    @property
    def width(self) -> int:
        return self.passages.shape[2]

    @property
    def n_cells(self) -> int:
        """N = H * W."""
        return self.height * self.width

    @property
    def device(self) -> torch.device:
        return self.passages.device

    def __len__(self) -> int:
        return self.passages.shape[0]

    def __repr__(self) -> str:
        source = f", {self.algorithm}, seed {self.seed}" if self.algorithm else ""
        return f"MazeBatch({len(self)} mazes of {self.height} x {self.width} on {self.device}{source})"

    def _like(self, passages: Tensor, index: Tensor | None) -> MazeBatch:
        return MazeBatch(passages, seed=self.seed, algorithm=self.algorithm, index=index, check=False)

    def __getitem__(self, which: int | slice | Tensor | Sequence[int]) -> MazeBatch:
        """The mazes `which` as a batch. An int gives a batch of one; a tensor holds indices or is a bool mask."""
        which = one_as_slice(which, len(self))
        return self._like(self.passages[which], None if self.index is None else self.index[which])

    def to(self, device: torch.device | str) -> MazeBatch:
        """The same mazes on `device`."""
        return self._like(self.passages.to(device), None if self.index is None else self.index.to(device))

    def neighbors(self) -> Tensor:
        """int64 [B, N, 4]: the cells above, below, left and right of each cell, -1 at a wall. The loss takes them as
        `candidates`."""
        return maze.neighbors(self.passages)

    def valid_mask(self) -> Tensor:
        """bool [B, N, N]: [b, i, j] is True if a step leads from cell i to cell j. The loss takes it as `valid`."""
        return maze.valid_mask(self.passages)

    def raster(self) -> Tensor:
        """uint8 [B, 2H+1, 2W+1], an image, 1 = wall. Cell (r, c) is pixel (2r+1, 2c+1); its walls lie around it."""
        p = self.passages
        image = torch.ones(len(self), 2 * self.height + 1, 2 * self.width + 1, dtype=torch.uint8, device=p.device)
        image[:, 1::2, 1::2] = 0
        image[:, 2:-1:2, 1::2] = ((p[:, :-1] >> 1) & 1) ^ 1
        image[:, 1::2, 2:-1:2] = (p[:, :, :-1] >> 3) ^ 1
        return image

    def distances(self, goal: Tensor) -> Tensor:
        """int32 [B, N]: the number of moves from each cell to the goal, -1 if no way leads there.

        Args:
            goal: int64 [B], a cell of each maze.

        Raises:
            TypeError, ValueError: goal is not int64 [B] on the mazes' device.
            IndexError: goal is no cell.
        """
        self._check_cells("goal", goal)
        return maze.distances(self.passages, goal)

    def shortest_paths(self, start: Tensor, goal: Tensor, *, length: int | None = None) -> Tensor:
        """int64 [B, L]: the cells of a shortest path from start to goal, both included, padded with -1.

        If there are several shortest paths, the one whose first differing step comes first in (up, down, left, right)
        is taken. A goal out of reach gives a row of -1. start == goal gives that one cell.

        Args:
            start, goal: int64 [B], a cell of each maze.
            length: L; longer paths keep their first L cells. None: the longest path of the batch, which reads the data
                and so cannot be compiled.

        Raises:
            TypeError, ValueError: start or goal is not int64 [B] on the mazes' device, or length < 1.
            IndexError: start or goal is no cell.
        """
        self._check_cells("start", start)
        self._check_cells("goal", goal)
        if length is not None and length < 1:
            raise ValueError(f"length must be >= 1, got {length}")
        path, cells = maze.shortest_paths(self.passages, start, goal, self.n_cells if length is None else length)
        if length is None:
            path = path[:, : int(cells.max()) if len(self) else 0].contiguous()
        return path

    def hash(self) -> Tensor:
        """int64 [B]: a hash of size and passages. Equal mazes have equal hashes on every device.

        This is Zobrist's hash, the sum of a 64-bit random number for each cell and its passages. Two different mazes
        collide with probability 2^-64. Among n mazes about n^2 / 2^65 pairs collide (for a million mazes 3e-8).
        """
        cell = torch.arange(self.n_cells, device=self.device)[:, None]
        height, width = torch.full_like(cell, self.height), torch.full_like(cell, self.width)
        counter = (cell, torch.arange(16, device=self.device), height, width)
        random = philox4x32(counter, (0x9E3779B9, 0x7F4A7C15))
        table = (random[..., 0] << 32) | random[..., 1]
        return table[cell[:, 0], self.passages.view(len(self), self.n_cells).long()].sum(1)

    def _check_cells(self, name: str, cells: Tensor) -> None:
        if not isinstance(cells, Tensor) or cells.dtype != torch.int64:
            given = cells.dtype if isinstance(cells, Tensor) else type(cells).__name__
            raise TypeError(f"{name} must be an int64 tensor, got {given}")
        if cells.dim() != 1 or cells.shape[0] != self.passages.shape[0]:
            raise ValueError(f"{name} must be [{len(self)}], one cell for each maze, got {list(cells.shape)}")
        if cells.device != self.device:
            raise ValueError(f"{name} is on {cells.device}, the mazes are on {self.device}")


def check_algorithm(algorithm: str) -> str:
    """`algorithm`, if it is one of GENERATORS."""
    if algorithm not in GENERATORS:
        raise ValueError(f"algorithm {algorithm!r} is unknown; accepted: {', '.join(GENERATORS)}")
    return algorithm


def generate_mazes(
    n: int,
    size: int | tuple[int, int],
    *,
    algorithm: str = "dfs",
    seed: int = 0,
    start_index: int = 0,
    device: torch.device | str = "cpu",
) -> MazeBatch:
    """Mazes start_index ... start_index + n - 1 of the stream `seed`.

    Counter-based (Philox4x32-10): maze i of a seed is the same bit for bit on every device and backend, however the
    indices are split into batches and whatever the number of threads. The draws are for one algorithm and size:
    the mazes of two sizes have nothing to do with each other.

    In a process forked after this one has used its threads the call would wait for ever, as every torch operation with
    threads does. Start processes with "spawn", use the workers of a DataLoader, or call torch.set_num_threads(1) first
    in the forked process.

    Args:
        n: number of mazes, >= 0.
        size: int, or (height, width), in cells, each >= 1, together at most 2^26 cells.
        algorithm: one of poh_ext.GENERATORS.
        seed: in [0, 2^63).
        start_index: index of the first maze, >= 0.
        device: where the mazes are wanted.

    Raises:
        TypeError: n, size, seed or start_index is no int. ValueError: out of range, or an unknown algorithm.

    Example:
        >>> mazes = generate_mazes(1000, 12, algorithm="wilson", seed=7)
        >>> tail = generate_mazes(400, 12, algorithm="wilson", seed=7, start_index=600)
        >>> torch.equal(mazes[600:].passages, tail.passages)
        True
    """
    height, width = check_size(size)
    check_algorithm(algorithm)
    seed, n = check_int("seed", seed, 0), check_int("n", n, 0)
    start_index = check_int("start_index", start_index, 0, 2**63 - 1 - n)
    index = torch.arange(start_index, start_index + n, device=work_device(device))
    passages = maze.generate_mazes(index, seed, height, width, algorithm)
    return MazeBatch(passages, seed=seed, algorithm=algorithm, index=index, check=False).to(device)
