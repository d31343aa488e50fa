"""Mazes of the package maze-dataset (https://github.com/understanding-search/maze-dataset), which is not imported.

Its LatticeMaze has a `connection_list`, bool [2, H, W]: whether a cell has a passage down, and right. Its pictures,
`as_pixels()`, are uint8 [2H+1, 2W+1, 3] with a colour for walls, open cells, start, end and path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poh_ext._checks import MAX_CELLS
from poh_ext.io._cells import FREE, GOAL, PATH, START, WALL, as_blocked, cells_of, check_paths, tasks_of
from poh_ext.io._source import FormatError
from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks

__all__ = ["from_lattice", "from_pixels", "to_lattice", "to_pixels"]

_COLORS = {WALL: (0, 0, 0), FREE: (255, 255, 255), START: (0, 255, 0), GOAL: (255, 0, 0), PATH: (0, 0, 255)}


def from_lattice(mazes: Any) -> MazeTasks | MazeBatch:
    """Mazes or tasks of LatticeMazes: a MazeBatch of LatticeMaze, MazeTasks of TargetedLatticeMaze or SolvedMaze.

    Args:
        mazes: one, or an iterable of them (a MazeDataset), all of one size and kind. Anything that has the attributes
            or the keys `connection_list`, bool [2, H, W], and of tasks `start_pos` and `end_pos`, two ints (row,
            column), and `solution`, int [L, 2]. Without a solution a shortest path is found; with one, a start_pos or
            end_pos that is missing is its end.

    Raises:
        TypeError: there is no connection_list, or it is not bool.
        ValueError: a shape is another one, sizes or kinds differ, there is no maze, a passage leads out of the grid,
            one of start_pos and end_pos is missing without a solution, or a solution is no way from one to the other.
        IndexError: a position is no cell.

    Examples:
        >>> tasks = poh_ext.io.from_lattice(MazeDataset.from_config(config))
    """
    one = _has(mazes, "connection_list")
    if not one and (not isinstance(mazes, Iterable) or isinstance(mazes, (str, bytes, Mapping))):
        raise TypeError(f"mazes must have a connection_list, or be an iterable of such, got {type(mazes).__name__}")
    items = [mazes] if one else list(mazes)
    if not items:
        raise ValueError("mazes must have at least one maze, got none")
    lists = [_connections(number, item) for number, item in enumerate(items)]
    for number, each in enumerate(lists):
        if each.shape != lists[0].shape:
            raise ValueError(
                f"mazes[{number}] is {_size(each)}, but mazes[0] is {_size(lists[0])}: one size is accepted"
            )
    down, right = np.stack(lists, 1)
    passages = np.zeros(down.shape, dtype=np.uint8)
    passages[:, 1:] |= down[:, :-1] * np.uint8(1)
    passages |= down * np.uint8(2)
    passages[:, :, 1:] |= right[:, :, :-1] * np.uint8(4)
    passages |= right * np.uint8(8)
    batch = MazeBatch(torch.from_numpy(passages))
    solved = [_has(item, "solution") for item in items]
    ends = {name: [_has(item, name) or solved[n] for n, item in enumerate(items)] for name in ("start_pos", "end_pos")}
    for name, kinds in (*ends.items(), ("solution", solved)):
        if any(kinds) != all(kinds):
            raise ValueError(f"mazes[{kinds.index(False)}] has no {name}, but others have: one kind is accepted")
    missing = [name for name, kinds in ends.items() if not kinds[0]]
    if len(missing) == 2:
        return batch
    if missing:
        raise ValueError(f"mazes[0] has no {missing[0]}; a task has start_pos and end_pos, or a solution")

    def cells(n: int, name: str, dims: int) -> np.ndarray:
        return _cells(f"mazes[{n}].{name}", _get(items[n], name), batch.size, dims)

    ways = [cells(n, "solution", 2) for n in range(len(items))] if solved[0] else []
    start, goal = (
        torch.tensor([int(cells(n, name, 1)[0] if _has(item, name) else ways[n][at]) for n, item in enumerate(items)])
        for name, at in (("start_pos", 0), ("end_pos", -1))
    )
    if not ways:
        return MazeTasks(batch, start, goal)
    path = torch.full((len(ways), max(map(len, ways))), -1)
    for row, way in zip(path, ways, strict=True):
        row[: len(way)] = torch.from_numpy(way)
    return MazeTasks(batch, start, goal, path)


def to_lattice(mazes_or_tasks: MazeBatch | MazeTasks) -> list[dict[str, NDArray[Any]]]:
    """The arguments of a LatticeMaze for each maze, of a SolvedMaze for each task. A blocked cell has no passages.

    Returns:
        For each, connection_list bool [2, H, W]; of tasks start_pos and end_pos int64 [2], and solution int64 [L, 2].

    Raises:
        TypeError: mazes_or_tasks is neither a MazeBatch nor MazeTasks.
        ValueError: a task has several goals, or no path.

    Examples:
        >>> solved = [SolvedMaze(**arguments) for arguments in poh_ext.io.to_lattice(tasks)]
    """
    tasks = mazes_or_tasks if isinstance(mazes_or_tasks, MazeTasks) else None
    mazes = mazes_or_tasks.mazes if isinstance(mazes_or_tasks, MazeTasks) else mazes_or_tasks
    if not isinstance(mazes, MazeBatch):
        raise TypeError(f"a MazeBatch or MazeTasks is accepted, got {type(mazes_or_tasks).__name__}")
    passages = mazes.passages.cpu().numpy()
    connections = np.stack([passages & 2 != 0, passages & 8 != 0], 1)
    if tasks is None:
        return [{"connection_list": each} for each in connections]
    if tasks.goal.dim() == 2 and (more := (tasks.goal[:, 1:] >= 0).any(1)).any():
        raise ValueError(f"task {int(more.nonzero()[0, 0])} has several goals; a SolvedMaze has one end_pos")
    if (none := tasks.length == 0).any():
        raise ValueError(f"task {int(none.nonzero()[0, 0])} has no path; a SolvedMaze has a solution")
    places = np.stack(np.divmod(tasks.path.cpu().numpy(), mazes.width), 2)
    solved = []
    for each, place, length in zip(connections, places, tasks.length.tolist(), strict=True):
        way = place[:length].copy()
        solved.append({"connection_list": each, "start_pos": way[0], "end_pos": way[-1], "solution": way})
    return solved


def to_pixels(mazes_or_tasks: MazeBatch | MazeTasks, *, paths: Tensor | None = None) -> NDArray[np.uint8]:
    """Pictures as `as_pixels()` of maze-dataset draws them, uint8 [n, 2H+1, 2W+1, 3].

    Cell (r, c) is pixel (2r+1, 2c+1). Walls and blocked cells are black, the rest white, the start is green, goals are
    red, the path between them, also from cell to cell, is blue.

    Args:
        paths: int64 [n, L], the walks to draw, padded with -1. None: the paths of the tasks.

    Raises:
        TypeError, ValueError: as of `poh_ext.io.text`.
    """
    any_walk = paths is not None
    if isinstance(mazes_or_tasks, MazeTasks) and paths is not None:
        tasks = mazes_or_tasks
        walks = check_paths(paths, len(tasks), tasks.mazes.n_cells).to(tasks.device)
        mazes_or_tasks = MazeTasks(tasks.mazes, tasks.start, tasks.goal, walks, check=False)
        paths = None
    codes = cells_of(as_blocked(mazes_or_tasks), paths, any_walk=any_walk)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for code, color in _COLORS.items():
        palette[code] = color
    return palette[codes]


def from_pixels(pixels: NDArray[np.uint8]) -> MazeTasks | MazeBatch:
    """The mazes or tasks of pictures that `to_pixels`, or `as_pixels()` of maze-dataset, draws.

    Args:
        pixels: uint8 [2H+1, 2W+1, 3], or [n, 2H+1, 2W+1, 3]. With blue pixels they are the path, else a shortest one is
            found. The pixels between four cells are of no effect.

    Raises:
        TypeError: pixels is not uint8.
        ValueError: another shape, an unknown colour, an open border, a start or goal between cells; or as of `parse`.

    Examples:
        >>> tasks = poh_ext.io.from_pixels(np.stack([maze.as_pixels() for maze in dataset]))
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8:
        raise TypeError(f"pixels must be uint8, got {pixels.dtype}")
    images = pixels[None] if pixels.ndim == 3 else pixels
    shape = images.shape
    if len(shape) != 4 or not shape[0] or shape[3] != 3 or any(side < 3 or side % 2 == 0 for side in shape[1:3]):
        raise ValueError(
            f"pixels must be [2H+1, 2W+1, 3] or [n, 2H+1, 2W+1, 3] with n, H, W >= 1, got {list(pixels.shape)}"
        )
    if shape[1] * shape[2] > MAX_CELLS:
        raise ValueError(f"pixels must have at most {MAX_CELLS} pixels a picture, got {list(pixels.shape)}")
    codes = np.zeros(shape[:3], dtype=np.uint8)
    for code, color in _COLORS.items():
        codes[(images == np.array(color, dtype=np.uint8)).all(3)] = code
    if not codes.all():
        n, row, column = (int(at[0]) for at in (codes == 0).nonzero())
        raise ValueError(
            f"pixels[{n}, {row}, {column}] is {images[n, row, column].tolist()}; accepted: "
            f"{', '.join(str(list(color)) for color in _COLORS.values())}"
        )
    codes[:, ::2, ::2] = WALL
    mazes = MazeBatch.from_raster(torch.from_numpy(codes == WALL))
    ends = (codes == START) | (codes == GOAL)
    if not (ends | (codes == PATH)).any():
        return mazes
    between = ends.copy()
    between[:, 1::2, 1::2] = False
    if between.any():
        n, row, column = (int(at[0]) for at in between.nonzero())
        raise ValueError(f"pixels[{n}, {row}, {column}] is a start or goal, but lies between cells")

    def fail(reason: str, task: int, pixel: int | None) -> FormatError:
        place = "" if pixel is None else f", {pixel // shape[2]}, {pixel % shape[2]}"
        return FormatError(f"pixels[{task}{place}]: {reason}")

    # As a grid of pixels, in which also the path's pixels between cells are cells: those say where it leads.
    grid = tasks_of(MazeBatch.from_free(torch.from_numpy(codes != WALL)), codes, fail)
    start, goal, path = (
        torch.where(at < 0, -1, at // shape[2] // 2 * mazes.width + at % shape[2] // 2)
        for at in (grid.start, grid.goal, grid.path[:, ::2])
    )
    return MazeTasks(mazes, start, goal, path.contiguous())


def _has(item: Any, name: str) -> bool:
    return _get(item, name) is not None


def _get(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)


def _connections(number: int, item: Any) -> np.ndarray:
    if not _has(item, "connection_list"):
        raise TypeError(f"mazes[{number}] must have a connection_list, got {type(item).__name__}")
    each = np.asarray(_get(item, "connection_list"))
    if each.dtype != np.bool_:
        raise TypeError(f"mazes[{number}].connection_list must be bool, got {each.dtype}")
    if each.ndim != 3 or len(each) != 2 or 0 in each.shape:
        raise ValueError(f"mazes[{number}].connection_list must be [2, H, W] with H, W >= 1, got {list(each.shape)}")
    for axis, way, edge in ((0, "down", each[0, -1]), (1, "right", each[1, :, -1])):
        if edge.any():
            at = (
                [axis, each.shape[1] - 1, int(edge.argmax())]
                if axis == 0
                else [1, int(edge.argmax()), each.shape[2] - 1]
            )
            raise ValueError(f"mazes[{number}].connection_list{at} leads {way}, out of the grid")
    return each


def _size(connections: np.ndarray) -> str:
    return f"{connections.shape[1]} x {connections.shape[2]}"


def _cells(name: str, places: Any, size: tuple[int, int], dims: int) -> np.ndarray:
    """int64 [L]: the cells of (row, column), [2] or [L, 2]."""
    array = np.asarray(places)
    if not np.issubdtype(array.dtype, np.integer) or array.ndim != dims or array.shape[-1] != 2 or not len(array):
        wanted = "two ints" if dims == 1 else "ints [L, 2] with L >= 1"
        raise ValueError(f"{name} must be {wanted}, got {array.dtype} {list(array.shape)}")
    array = array.reshape(-1, 2).astype(np.int64)
    if (bad := (array < 0) | (array >= size)).any():
        raise IndexError(f"{name} has {array[bad.any(1)][0].tolist()}, which is no cell of {size[0]} x {size[1]}")
    return array @ np.array([size[1], 1])
