"""Planning tasks: a maze, a start, a goal and the shortest path between them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from poh_ext._checks import (
    check_alike,
    check_cells,
    check_device,
    check_dtype,
    check_int,
    check_size,
    which_items,
    work_device,
)
from poh_ext._sharing import compact
from poh_ext.mazes import MazeBatch, check_algorithm, check_loops, generate_mazes, nearer_moves
from poh_ext.ops import maze
from poh_ext.reference.philox import STREAM_CANDIDATE, below, words

__all__ = ["STARTS", "MazeTasks", "padded", "sample_tasks", "sample_tasks_as_published"]

_GIVE_UP = 10_000  # mazes in a row without a fitting path, after which a filter counts as infeasible

STARTS: dict[str, str] = {
    "any": "any cell",
    "dead-end": "a cell with one way out",
    "corridor": "a cell with two ways out, straight or bent",
    "junction": "a cell with three or four ways out",
}
"""Kinds of start cell by name, each with a description."""


class MazeTasks:
    """n tasks on mazes of one size, usually made by `sample_tasks` or read by `poh_ext.io`.

    Args:
        mazes: MazeBatch of n mazes; or of one maze, on which all tasks are then. It is not copied for each.
        start: int64 [n], the cell index of each start.
        goal: int64 [n], the cell index of each goal; or [n, G], several goals of a task, any of which will do, padded
            with -1.
        path: int64 [n, L], the cells of a way from start to a goal, usually a shortest one, padded with -1. A row of -1
            says that there is none. None: a shortest one is found, see `MazeBatch.shortest_paths`.
        length: int64 [n], the number of cells on the path, one more than its moves. None: they are counted.
        check: look at the values too: that cells are cells, and that a path leads from start to a goal by passages.
            This reads the data, so it does not run inside torch.compile.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device than described above; or a path is none,
            or has another length.
        IndexError: a cell is out of range, or blocked.

    Examples:
        >>> tasks = sample_tasks(100, 12, min_path=50)
        >>> tasks[:10].start.shape
        torch.Size([10])
        >>> corridor = MazeBatch(torch.tensor([[[8, 12, 4]]], dtype=torch.uint8))
        >>> MazeTasks(corridor, torch.tensor([0, 1]), torch.tensor([2, 2])).path
        tensor([[ 0,  1,  2],
                [ 1,  2, -1]])
    """

    def __init__(
        self,
        mazes: MazeBatch,
        start: Tensor,
        goal: Tensor,
        path: Tensor | None = None,
        length: Tensor | None = None,
        *,
        check: bool = True,
    ):
        if not isinstance(mazes, MazeBatch):
            raise TypeError(f"mazes must be a MazeBatch, got {type(mazes).__name__}")
        check_dtype("start", start, torch.int64)
        if len(mazes) == 1 and start.dim() == 1 and len(start) != 1:
            mazes = mazes.expand(len(start))
        n, device = len(mazes), mazes.device
        check_cells("start", start, n, device)
        check_cells("goal", goal, n, device, several=True)
        check = check and not torch.compiler.is_compiling()
        if check:
            for name, cells in (("start", start), ("goal", goal)):
                _check_free(name, cells, mazes)
        if path is None:
            path = mazes.shortest_paths(start, goal)
        else:
            check_dtype("path", path, torch.int64)
            if path.dim() != 2 or path.shape[0] != n:
                raise ValueError(f"path must be [{n}, L], got {list(path.shape)}")
            if path.device != device:
                raise ValueError(f"path is on {path.device}, the mazes are on {device}")
            if check:
                _check_paths(mazes, start, goal, path)
        counted = (path >= 0).sum(1) if check or length is None else length
        if length is not None:
            check_cells("length", length, n, device)
            if check and not torch.equal(length, counted):
                task = int((length != counted).nonzero()[0, 0])
                raise ValueError(
                    f"length[{task}] = {int(length[task])}, but path[{task}] has {int(counted[task])} cells"
                )
        self.mazes, self.start, self.goal, self.path = mazes, start, goal, path
        self.length = counted if length is None else length

    @classmethod
    def cat(cls, tasks: Sequence[MazeTasks]) -> MazeTasks:
        """The tasks of several sets, on mazes of one size and on one device. Shorter paths are padded.

        Raises:
            TypeError: an item is no MazeTasks.
            ValueError: there is none, or their sizes or devices differ.

        Examples:
            >>> both = MazeTasks.cat([sample_tasks(100, 12), sample_tasks(100, 12, algorithm="wilson")])
        """
        tasks = list(tasks)
        check_alike("tasks", tasks, MazeTasks)
        goals = [part.goal if part.goal.dim() == 2 else part.goal[:, None] for part in tasks]
        goal = padded(goals)
        return cls(
            MazeBatch.cat([part.mazes for part in tasks]),
            torch.cat([part.start for part in tasks]),
            goal if any(part.goal.dim() == 2 for part in tasks) else goal[:, 0],
            padded([part.path for part in tasks]),
            torch.cat([part.length for part in tasks]),
            check=False,
        )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the mazes."""
        return self.mazes.size

    @property
    def device(self) -> torch.device:
        return self.mazes.device

    def __len__(self) -> int:
        return len(self.mazes)

    def __repr__(self) -> str:
        return f"MazeTasks({self.mazes!r}, paths of up to {self.path.shape[1]} cells)"

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: of a slice its own tasks alone."""
        return compact(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Checked, because torch.load(weights_only=True) gives this what an untrusted file holds."""
        MazeTasks.__init__(self, *(state[name] for name in ("mazes", "start", "goal", "path", "length")))

    def _each(self, mazes: MazeBatch, change: Callable[[Tensor], Tensor]) -> MazeTasks:
        fields = (self.start, self.goal, self.path, self.length)
        return MazeTasks(mazes, *(change(field) for field in fields), check=False)

    def __getitem__(self, which: int | slice | Tensor | Sequence[int]) -> MazeTasks:
        """The tasks `which` as a batch. An int gives a batch of one; paths keep the width L."""
        which = which_items(which, len(self))
        return self._each(self.mazes[which], lambda t: t[which])

    def to(self, device: torch.device | str) -> MazeTasks:
        """The same tasks on `device`."""
        device = check_device(device)
        return self._each(self.mazes.to(device), lambda t: t.to(device))

    def one_shortest_path(self) -> Tensor:
        """bool [n]: True if exactly one shortest path leads from the start to the nearest goals, so that a path that is
        as short is the same path. In a maze without loops it always is.

        Examples:
            >>> tasks = MazeTasks(MazeBatch.open(1, 3), torch.tensor([0, 0]), torch.tensor([2, 8]))
            >>> tasks.one_shortest_path()  # along the edge, and to the opposite corner
            tensor([ True, False])
        """
        if not len(self):
            return self.start > 0
        distance, neighbors = self.mazes.distances(self.goal), self.mazes.neighbors()
        ways = nearer_moves(distance, neighbors).sum(-1)
        path = self.mazes.shortest_paths(self.start, self.goal)
        cells = path.clamp(min=0)
        # It is the only one if none of its cells has a choice. At a goal it ends.
        forced = (ways.gather(1, cells) == 1) | (path < 0) | (distance.gather(1, cells) == 0)
        return forced.all(1) & (path[:, 0] >= 0)

    def keys(self) -> Tensor:
        """int64 [n]: MazeBatch.hash() of the mazes. Two sets share a maze if they share a key.

        Examples:
            >>> assert not torch.isin(train.keys(), test.keys()).any()
        """
        return self.mazes.hash()


torch.serialization.add_safe_globals([MazeTasks])


def padded(rows: list[Tensor]) -> Tensor:
    """int64 [sum of n, most columns] of several [n, columns], with -1."""
    columns = max(row.shape[1] for row in rows)
    return torch.cat([torch.nn.functional.pad(row, (0, columns - row.shape[1]), value=-1) for row in rows])


def _check_free(name: str, cells: Tensor, mazes: MazeBatch) -> None:
    """IndexError if one is no cell, or is blocked. Of a row of goals all but the first may be -1."""
    bad = (cells < 0) | (cells >= mazes.n_cells)
    if cells.dim() == 2:
        bad[:, 1:] &= cells[:, 1:] != -1
    if bad.any():
        at = bad.nonzero()[0].tolist()
        raise IndexError(f"{name}{at} = {int(cells[tuple(at)])} is out of range for {mazes.n_cells} cells")
    columns = cells if cells.dim() == 2 else cells[:, None]
    rows = torch.arange(len(mazes), device=cells.device)[:, None]
    blocked = ~mazes.free().flatten(1)[rows, columns.clamp(min=0)] & (columns >= 0)
    if blocked.any():
        task, column = blocked.nonzero()[0].tolist()
        at = [task, column] if cells.dim() == 2 else [task]
        row, column = divmod(int(columns[task, column]), mazes.width)
        raise IndexError(f"{name}{at} is the cell in row {row}, column {column}, which is blocked")


def _check_paths(mazes: MazeBatch, start: Tensor, goal: Tensor, path: Tensor) -> None:
    n = mazes.n_cells
    filled = path >= 0
    length = filled.sum(1)
    goals = goal if goal.dim() == 2 else goal[:, None]
    place = torch.arange(path.shape[1], device=path.device)
    fault = (path < -1) | (path >= n) | (filled & (place >= length[:, None]))
    if fault.any():
        task, at = fault.nonzero()[0].tolist()
        raise ValueError(
            f"path[{task}, {at}] = {int(path[task, at])}: a path is cells in [0, {n}), then -1 to the end of the row"
        )
    some = (length > 0).nonzero()[:, 0]
    none = (length == 0).nonzero()[:, 0]
    if len(none):
        distance = mazes[none].distances(goal[none]).gather(1, start[none, None])[:, 0]
        if (found := distance >= 0).any():
            task = int(none[int(found.nonzero()[0, 0])])
            raise ValueError(f"path[{task}] is empty, which says that no way leads to a goal, but one does")
    if not len(some):
        return
    last = path[some].gather(1, length[some, None] - 1)
    ends = (path[some, 0] == start[some]) & (last == goals[some]).any(1)
    if not ends.all():
        task = int(some[int((~ends).nonzero()[0, 0])])
        ways = f"{int(path[task, 0])} to {int(path[task, length[task] - 1])}"
        raise ValueError(f"path[{task}] leads from {ways}, not from start to a goal")
    move = path[:, 1:] - path[:, :-1]
    made = filled[:, 1:]
    rows = torch.arange(len(mazes), device=path.device)[:, None]
    way = mazes.passages.flatten(1)[rows, path[:, :-1].clamp(min=0)]
    # In a grid one cell wide a step of one is up or down as well as left or right: any passage of that step will do.
    steps = (-mazes.width, mazes.width, -1, 1)
    taken = torch.stack([(move == step) & ((way >> bit) & 1 > 0) for bit, step in enumerate(steps)]).any(0)
    if (astray := made & ~taken).any():
        task, at = astray.nonzero()[0].tolist()
        raise ValueError(
            f"path[{task}] steps from cell {int(path[task, at])} to {int(path[task, at + 1])}, where no passage leads"
        )


def _solved(mazes: MazeBatch, start: Tensor, goal: Tensor) -> MazeTasks:
    path, length = maze.shortest_paths(mazes.passages, start, goal, mazes.n_cells)
    longest = int(length.max()) if len(mazes) else 0
    return MazeTasks(mazes, start, goal, path[:, :longest].contiguous(), length, check=False)


def _index(mazes: MazeBatch) -> Tensor:
    assert mazes.index is not None  # they come from generate_mazes
    return mazes.index


def _endpoints(mazes: MazeBatch, seed: int, least: int, most: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """ops.maze.endpoints with starts of that kind, on free cells."""
    allowed = None
    if kind != "any":
        passages = mazes.passages.flatten(1)
        ways = torch.stack([(passages >> bit) & 1 for bit in range(4)]).sum(0)
        allowed = {"dead-end": ways == 1, "corridor": ways == 2, "junction": ways >= 3}[kind]
    elif least == 1 and mazes.has_blocked:  # longer paths start at no cell without passages
        allowed = mazes.free().flatten(1)
    return maze.endpoints(mazes.passages, _index(mazes), seed, least, most, allowed)


def sample_tasks(
    n: int,
    size: int | tuple[int, int],
    *,
    min_path: int = 2,
    max_path: int | None = None,
    algorithm: str = "dfs",
    density: float | tuple[float, float] | None = None,
    braid: float | tuple[float, float] = 0.0,
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
        algorithm, density, braid: as of `generate_mazes`.
        start: kind of start cell, one of poh_ext.tasks.STARTS.
        seed: in [0, 2^63).
        device: device of the tasks.
        exclude: int64 [m] of MazeTasks.keys(): mazes to leave out, for a test set without mazes of the training set.

    Raises:
        TypeError: a wrong type.
        ValueError: a value out of range or unknown; a device that is not available; a filter that 10,000 mazes in a row
            do not fit, naming the longest path seen in them, of starts of that kind, and how many of them `exclude`
            left out; or min_path > H * W, which no maze can have.

    Examples:
        >>> tasks = sample_tasks(1000, 12, min_path=50, seed=3)
        >>> int(tasks.length.min()) >= 50
        True
        >>> hard = sample_tasks(10, 30, algorithm="obstacles", min_path=112)  # of the kind of Maze-Hard
    """
    size, algorithm = check_size(size), check_algorithm(algorithm)
    density, braid = check_loops(algorithm, density, braid)
    if not isinstance(start, str) or start not in STARTS:
        raise ValueError(f"start {start!r} is unknown; accepted: {', '.join(STARTS)}")
    n, seed, min_path = check_int("n", n, 0), check_int("seed", seed, 0), check_int("min_path", min_path, 1)
    n_cells = size[0] * size[1]
    if n and min_path > n_cells:
        raise ValueError(f"min_path is {min_path} cells, but a maze of {size[0]} x {size[1]} has only {n_cells}")
    most = max(n_cells, min_path) if max_path is None else check_int("max_path", max_path, 1)
    if most < min_path:
        raise ValueError(f"max_path must be at least min_path = {min_path}, got {max_path}")
    most = min(most, max(n_cells, min_path))  # no path is longer; a number beyond int32 is no distance
    if exclude is not None:
        check_dtype("exclude", exclude, torch.int64)
        if exclude.dim() != 1:
            raise ValueError(f"exclude must have shape [m], got {list(exclude.shape)}")
    work, limit = work_device(device), _GIVE_UP
    source = "" if start == "any" else f" from a {start} ({STARTS[start]})"
    generate = functools.partial(_generate, size, algorithm, density, braid, seed, work)
    parts, found, done, last = [], 0, 0, -1
    reach: list[Tensor] = []  # of all mazes so far, the cells of the longest path from any cell
    left_out: list[Tensor] = []  # of all mazes so far, those that would do but are to be excluded
    while found < n:
        # As many mazes as the rate so far says are still needed. The split changes nothing but the time.
        wanted = math.ceil(1.05 * (n - found) * (done / max(found, 1) if done else 1)) + 16
        count = min(wanted, max(64, (1 << 22) // n_cells), limit if not found else wanted)
        mazes = generate(count, done)
        origin, goal, seen = _endpoints(mazes, seed, min_path, most, start)
        fits = origin >= 0
        if exclude is not None:
            left_out.append(fits & torch.isin(mazes.hash(), exclude.to(work)))
            fits = fits & ~left_out[-1]
        keep = fits.nonzero()[:, 0][: n - found]
        reach.append(seen)
        # The mazes kept, after the last kept before and, unless these are all, before the first not seen yet.
        end = [] if found + len(keep) == n else [done + count]
        marks = torch.cat((keep.new_tensor([last]), keep + done, keep.new_tensor(end)))
        if int(marks.diff().max()) > limit:
            first = int(marks[int((marks.diff() > limit).nonzero()[0, 0])]) + 1
            excluded = int(torch.cat(left_out)[first : first + limit].sum()) if left_out else 0
            tried = f"{limit} {algorithm} mazes of {size[0]} x {size[1]} cells in a row"
            if excluded == limit:
                raise ValueError(f"exclude leaves out all of {tried}")
            if start == "any":
                longest = f"the longest path seen has {int(torch.cat(reach)[first : first + limit].max())} cells"
            elif cells := _longest_from(start, generate, range(first, first + limit), n_cells, seed):
                longest = f"the longest path seen from a {start} has {cells} cells"
            else:
                longest = f"none has a {start}"
            raise ValueError(
                f"no path of at least min_path = {min_path} cells{source} in {tried}; {longest}"
                + (f"; exclude leaves out {excluded} of them that have one" if excluded else "")
            )
        parts.append((mazes[keep], origin[keep], goal[keep]))
        last = int(keep[-1]) + done if len(keep) else last
        found, done = found + len(keep), done + count
    if not parts:
        none = torch.zeros(0, dtype=torch.int64, device=work)
        return MazeTasks(generate(0, 0), none, none, none.view(0, 0), none).to(device)
    kept, starts, goals = zip(*parts, strict=True)
    return _solved(MazeBatch.cat(kept), torch.cat(starts), torch.cat(goals)).to(device)


def _longest_from(kind: str, generate: Callable[[int, int], MazeBatch], which: range, n_cells: int, seed: int) -> int:
    """Cells on the longest path from a start of that kind in the mazes `which`, 0 if they have no such start."""
    longest, step = 0, max(64, (1 << 22) // n_cells)
    for first in range(which.start, which.stop, step):
        mazes = generate(min(step, which.stop - first), first)
        while True:  # those with a longer path alone; each time the one found is as long as paths from its start get
            origin, _, _ = _endpoints(mazes, seed, longest + 1, n_cells, kind)
            which_longer = (origin >= 0).nonzero()[:, 0]
            if not len(which_longer):
                break
            mazes, origin = mazes[which_longer], origin[which_longer]
            longest = int(mazes.distances(origin).max()) + 1
    return longest


def _generate(size, algorithm, density, braid, seed, device, n: int, first: int) -> MazeBatch:
    more = {"algorithm": algorithm, "density": density, "braid": braid, "seed": seed, "device": device}
    return generate_mazes(n, size, start_index=first, **more)


def sample_tasks_as_published(
    n_candidates: int, size: int | tuple[int, int], min_path: int, seed: int, *, device: torch.device | str = "cpu"
) -> MazeTasks:
    """The tasks of the published protocol: start and goal are drawn, and tasks with a long enough path are kept.

    On each of n_candidates dfs mazes, start and goal are drawn uniformly and independently from all cells (they may be
    the same). The tasks whose shortest path has at least min_path cells are kept, in order, so their number varies. Use
    `sample_tasks` for everything except the comparison.

    Args:
        n_candidates: number of mazes, >= 0.
        size, min_path, seed, device: as of `sample_tasks`.

    Raises:
        TypeError, ValueError: a wrong type, or a value out of range.

    Examples:
        >>> tasks = sample_tasks_as_published(3 * 400, 12, min_path=50, seed=42)
    """
    size, min_path = check_size(size), check_int("min_path", min_path, 1)
    n, seed = check_int("n_candidates", n_candidates, 0), check_int("seed", seed, 0)
    mazes = generate_mazes(n, size, seed=seed, device=work_device(device))
    start, goal = below(words(seed, STREAM_CANDIDATE, _index(mazes), 2), mazes.n_cells).unbind(1)
    distance = mazes.distances(goal).gather(1, start[:, None])[:, 0] if n else goal
    keep = distance >= min_path - 1
    return _solved(mazes[keep], start[keep], goal[keep]).to(device)
