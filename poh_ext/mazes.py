"""Batches of mazes: generators, open grids, and what a planner, a loss and a plot need to know of a maze.

A maze is a grid of H x W cells, numbered row by row. `passages` holds the directions in which each cell may be left.
Tasks (a maze, a start and a goal) are in poh_ext.tasks.

With the kernels, `greedy_rollout` and all functions here compile under torch.compile(fullgraph=True), except
`shortest_paths` without a length. The PyTorch reference loops until the mazes are done, which cannot be traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from poh_ext._checks import (
    MAX_CELLS,
    check_alike,
    check_cells,
    check_device,
    check_dtype,
    check_int,
    check_shares,
    check_size,
    which_items,
    work_device,
)
from poh_ext._sharing import compact, is_shared, moved, of_each, packed, picked
from poh_ext.ops import maze
from poh_ext.reference.philox import philox4x32

__all__ = ["GENERATORS", "MazeBatch", "generate_mazes"]

GENERATORS: dict[str, str] = {
    "dfs": "depth-first search with backtracking from a random start: long corridors, few branches",
    "wilson": "uniform over all spanning trees, by Wilson's loop-erased random walks",
    "prim": "randomised Prim: a random wall of the frontier (each equally likely) opens to a new cell; short branches",
    "kruskal": "walls in random order, each opened if it joins two parts (a minimum spanning tree of random weights)",
    "percolation": "each wall stands with probability `density`, independently: loops, and parts out of reach",
    "obstacles": "each cell is blocked with probability `density`, independently: open areas, and parts out of reach",
}
"""Maze generators by name, each with a description. All but the last two make perfect mazes, that is, spanning trees,
whose walls `braid` can open.

Examples:
    >>> for name in poh_ext.GENERATORS:
    ...     mazes = poh_ext.generate_mazes(10, 12, algorithm=name)
"""


class MazeBatch:
    """B mazes of one size.

    Args:
        passages: uint8 [B, H, W]. Bits 0, 1, 2 and 3 of a cell are set if the way up, down, left and right is open. A
            passage is set in both of its cells, and none leads out of the grid. A batch that is one maze repeated
            (`expand`) is kept as that one maze.
        free: bool [B, H, W], False where a cell is blocked: an obstacle, with no passages. None: no cell is.
        seed, algorithm: the origin of the mazes, if known. Slices keep it; nothing else uses it.
        index: int64 [B], the places of the mazes in the stream of `seed`, if known; kept like the seed.
        check: verify passages and free as described above. This reads the data, so it does not run inside
            torch.compile.

    Raises:
        TypeError: passages is no uint8 tensor, free no bool tensor, or index no int64 tensor.
        ValueError: passages is not [B, H, W] with H, W >= 1, has a bit above 3, or has a passage that leads out of the
            grid or is open from one side only (the message names maze and cell); free has another shape, or a blocked
            cell has a passage; or index is not [B].

    Examples:
        >>> corridor = MazeBatch(torch.tensor([[[8, 12, 4]]], dtype=torch.uint8))  # three cells in a row
        >>> corridor.shortest_paths(torch.tensor([0]), torch.tensor([2]))
        tensor([[0, 1, 2]])
    """

    def __init__(
        self,
        passages: Tensor,
        *,
        free: Tensor | None = None,
        seed: int | None = None,
        algorithm: str | None = None,
        index: Tensor | None = None,
        check: bool = True,
    ):
        check_dtype("passages", passages, torch.uint8)
        if passages.dim() != 3 or passages.shape[1] < 1 or passages.shape[2] < 1:
            raise ValueError(f"passages must be [B, H, W] with H, W >= 1, got {list(passages.shape)}")
        if passages.shape[1] * passages.shape[2] > MAX_CELLS:
            raise ValueError(f"passages must have at most {MAX_CELLS} cells a maze, got {list(passages.shape)}")
        if free is not None:
            check_dtype("free", free, torch.bool)
            if free.shape != passages.shape or free.device != passages.device:
                raise ValueError(
                    f"free must be {list(passages.shape)} on {passages.device}, as passages is, got "
                    f"{list(free.shape)} on {free.device}"
                )
        if index is not None:
            check_dtype("index", index, torch.int64)
            if index.shape != passages.shape[:1]:
                raise ValueError(f"index must be [{passages.shape[0]}], got {list(index.shape)}")
        self.passages = packed(passages)
        self.seed, self.algorithm, self.index = seed, algorithm, index
        self._free = None if free is None else packed(free)
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
            TypeError: n or size is no int.
            ValueError: out of range, or the device is not available.

        Examples:
            >>> MazeBatch.open(1, (2, 3)).passages[0].tolist()  # 2 down + 8 right = 10, ...
            [[10, 14, 6], [9, 13, 5]]
        """
        height, width = check_size(size)
        n, device = check_int("n", n, 0), check_device(device)
        passages = torch.full((n, height, width), 15, dtype=torch.uint8, device=device)
        for edge, bit in ((passages[:, 0], 1), (passages[:, -1], 2), (passages[:, :, 0], 4), (passages[:, :, -1], 8)):
            edge -= bit
        return cls(passages, check=False)

    @classmethod
    def from_free(cls, free: Tensor) -> MazeBatch:
        """Grids with obstacles: a passage leads between any two free cells side by side, and none to a blocked cell.

        Args:
            free: bool [B, H, W], True where a cell is free.

        Raises:
            TypeError: free is no bool tensor.
            ValueError: it is not [B, H, W] with H, W >= 1.

        Examples:
            >>> grids = MazeBatch.from_free(torch.tensor([[[True, True], [True, False]]]))
            >>> grids.passages[0].tolist(), grids.free()[0].tolist()
            ([[10, 4], [1, 0]], [[True, True], [True, False]])
        """
        check_dtype("free", free, torch.bool)
        if free.dim() != 3 or free.shape[1] < 1 or free.shape[2] < 1:
            raise ValueError(f"free must be [B, H, W] with H, W >= 1, got {list(free.shape)}")
        free = packed(free)
        grid = free[:1] if is_shared(free) else free
        level, upright = grid[:, :, 1:] & grid[:, :, :-1], grid[:, 1:] & grid[:, :-1]
        passages = torch.zeros_like(grid, dtype=torch.uint8)
        passages[:, 1:] |= upright
        passages[:, :-1] |= upright.to(torch.uint8) << 1
        passages[:, :, 1:] |= level.to(torch.uint8) << 2
        passages[:, :, :-1] |= level.to(torch.uint8) << 3
        return cls(passages.expand(free.shape), free=free, check=False)

    @classmethod
    def from_raster(cls, raster: Tensor) -> MazeBatch:
        """The mazes whose `raster` this is.

        Args:
            raster: uint8 or bool [B, 2H+1, 2W+1], 1 = wall. The pixels between four cells are of no effect.

        Raises:
            TypeError: raster is of another dtype.
            ValueError: it has another shape, a pixel that is neither 0 nor 1, an open pixel in its border, or an open
                passage to a blocked cell.

        Examples:
            >>> mazes = generate_mazes(3, (4, 7))
            >>> torch.equal(MazeBatch.from_raster(mazes.raster()).passages, mazes.passages)
            True
        """
        check_dtype("raster", raster, torch.uint8, torch.bool)
        if raster.dim() != 3 or any(side < 3 or side % 2 == 0 for side in raster.shape[1:]):
            raise ValueError(f"raster must be [B, 2H+1, 2W+1] with H, W >= 1, got {list(raster.shape)}")
        if raster.dtype == torch.uint8 and (raster > 1).any():
            maze, row, column = (raster > 1).nonzero()[0].tolist()
            raise ValueError(
                f"raster must be 1 at a wall and 0 elsewhere, got {int(raster[maze, row, column])} at "
                f"[{maze}, {row}, {column}]"
            )
        is_open = raster == 0
        border = torch.ones_like(is_open)
        border[:, 1:-1, 1:-1] = False
        if (gap := is_open & border).any():
            maze, row, column = gap.nonzero()[0].tolist()
            raise ValueError(f"raster[{maze}, {row}, {column}] is open, but lies in the border; 1 is a wall, 0 is open")
        free = is_open[:, 1::2, 1::2]
        ways = is_open[:, :-1:2, 1::2], is_open[:, 2::2, 1::2], is_open[:, 1::2, :-1:2], is_open[:, 1::2, 2::2]
        passages = torch.zeros_like(free, dtype=torch.uint8)
        for bit, way in enumerate(ways):
            passages |= way.to(torch.uint8) << bit
        return cls(passages, free=None if free.all() else free)

    @classmethod
    def cat(cls, batches: Sequence[MazeBatch]) -> MazeBatch:
        """The mazes of several batches, of one size and on one device, as a batch.

        seed and algorithm are kept if they are the same in all, and with them index.

        Raises:
            TypeError: an item is no MazeBatch.
            ValueError: there is none, or their sizes or devices differ.
        """
        batches = list(batches)
        check_alike("batches", batches, MazeBatch)
        origins = {(batch.seed, batch.algorithm) for batch in batches}
        seed, algorithm = origins.pop() if len(origins) == 1 else (None, None)
        indices = [batch.index for batch in batches if batch.index is not None]
        known = not origins and len(indices) == len(batches)
        blocked = any(batch._free is not None for batch in batches)
        return cls(
            torch.cat([batch.passages for batch in batches]),
            free=torch.cat([batch.free() for batch in batches]) if blocked else None,
            seed=seed,
            algorithm=algorithm,
            index=torch.cat(indices) if known else None,
            check=False,
        )

    def expand(self, n: int) -> MazeBatch:
        """A batch that is this one maze n times, without copies of it: for many tasks on one map.

        Raises:
            TypeError: n is no int.
            ValueError: n < 0, or the batch has not exactly one maze.

        Examples:
            >>> MazeBatch.open(1, 512).expand(1000).passages.untyped_storage().nbytes()
            262144
        """
        n = check_int("n", n, 0)
        if len(self) != 1:
            raise ValueError(f"only a batch of one maze can be expanded, this has {len(self)}")
        index = None if self.index is None else self.index.expand(n)
        free = None if self._free is None else self._free.expand(n, -1, -1)
        return self._like(self.passages.expand(n, -1, -1), free, index)

    @property
    def has_blocked(self) -> bool:
        """False if no cell is blocked; True if some may be. Nothing is read for this."""
        return self._free is not None

    def free(self) -> Tensor:
        """bool [B, H, W]: True where a cell is free, False where it is blocked."""
        if self._free is not None:
            return self._free
        return of_each(self.passages, lambda p: torch.ones_like(p, dtype=torch.bool))

    def _check(self) -> None:
        p = self.passages[:1] if is_shared(self.passages) else self.passages
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
        if self._free is not None and (bad := (self.passages > 0) & ~self._free).any():
            maze, row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"free[{maze}, {row}, {column}] is False, but the cell has passages: passages[{maze}, {row}, {column}] "
                f"= {int(self.passages[maze, row, column])}"
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

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: of a slice its own mazes alone."""
        return compact(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Checked, because torch.load(weights_only=True) gives this what an untrusted file holds."""
        origin = {name: state[name] for name in ("seed", "algorithm", "index")}
        MazeBatch.__init__(self, state["passages"], free=state["_free"], **origin)

    def _like(self, passages: Tensor, free: Tensor | None, index: Tensor | None) -> MazeBatch:
        return MazeBatch(passages, free=free, seed=self.seed, algorithm=self.algorithm, index=index, check=False)

    def _each(self, change: Callable[[Tensor], Tensor]) -> MazeBatch:
        """The batch of what becomes of each of the tensors [B, ...]."""
        free, index = (None if t is None else change(t) for t in (self._free, self.index))
        return self._like(change(self.passages), free, index)

    def __iter__(self) -> Iterator[MazeBatch]:
        """Batches of one maze each."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, which: int | slice | Tensor | Sequence[int]) -> MazeBatch:
        """The mazes `which` as a batch. An int gives a batch of one; a tensor holds indices or is a bool mask.

        Raises:
            TypeError: which is anything else.
            IndexError: out of range.
        """
        which = which_items(which, len(self))
        return self._each(lambda t: picked(t, which))

    def to(self, device: torch.device | str) -> MazeBatch:
        """The same mazes on `device`."""
        device = check_device(device)
        return self._each(lambda t: moved(t, device))

    def neighbors(self) -> Tensor:
        """int64 [B, N, 4]: the cells above, below, left and right of each cell, -1 at a wall. The loss takes them as
        `candidates`."""
        return of_each(self.passages, maze.neighbors)

    def valid_mask(self) -> Tensor:
        """bool [B, N, N]: [b, i, j] is True if a step leads from cell i to cell j. The loss takes it as `valid`."""
        return of_each(self.passages, maze.valid_mask)

    def raster(self) -> Tensor:
        """uint8 [B, 2H+1, 2W+1], an image, 1 = wall. Cell (r, c) is pixel (2r+1, 2c+1); its walls lie around it.

        A blocked cell is 1, too. `from_raster` is the inverse.
        """
        p = self.passages
        image = torch.ones(len(self), 2 * self.height + 1, 2 * self.width + 1, dtype=torch.uint8, device=p.device)
        image[:, 1::2, 1::2] = 0 if self._free is None else ~self._free
        image[:, 2:-1:2, 1::2] = ((p[:, :-1] >> 1) & 1) ^ 1
        image[:, 1::2, 2:-1:2] = (p[:, :, :-1] >> 3) ^ 1
        return image

    def distances(self, goal: Tensor) -> Tensor:
        """int32 [B, N]: the number of moves from each cell to the nearest goal, -1 if no way leads there.

        Args:
            goal: int64 [B], a cell of each maze; or [B, G], several cells of each, padded with -1. A batch of one maze
                takes any number of goals, [n] or [n, G], and gives [n, N].

        Raises:
            TypeError, ValueError: goal is of another dtype, shape or device.
            IndexError: a goal is no cell.
        """
        mazes = self._for("goal", goal)
        return maze.distances(mazes.passages, goal)

    def shortest_paths(self, start: Tensor, goal: Tensor, *, length: int | None = None) -> Tensor:
        """int64 [B, L]: the cells of a shortest path from start to the nearest goal, both included, padded with -1.

        If there are several shortest paths, the one whose first differing step comes first in (up, down, left, right)
        is taken. A goal out of reach gives a row of -1. A start that is a goal gives that one cell.

        Args:
            start: int64 [B], a cell of each maze; [n] if the batch is one maze.
            goal: as in `distances`.
            length: L; longer paths keep their first L cells. None: the longest path of the batch, at least 1, which
                reads the data and so cannot be compiled.

        Raises:
            TypeError, ValueError: start or goal is of another dtype, shape or device, or length < 1.
            IndexError: start or goal is no cell.
        """
        mazes = self._for("start", start)
        check_cells("goal", goal, len(mazes), self.device, several=True)
        if length is not None:
            length = check_int("length", length, 1, MAX_CELLS)
        path, cells = maze.shortest_paths(mazes.passages, start, goal, self.n_cells if length is None else length)
        if length is None:
            path = path[:, : max(1, int(cells.max())) if len(mazes) else 0].contiguous()
        return path

    def hash(self) -> Tensor:
        """int64 [B]: a hash of size and passages. Equal mazes have equal hashes on every device.

        A blocked cell has the hash of a free one without passages: no path tells them apart.

        This is Zobrist's hash, the sum of a 64-bit random number for each cell and its passages. Two different mazes
        collide with probability 2^-64. Among n mazes about n^2 / 2^65 pairs collide (for a million mazes 3e-8).
        """
        cell = torch.arange(self.n_cells, device=self.device)[:, None]
        height, width = torch.full_like(cell, self.height), torch.full_like(cell, self.width)
        counter = (cell, torch.arange(16, device=self.device), height, width)
        random = philox4x32(counter, (0x9E3779B9, 0x7F4A7C15))
        table = (random[..., 0] << 32) | random[..., 1]
        return of_each(self.passages, lambda p: table[cell[:, 0], p.flatten(1).long()].sum(1))

    def _for(self, name: str, cells: Tensor) -> MazeBatch:
        """These mazes, or this one maze for each of the cells, which are checked."""
        shared = len(self) == 1 and isinstance(cells, Tensor) and cells.dim() > 0
        mazes = self.expand(cells.shape[0]) if shared else self
        check_cells(name, cells, len(mazes), self.device, several=name == "goal")
        return mazes


torch.serialization.add_safe_globals([MazeBatch])


def nearer_moves(distance: Tensor, neighbors: Tensor) -> Tensor:
    """bool [B, N, 4]: the moves up, down, left, right that lead nearer; of `MazeBatch.distances` and `neighbors`."""
    around = distance.gather(1, neighbors.clamp(min=0).flatten(1)).view_as(neighbors)
    # A passable neighbour of a cell with a way to the goal has one too, so that -1 never counts as nearer.
    return (neighbors >= 0) & (around == distance.unsqueeze(-1) - 1)


def check_algorithm(algorithm: str) -> str:
    """`algorithm`, if it is one of GENERATORS."""
    if not isinstance(algorithm, str) or algorithm not in GENERATORS:
        raise ValueError(f"algorithm {algorithm!r} is unknown; accepted: {', '.join(GENERATORS)}")
    return algorithm


DENSITY: dict[str, tuple[float, float]] = {"percolation": (0.5, 0.5), "obstacles": (0.3, 0.5)}
"""The default density of the generators that have one."""


KINDS: dict[str, dict[str, Any]] = {
    **{name: {"algorithm": name} for name in GENERATORS},
    "braid": {"algorithm": "dfs", "braid": (0.0, 0.3)},
    "few-loops": {"algorithm": "dfs", "braid": (0.0, 0.05)},
    "open": {"algorithm": "obstacles", "density": (0.0, 0.3)},
}
"""What the programs call a kind of mazes: each generator with its defaults, dfs mazes with loops, many of them or few
and long ones, and grids with few obstacles, as the maps of games are. By name, the arguments of `generate_mazes` and
`sample_tasks`."""


def check_loops(
    algorithm: str, density: float | Sequence[float] | None, braid: float | Sequence[float]
) -> tuple[tuple[float, float] | None, tuple[float, float]]:
    """density, of the algorithms that have none None, and braid, both as (lowest, highest)."""
    shares = check_shares("braid", braid)
    if algorithm not in DENSITY:
        if density is not None:
            raise ValueError(f"density is for {' and '.join(DENSITY)}, not for {algorithm}; braid opens walls there")
        return None, shares
    if shares != (0.0, 0.0):
        perfect = [name for name in GENERATORS if name not in DENSITY]
        raise ValueError(f"braid is for perfect mazes ({', '.join(perfect)}), not for {algorithm}; it has density")
    return (DENSITY[algorithm] if density is None else check_shares("density", density)), shares


def generate_mazes(
    n: int,
    size: int | tuple[int, int],
    *,
    algorithm: str = "dfs",
    density: float | tuple[float, float] | None = None,
    braid: float | tuple[float, float] = 0.0,
    seed: int = 0,
    start_index: int = 0,
    device: torch.device | str = "cpu",
) -> MazeBatch:
    """Mazes start_index ... start_index + n - 1 of the stream `seed`.

    Counter-based (Philox4x32-10): maze i of a seed is the same bit for bit on every device and backend, however the
    indices are split into batches and whatever the number of threads. The draws are for one algorithm and size:
    the mazes of two sizes have nothing to do with each other.

    Without the kernels, dfs, prim and kruskal are made cell by cell: some minutes at 300 x 300. A warning says so once.

    In a process forked after this one has used its threads the call would wait for ever, as every torch operation with
    threads does. Start processes with "spawn", use the workers of a DataLoader, or call torch.set_num_threads(1) first
    in the forked process.

    Args:
        n: number of mazes, >= 0.
        size: int, or (height, width), in cells, each >= 1, together at most 2^26 cells.
        algorithm: one of poh_ext.GENERATORS.
        density: of percolation the share of walls that stand (None: 0.5), of obstacles the share of cells that are
            blocked (None: (0.3, 0.5), as in Maze-Hard). A pair (lowest, highest) is a range from which each maze draws
            its own share. Each wall or cell is drawn independently with that probability.
        braid: of the perfect mazes, the share of the remaining walls that are opened: a number or a range, as density.
        seed: in [0, 2^63).
        start_index: index of the first maze, >= 0.
        device: where the mazes are wanted.

    Raises:
        TypeError: n, size, seed or start_index is no int, density or braid no number or pair.
        ValueError: out of range; an unknown algorithm; density for one without, or braid for one with density; or the
            device is not available.

    Examples:
        >>> mazes = generate_mazes(1000, 12, algorithm="wilson", seed=7)
        >>> tail = generate_mazes(400, 12, algorithm="wilson", seed=7, start_index=600)
        >>> torch.equal(mazes[600:].passages, tail.passages)
        True
        >>> maps = generate_mazes(1000, 30, algorithm="obstacles", density=(0.2, 0.4))
        >>> loops = generate_mazes(1000, 12, braid=0.1)
    """
    height, width = check_size(size)
    density, braid = check_loops(check_algorithm(algorithm), density, braid)
    seed, n = check_int("seed", seed, 0), check_int("n", n, 0)
    start_index = check_int("start_index", start_index, 0, 2**63 - 1 - n)
    index = torch.arange(start_index, start_index + n, device=work_device(device))
    passages = maze.generate_mazes(index, seed, height, width, algorithm, *(braid if density is None else density))
    free = None
    if algorithm == "obstacles":
        free = passages < maze.BLOCKED
        passages.bitwise_and_(maze.BLOCKED - 1)
    return MazeBatch(passages, free=free, seed=seed, algorithm=algorithm, index=index, check=False).to(device)
