"""A sheet of mazes: walls, start, goal, the true shortest path, and where each model's path first leaves it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from poh_ext._optional import require
from poh_ext.report.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MazeSample", "first_stray", "maze_sheet"]

UP, DOWN, LEFT, RIGHT = 1, 2, 4, 8
OFTEN = 4
MODELS_ACROSS = 4  # more would make the sheet wider than a page
ON_PATH, STRAYED, TRUTH = "#000000", "#d55e00", "#b8cfe0"


@dataclass
class MazeSample:
    """Some test mazes with the paths that were walked in them. Arrays or tensors; paths are padded with -1.

    Attributes:
        passages: uint8 [n, H, W]; bit 0 up, 1 down, 2 left, 3 right. A bit is set if the move is possible.
        start, goal: int [n], cell indices row * W + column.
        true_paths: int [n, L], cells of a shortest path from start to goal.
        paths: name shown to the reader -> int [n, S], cells in the order in which the model visited them, from the
            start.
    """

    passages: np.ndarray
    start: np.ndarray
    goal: np.ndarray
    true_paths: np.ndarray
    paths: dict[str, np.ndarray]

    def __post_init__(self):
        self.passages = _array(self.passages)
        if self.passages.ndim != 3:
            raise ValueError(f"passages must be [n, H, W], not {list(self.passages.shape)}")
        for name in ("start", "goal", "true_paths"):
            setattr(self, name, self._cells(name, getattr(self, name), 2 if name == "true_paths" else 1))
        self.paths = {name: self._cells(f"paths[{name!r}]", path, 2) for name, path in self.paths.items()}

    def _cells(self, name, cells, ndim):
        n, height, width = self.passages.shape
        cells = _array(cells)
        if cells.ndim != ndim or cells.shape[0] != n:
            shape = "[n]" if ndim == 1 else "[n, L]"
            raise ValueError(f"{name} must be {shape} with n={n} as in passages, not {list(cells.shape)}")
        if cells.size and cells.dtype.kind not in "iu":
            raise TypeError(f"{name} must hold cell indices, not {cells.dtype}")
        if cells.size and not -1 <= cells.min() <= cells.max() < height * width:
            raise ValueError(f"{name} has cells outside 0..{height * width - 1} (or -1 for padding)")
        return cells


def _array(value) -> np.ndarray:
    return np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)


def first_stray(passages: np.ndarray, goal: int, path: np.ndarray) -> int | None:
    """Index in `path` of the first step that does not come closer to the goal; None if there is none.

    Steps are compared by distance instead of with one stored path, because a maze with loops has several shortest
    paths.
    """
    distance = _distances(passages, goal)
    path = path[path >= 0]
    for i in range(1, len(path)):
        if distance[path[i]] != distance[path[i - 1]] - 1:
            return i
    return None


def _distances(passages: np.ndarray, goal: int) -> np.ndarray:
    """Steps to the goal from every cell; -1 if it cannot be reached. Passages are two-way."""
    width = passages.shape[1]
    flat = passages.ravel()
    distance = np.full(flat.size, -1)
    distance[goal] = 0
    queue = deque([int(goal)])
    while queue:
        cell = queue.popleft()
        for bit, step in ((UP, -width), (DOWN, width), (LEFT, -1), (RIGHT, 1)):
            if flat[cell] & bit and distance[cell + step] < 0:
                distance[cell + step] = distance[cell] + 1
                queue.append(cell + step)
    return distance


def maze_sheet(sample: MazeSample, max_mazes: int = 4) -> Figure | None:
    """One row per maze and one column per model, or the other way round if there are many models.

    None if there is no maze or no model.

    Example:
        >>> mazes = tasks.mazes  # of sample_tasks; rollout is greedy_rollout's answer on them
        >>> sample = MazeSample(mazes.passages, tasks.start, tasks.goal, tasks.path, {"PoH": rollout.path})
        >>> maze_sheet(sample).savefig("mazes.png")
    """
    n = min(max_mazes, len(sample.passages))
    if not n or not sample.paths:
        return None
    names = list(sample.paths)
    across = len(names) <= MODELS_ACROSS
    rows, columns = (n, len(names)) if across else (len(names), n)
    width = max(5.6, 3.1 * columns)
    figure = new_figure(width, 3.35 * rows + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False)
    for (row, column), axis in np.ndenumerate(axes):
        i, name = (row, names[column]) if across else (column, names[row])
        _draw_maze(axis, sample, i, sample.paths[name][i])
        head, side = (name, f"test maze {i + 1}") if across else (f"test maze {i + 1}", name)
        if row == 0:
            axis.set_title(head, fontsize=12, fontweight="bold")
        if column == 0:
            axis.set_ylabel(side, fontsize=10)
    _sheet_legend(figure, columns=3 if width > 7.5 else 2)
    return figure


def _draw_maze(axis, sample: MazeSample, i: int, path: np.ndarray) -> None:
    passages, goal = sample.passages[i], int(sample.goal[i])
    height, width = passages.shape
    walls = require("matplotlib.collections").LineCollection(
        _walls(passages), colors="black", linewidths=max(0.6, 1.6 - width / 40), capstyle="projecting", zorder=4
    )
    axis.add_collection(walls)
    unit = min(9.0, 90.0 / max(height, width))  # points; about half a cell
    row, column = _points(sample.true_paths[i], width)
    axis.plot(column, row, color=TRUTH, linewidth=unit, solid_capstyle="round", zorder=1)
    path = path[path >= 0]
    stray = first_stray(passages, goal, path)
    row, column = _points(path, width)
    straight = len(path) if stray is None else stray
    axis.plot(column[:straight], row[:straight], color=ON_PATH, linewidth=1.5, zorder=3)
    if stray is not None:
        often = require("matplotlib.collections").LineCollection(
            _walked_often(path, width), colors=STRAYED, alpha=0.3, linewidths=0.7 * unit, capstyle="round", zorder=1.5
        )
        axis.add_collection(often)
        x, y = _without_repeats(path[stray - 1 :], width)
        axis.plot(x, y, color=STRAYED, linewidth=1.3, linestyle=(0, (2, 1)), zorder=2)
        axis.plot(
            column[stray], row[stray], marker="X", color=STRAYED, markersize=unit, markeredgecolor="black",
            markeredgewidth=0.7, zorder=5,
        )  # fmt: skip
    if len(path) and path[-1] != goal:
        axis.plot(column[-1], row[-1], marker="s", color="black", markersize=0.75 * unit, zorder=7)
    for cell, marker, size in ((int(sample.start[i]), "o", 0.85), (goal, "*", 1.4)):
        axis.plot(
            cell % width, cell // width, marker=marker, color="white", markeredgecolor="black",
            markersize=size * unit, zorder=6,
        )  # fmt: skip
    axis.set(xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6), aspect="equal", xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    shortest = int((sample.true_paths[i] >= 0).sum()) - 1
    arrived = bool(len(path)) and path[-1] == goal
    moves, cells = len(path) - 1, len(set(path.tolist()))
    text = f"{'reached' if arrived else 'not reached'} in {moves} move{'s' * (moves != 1)}, shortest {shortest}"
    text += "" if stray is None else f"\nstrays at move {stray}, sees {cells} cells"
    axis.set_xlabel(text, fontsize=9)


def _walls(passages: np.ndarray) -> list:
    """Line segments ((x, y), (x, y)) on every side of a cell that cannot be crossed."""
    height, width = passages.shape
    segments = set()
    for row in range(height):
        for column in range(width):
            left, right, top, bottom = column - 0.5, column + 0.5, row - 0.5, row + 0.5
            bits = int(passages[row, column])
            for bit, side in (
                (UP, ((left, top), (right, top))),
                (DOWN, ((left, bottom), (right, bottom))),
                (LEFT, ((left, top), (left, bottom))),
                (RIGHT, ((right, top), (right, bottom))),
            ):
                if not bits & bit:
                    segments.add(side)
    return sorted(segments)


def _points(path: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    cells = path[path >= 0]
    return cells // width, cells % width


def _without_repeats(path: np.ndarray, width: int) -> tuple[list[float], list[float]]:
    """x and y of the walk, broken where it crosses an edge again: two dashed lines would look like a solid one."""
    x, y, seen, last = [], [], set(), None
    for a, b in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
        if (edge := (min(a, b), max(a, b))) not in seen:
            seen.add(edge)
            for cell in (b,) if a == last else (None, a, b):
                x.append(np.nan if cell is None else cell % width)
                y.append(np.nan if cell is None else cell // width)
            last = b
    return x, y


def _walked_often(path: np.ndarray, width: int) -> list:
    """Segments between cells that were crossed at least OFTEN times, where a walk goes back and forth."""
    edges = np.sort(np.stack([path[:-1], path[1:]], axis=1), axis=1)
    found, counts = np.unique(edges, axis=0, return_counts=True)
    return [[(cell % width, cell // width) for cell in edge] for edge in found[counts >= OFTEN]]


def _sheet_legend(figure, columns: int) -> None:
    line = require("matplotlib.lines").Line2D
    edge = {"markeredgecolor": "black", "linestyle": "none"}
    handles = {
        "a shortest path": line([], [], color=TRUTH, linewidth=6),
        "model, while on a shortest path": line([], [], color=ON_PATH, linewidth=1.5),
        "model, after it strayed": line([], [], color=STRAYED, linewidth=1.3, linestyle=(0, (2, 1))),
        f"walked {OFTEN} times or more": line([], [], color=STRAYED, alpha=0.3, linewidth=6),
        "first stray": line([], [], marker="X", color=STRAYED, markersize=8, **edge),
        "start": line([], [], marker="o", color="white", markersize=8, **edge),
        "gave up": line([], [], marker="s", color="black", markersize=6, linestyle="none"),
        "goal": line([], [], marker="*", color="white", markersize=11, **edge),
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns, frameon=False)
