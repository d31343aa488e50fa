"""What the text formats share: marks on cells become tasks, tasks become marks, and paths are found in parts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import overload

import numpy as np
import torch
from torch import Tensor

from poh_ext._checks import check_dtype
from poh_ext._sharing import is_shared, of_each
from poh_ext.io._source import FormatError
from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks, padded

__all__ = [
    "FREE",
    "GOAL",
    "PATH",
    "START",
    "WALL",
    "as_blocked",
    "cells_of",
    "check_blocked_only",
    "check_paths",
    "has_walls",
    "marked",
    "solve",
    "tasks_of",
]

FREE, WALL, START, GOAL, PATH = (ord(character) for character in " #SGo")
_AT_ONCE = 1 << 22  # cells of paths found together: each row has room for all cells of its maze


def solve(mazes: MazeBatch, start: Tensor, goal: Tensor) -> Tensor:
    """MazeBatch.shortest_paths for mazes [n], n >= 1, a part at a time: in memory is little more than the result."""
    step = max(1, _AT_ONCE // mazes.n_cells)
    parts = [
        mazes[at : at + step].shortest_paths(start[at : at + step], goal[at : at + step])
        for at in range(0, len(mazes), step)
    ]
    return padded(parts)


def marked(cells: np.ndarray, character: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [B], how often a character stands in each of cells [B, ...], and [B], where first."""
    hits = cells.reshape(len(cells), -1) == character
    return hits.sum(1), hits.argmax(1)


def tasks_of(mazes: MazeBatch, cells: np.ndarray, fail: Callable[..., FormatError]) -> MazeTasks:
    """Tasks of marks: one start, one or more goals, and the cells of a way between them, or none of these.

    Args:
        cells: uint8 [B, H, W], of START, GOAL and PATH, else anything.
        fail: fail(reason, task, cell) is the error at a cell (or None, at none in particular) of a task.
    """
    n, width = len(cells), cells.shape[-1]
    flat = cells.reshape(n, -1)
    starts, start = marked(cells, START)
    goals, goal = marked(cells, GOAL)
    for task in (starts != 1).nonzero()[0][:1].tolist():
        if not starts[task]:
            raise fail("there is no start; one 'S' is accepted", task, None)
        raise fail("there is a second start; one 'S' is accepted", task, int((flat[task] == START).nonzero()[0][1]))
    for task in (goals == 0).nonzero()[0][:1].tolist():
        raise fail("there is no goal; a 'G' is needed", task, None)
    if goals.max(initial=1) > 1:
        goal = np.full((n, int(goals.max())), -1)
        task, cell = (flat == GOAL).nonzero()
        goal[task, np.arange(len(task)) - np.repeat(goals.cumsum() - goals, goals)] = cell
    origin, target = torch.from_numpy(start), torch.from_numpy(goal)
    steps = marked(cells, PATH)[0]
    ways = mazes
    if steps.any():  # on such mazes only steps between marks are left: their shortest path has to visit all marks
        on = torch.from_numpy((cells == START) | (cells == GOAL) | (cells == PATH))
        on |= torch.from_numpy(steps == 0)[:, None, None]
        ways = MazeBatch(mazes.passages & MazeBatch.from_free(on).passages, check=False)
    path = solve(ways, origin, target)
    length = (path >= 0).sum(1).numpy()
    wrong = np.where(steps > 0, length != steps + 2, length == 0)
    for task in wrong.nonzero()[0][:1].tolist():
        row, column = divmod(int(start[task]), width)
        if steps[task]:
            reason = f"the {steps[task]} marks 'o' are not one way from the start to a goal, without branches or loops"
        else:
            reason = "no way leads from the start to a goal"
        raise fail(reason, task, row * width + column)
    return MazeTasks(mazes, origin, target, path, check=False)


def has_walls(mazes: MazeBatch) -> bool:
    """Whether there is a wall between two free cells side by side, which a grid of free and blocked cells has not."""
    one = mazes[:1] if is_shared(mazes.passages) else mazes
    return not torch.equal(MazeBatch.from_free(one.free()).passages, one.passages)


def check_blocked_only(path: str | os.PathLike[str], mazes: MazeBatch, name: str) -> None:
    """Refuse walls between free cells, which the format has not."""
    if has_walls(mazes):
        raise FormatError(
            f"{path}: the mazes have walls between free cells; the format {name} has free and blocked cells only. "
            "Accepted: another format (in Python also what poh_ext.io.as_blocked makes of them)"
        )


def cells_of(
    what: MazeBatch | MazeTasks, paths: Tensor | None, place: str = "", *, any_walk: bool = False
) -> np.ndarray:
    """uint8 [n, H, W] of FREE, WALL, START, GOAL and PATH.

    Args:
        paths: int64 [n, L] in place of the tasks' own.
        place: with which an error begins.
        any_walk: the tasks' paths need not be read back as they are; those of `paths` need not either way.
    """
    tasks = what if isinstance(what, MazeTasks) else None
    mazes = what.mazes if isinstance(what, MazeTasks) else what
    if not isinstance(mazes, MazeBatch):
        raise TypeError(f"a MazeBatch or MazeTasks can be written, got {type(what).__name__}")
    n, size = len(mazes), mazes.n_cells
    cells = torch.full((n, size), FREE, dtype=torch.uint8)
    if mazes.has_blocked:
        cells.masked_fill_(~mazes.free().flatten(1).cpu(), WALL)
    if tasks is None:
        if paths is not None:
            raise TypeError("paths is for MazeTasks, not for a MazeBatch, which has no starts and goals")
    else:
        start, goal = tasks.start.cpu(), tasks.goal.cpu()
        goal = goal if goal.dim() == 2 else goal[:, None]
        if (same := (goal == start[:, None]).any(1)).any():
            task = int(same.nonzero()[0, 0])
            raise FormatError(
                f"{place}task {task} starts on a goal, cell {int(start[task])}: one character cannot be 'S' and 'G'"
            )
        _mark(cells, tasks.path.cpu() if paths is None else check_paths(paths, n, size), PATH)
        _mark(cells, goal, GOAL)
        _mark(cells, start[:, None], START)
    marks = cells.reshape(n, *mazes.size).numpy()
    if tasks is not None and paths is None and n and not any_walk:
        _check_readable(tasks, marks, place)
    return marks


def _check_readable(tasks: MazeTasks, marks: np.ndarray, place: str) -> None:
    """Refuse paths that the marks do not tell: detours beside themselves, cells walked twice, goals passed by."""

    def fail(reason: str, task: int, _: int | None) -> FormatError:
        return FormatError(f"{place}task {task}: {reason}")

    back = tasks_of(tasks.mazes.to("cpu"), marks, fail).path
    back, path = padded([back, tasks.path.cpu()]).chunk(2)
    if (other := (back != path).any(1)).any():
        raise fail(
            "its path walks a cell twice or passes a goal, which marks do not tell", int(other.nonzero()[0, 0]), None
        )


def check_paths(paths: Tensor, n: int, n_cells: int) -> Tensor:
    """int64 [n, L] of cells and -1, on the CPU."""
    check_dtype("paths", paths, torch.int64)
    if paths.dim() != 2 or len(paths) != n:
        raise ValueError(f"paths must be [{n}, L], a row for each task, got {list(paths.shape)}")
    if (bad := (paths < -1) | (paths >= n_cells)).any():
        task, place = bad.nonzero()[0].tolist()
        raise ValueError(f"paths[{task}, {place}] = {int(paths[task, place])} is neither a cell of {n_cells} nor -1")
    return paths.cpu()


def _mark(cells: Tensor, at: Tensor, character: int) -> None:
    task, place = (at >= 0).nonzero(as_tuple=True)
    cells[task, at[task, place]] = character


@overload
def as_blocked(what: MazeBatch) -> MazeBatch: ...
@overload
def as_blocked(what: MazeTasks) -> MazeTasks: ...
@overload
def as_blocked(what: MazeBatch | MazeTasks) -> MazeBatch | MazeTasks: ...
def as_blocked(what: MazeBatch | MazeTasks) -> MazeBatch | MazeTasks:
    """Mazes with walls between cells as grids of free and blocked cells, of (2H + 1) x (2W + 1).

    Cell (r, c) becomes cell (2r + 1, 2c + 1); the walls and the passages around it become cells, too. A path of k cells
    becomes one of 2k - 1. So formats and planners for such grids get any maze.

    Raises:
        TypeError: what is neither a MazeBatch nor MazeTasks.

    Examples:
        >>> tasks = sample_tasks(100, 12)
        >>> poh_ext.io.write("tasks.csv", poh_ext.io.as_blocked(tasks))
    """
    mazes = what.mazes if isinstance(what, MazeTasks) else what
    if not isinstance(mazes, MazeBatch):
        raise TypeError(f"a MazeBatch or MazeTasks is accepted, got {type(what).__name__}")
    blocked = MazeBatch.from_free(of_each(mazes.passages, lambda p: _open(mazes, p)))
    if not isinstance(what, MazeTasks):
        return blocked
    width = mazes.width

    def place(cells: Tensor) -> Tensor:
        return torch.where(cells < 0, -1, (2 * (cells // width) + 1) * (2 * width + 1) + 2 * (cells % width) + 1)

    path = place(what.path)
    longer = path.new_full((len(path), max(2 * path.shape[1] - 1, 0)), -1)
    longer[:, ::2] = path
    longer[:, 1::2] = torch.where(path[:, 1:] < 0, -1, (path[:, 1:] + path[:, :-1]) // 2)
    return MazeTasks(blocked, place(what.start), place(what.goal), longer, check=False)


def _open(mazes: MazeBatch, passages: Tensor) -> Tensor:
    free = mazes.free()[: len(passages)]
    return MazeBatch(passages, free=free, check=False).raster() == 0
