"""Planning tasks: a maze, a start, a goal and the shortest path between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from poh_ext._checks import check_int, check_size, one_as_slice, work_device
from poh_ext.mazes import MazeBatch, check_algorithm, generate_mazes
from poh_ext.ops import maze
from poh_ext.reference.philox import STREAM_CANDIDATE, below, words

__all__ = ["STARTS", "MazeTasks", "sample_tasks", "sample_tasks_as_published"]

_GIVE_UP = 10_000  # mazes in a row without a fitting path, after which a filter counts as infeasible

STARTS: dict[str, str] = {
    "any": "any cell",
    "dead-end": "a cell with one way out",
    "corridor": "a cell with two ways out, straight or bent",
    "junction": "a cell with three or four ways out",
}
"""Kinds of start cell by name, each with a description."""


class MazeTasks:
    """n tasks on mazes of one size, usually made by `sample_tasks`.

    Args:
        mazes: MazeBatch of n mazes.
        start: int64 [n], the cell index of each start.
        goal: int64 [n], the cell index of each goal.
        path: int64 [n, L], the cells of a shortest path from start to goal, padded with -1. The path is not checked
            against the mazes, because the as-published benchmark replaces the mazes by grids without walls.
        length: int64 [n], the number of cells on the path, one more than its moves.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device than described above.

    Example:
        >>> tasks = sample_tasks(100, 12, min_path=50)
        >>> tasks[:10].start.shape
        torch.Size([10])
    """

    def __init__(self, mazes: MazeBatch, start: Tensor, goal: Tensor, path: Tensor, length: Tensor):
        n = len(mazes)
        for name, value, shape in (
            ("start", start, (n,)),
            ("goal", goal, (n,)),
            ("path", path, (n, -1)),
            ("length", length, (n,)),
        ):
            if not isinstance(value, Tensor) or value.dtype != torch.int64:
                given = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{name} must be an int64 tensor, got {given}")
            if value.dim() != len(shape) or value.shape[0] != n:
                raise ValueError(f"{name} must be {list(shape)}, got {list(value.shape)}")
            if value.device != mazes.device:
                raise ValueError(f"{name} is on {value.device}, the mazes are on {mazes.device}")
        self.mazes, self.start, self.goal, self.path, self.length = mazes, start, goal, path, length

    def __len__(self) -> int:
        return len(self.mazes)

    def __repr__(self) -> str:
        return f"MazeTasks({self.mazes!r}, paths of up to {self.path.shape[1]} cells)"

    def __getitem__(self, which: int | slice | Tensor | Sequence[int]) -> MazeTasks:
        """The tasks `which` as a batch. An int gives a batch of one; paths keep the width L."""
        which = one_as_slice(which, len(self))
        return MazeTasks(self.mazes[which], self.start[which], self.goal[which], self.path[which], self.length[which])

    def to(self, device: torch.device | str) -> MazeTasks:
        """The same tasks on `device`."""
        fields = (self.start, self.goal, self.path, self.length)
        return MazeTasks(self.mazes.to(device), *(field.to(device) for field in fields))

    def keys(self) -> Tensor:
        """int64 [n]: MazeBatch.hash() of the mazes. Two sets share a maze if they share a key.

        Example:
            >>> assert not torch.isin(train.keys(), test.keys()).any()
        """
        return self.mazes.hash()


def _solved(mazes: MazeBatch, start: Tensor, goal: Tensor) -> MazeTasks:
    path, length = maze.shortest_paths(mazes.passages, start, goal, mazes.n_cells)
    longest = int(length.max()) if len(mazes) else 0
    return MazeTasks(mazes, start, goal, path[:, :longest].contiguous(), length)


def _index(mazes: MazeBatch) -> Tensor:
    assert mazes.index is not None  # they come from generate_mazes
    return mazes.index


def _endpoints(mazes: MazeBatch, seed: int, least: int, most: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """ops.maze.endpoints with starts of that kind."""
    index = _index(mazes)
    start, goal, seen = maze.endpoints(mazes.passages, index, seed, least, most)
    if kind != "any":
        some = (start >= 0).nonzero()[:, 0]  # the search among some starts has no kernel: not where there is none
        passages = mazes.passages[some].flatten(1)
        ways = torch.stack([(passages >> bit) & 1 for bit in range(4)]).sum(0)
        allowed = {"dead-end": ways == 1, "corridor": ways == 2, "junction": ways >= 3}[kind]
        start[some], goal[some], further = maze.endpoints(mazes.passages[some], index[some], seed, least, most, allowed)
        seen[some] = torch.maximum(seen[some], further)
    return start, goal, seen


def _empty(size: tuple[int, int], algorithm: str, seed: int, device: torch.device) -> MazeTasks:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    mazes = generate_mazes(0, size, algorithm=algorithm, seed=seed, device=device)
    return MazeTasks(mazes, none, none, none.view(0, 0), none)


def sample_tasks(
    n: int,
    size: int | tuple[int, int],
    *,
    min_path: int = 2,
    max_path: int | None = None,
    algorithm: str = "dfs",
    start: str = "any",
    seed: int = 0,
    device: torch.device | str = "cpu",
    exclude: Tensor | None = None,
) -> MazeTasks:
    """Exactly n tasks whose shortest path has min_path to max_path cells.

    The tasks are on the first n mazes of the stream `seed` that have such a path, one task for each maze. The start is
    drawn uniformly from the cells (of the kind `start`) from which some goal fits. The goal is drawn uniformly from the
    cells that fit this start. So a maze is rejected only if it has no fitting path, and this is the only difference
    from the distribution of the generator. (`sample_tasks_as_published` draws start and goal first and keeps what fits,
    which prefers mazes with many long paths.) max_path rejects no maze, because where a path of L cells starts, shorter
    paths start, too.

    The result depends only on these arguments, not on device, backend or threads. sample_tasks(n) begins with the tasks
    of sample_tasks(m), m < n. The note of `generate_mazes` on forked processes holds here, too.

    Args:
        n: number of tasks, >= 0.
        size: int, or (height, width), in cells, >= 1.
        min_path: fewest cells on the path, start and goal included, >= 1.
        max_path: most cells; None: no limit.
        algorithm: one of poh_ext.GENERATORS.
        start: kind of start cell, one of poh_ext.tasks.STARTS.
        seed: in [0, 2^63).
        device: device of the tasks.
        exclude: int64 [m] of MazeTasks.keys(): mazes to leave out, for a test set without mazes of the training set.

    Raises:
        TypeError: a wrong type. ValueError: a value out of range or unknown; or a filter that 10,000 mazes in a row do
            not fit, naming the longest path seen; or min_path > H * W, which no maze can have.

    Example:
        >>> tasks = sample_tasks(1000, 12, min_path=50, seed=3)
        >>> int(tasks.length.min()) >= 50
        True
    """
    size, algorithm = check_size(size), check_algorithm(algorithm)
    if start not in STARTS:
        raise ValueError(f"start {start!r} is unknown; accepted: {', '.join(STARTS)}")
    n, seed, min_path = check_int("n", n, 0), check_int("seed", seed, 0), check_int("min_path", min_path, 1)
    n_cells = size[0] * size[1]
    if n and min_path > n_cells:
        raise ValueError(f"min_path is {min_path} cells, but a maze of {size[0]} x {size[1]} has only {n_cells}")
    most = max(n_cells, min_path) if max_path is None else check_int("max_path", max_path, 1)
    if most < min_path:
        raise ValueError(f"max_path must be at least min_path = {min_path}, got {max_path}")
    if exclude is not None:
        if not isinstance(exclude, Tensor) or exclude.dtype != torch.int64:
            given = exclude.dtype if isinstance(exclude, Tensor) else type(exclude).__name__
            raise TypeError(f"exclude must be an int64 tensor, as MazeTasks.keys() gives, got {given}")
        if exclude.dim() != 1:
            raise ValueError(f"exclude must have shape [m], got {list(exclude.shape)}")
    work, limit = work_device(device), _GIVE_UP
    source = "" if start == "any" else f" from a {start} ({STARTS[start]})"
    parts, found, done, last, longest = [], 0, 0, -1, 0
    while found < n:
        # As many mazes as the rate so far says are still needed. The split changes nothing but the time.
        wanted = math.ceil(1.05 * (n - found) * (done / max(found, 1) if done else 1)) + 16
        count = min(wanted, max(64, (1 << 22) // n_cells), limit if not found else wanted)
        mazes = generate_mazes(count, size, algorithm=algorithm, seed=seed, start_index=done, device=work)
        origin, goal, seen = _endpoints(mazes, seed, min_path, most, start)
        fits = origin >= 0
        if exclude is not None:
            fits = fits & ~torch.isin(mazes.hash(), exclude.to(work))
        keep = fits.nonzero()[:, 0][: n - found]
        longest = max(longest, int(seen.max()))
        # The mazes kept, after the last kept before and, unless these are all, before the first not seen yet.
        end = [] if found + len(keep) == n else [done + count]
        marks = torch.cat((keep.new_tensor([last]), keep + done, keep.new_tensor(end)))
        if int(marks.diff().max()) > limit:
            raise ValueError(
                f"no path of at least min_path = {min_path} cells{source} in {limit} {algorithm} mazes of {size[0]} x "
                f"{size[1]} cells in a row; the longest path seen has {longest} cells"
                + ("" if exclude is None else " (mazes in `exclude` are left out)")
            )
        parts.append((mazes[keep], origin[keep], goal[keep]))
        last = int(keep[-1]) + done if len(keep) else last
        found, done = found + len(keep), done + count
    if not parts:
        return _empty(size, algorithm, seed, work).to(device)
    mazes = MazeBatch(
        torch.cat([part[0].passages for part in parts]),
        seed=seed,
        algorithm=algorithm,
        index=torch.cat([_index(part[0]) for part in parts]),
        check=False,
    )
    return _solved(mazes, torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])).to(device)


def sample_tasks_as_published(
    n_candidates: int, size: int | tuple[int, int], min_path: int, seed: int, *, device: torch.device | str = "cpu"
) -> MazeTasks:
    """The tasks of the published protocol: start and goal are drawn, and tasks with a long enough path are kept.

    On each of n_candidates dfs mazes, start and goal are drawn uniformly and independently from all cells (they may be
    the same). The tasks whose shortest path has at least min_path cells are kept, in order, so their number varies. Use
    `sample_tasks` for everything except the comparison.

    Args and errors: as `sample_tasks`.

    Example:
        >>> tasks = sample_tasks_as_published(3 * 400, 12, min_path=50, seed=42)
    """
    size, min_path = check_size(size), check_int("min_path", min_path, 1)
    n, seed = check_int("n_candidates", n_candidates, 0), check_int("seed", seed, 0)
    mazes = generate_mazes(n, size, seed=seed, device=work_device(device))
    start, goal = below(words(seed, STREAM_CANDIDATE, _index(mazes), 2), mazes.n_cells).unbind(1)
    distance = mazes.distances(goal).gather(1, start[:, None])[:, 0] if n else goal
    keep = distance >= min_path - 1
    return _solved(mazes[keep], start[keep], goal[keep]).to(device)
