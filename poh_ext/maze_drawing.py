"""Mazes drawn: walls, start and goal, a shortest path, and the path that a planner walked.

There are two forms, because their readers need other files:

- `maze_sheet`, a Matplotlib figure of several mazes and planners, with captions: for the report (mazes.png) and for
  TensorBoard (training/board.py), which takes figures.
- `maze_picture`, a Pillow image of one maze of any size, with all edges at whole pixels: for `poh-ext solve --png`.
  solve/animation.py makes the frames of `--gif` of its parts, whose few colours are the palette of the file.

maze_svg.py draws the same as lines that stay sharp at any size. A blocked cell is filled, and where four cells are open
to one another nothing stands between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from poh_ext._figures import legend, new_figure
from poh_ext._optional import require
from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = [
    "Layout",
    "MazeSample",
    "draw_ends",
    "draw_legend",
    "draw_path",
    "draw_walls",
    "first_stray",
    "goals_of",
    "maze_picture",
    "maze_sheet",
    "open_raster",
    "walls_between",
]

# Of the figure: colours, crossings of an edge that are shown, planners side by side (more would be wider than a page).
ON_PATH, STRAYED, TRUE_PATH, BLOCKED = "#000000", "#d55e00", "#b8cfe0", "#a3a6ab"
OFTEN = 4
MODELS_ACROSS = 4
# Of the image. Okabe and Ito's colours differ under colour blindness, too; start and goal differ in shape as well.
WALL, PAPER, TRUTH, WALKED, START, GOAL = (
    (0x2b, 0x2f, 0x36), (255, 255, 255), (0x7c, 0xc4, 0xec), (0xd5, 0x5e, 0x00), (0x00, 0x9e, 0x73), (0xb8, 0x3b, 0x8a)
)  # fmt: skip
TEXT = (0x2B, 0x2F, 0x36)
LARGEST_PITCH = 40  # pixels from cell to cell
LARGE = 1024  # cells of a side, beyond which they are drawn as 2 pixels
FINER = 4  # outlines are drawn so many times larger, then averaged


@dataclass
class MazeSample:
    """Some test mazes with the paths that were walked in them. Arrays or tensors; paths are padded with -1.

    Attributes:
        passages: uint8 [n, H, W]; bit 0 up, 1 down, 2 left, 3 right. A bit is set if the move is possible.
        start: int [n], cell indices row * W + column.
        goal: int [n]; or [n, G], several goals of which any will do, padded with -1.
        true_paths: int [n, L], cells of a shortest path from start to goal; none where no way leads there.
        paths: name shown to the reader -> int [n, S], cells in the order in which the model visited them, from the
            start.
        free: bool [n, H, W], False where a cell is blocked. None: no cell is.
    """

    passages: np.ndarray
    start: np.ndarray
    goal: np.ndarray
    true_paths: np.ndarray
    paths: dict[str, np.ndarray]
    free: np.ndarray | None = None

    def __post_init__(self):
        self.passages = _array(self.passages)
        if self.passages.ndim != 3:
            raise ValueError(f"passages must be [n, H, W], not {list(self.passages.shape)}")
        several = np.ndim(_array(self.goal)) == 2
        for name, ndim in (("start", 1), ("goal", 2 if several else 1), ("true_paths", 2)):
            setattr(self, name, self._cells(name, getattr(self, name), ndim))
        if self.free is not None:
            self.free = _array(self.free)
            if self.free.shape != self.passages.shape or self.free.dtype != bool:
                given = f"{self.free.dtype} {list(self.free.shape)}"
                raise ValueError(f"free must be bool {list(self.passages.shape)}, as passages is, not {given}")
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


def first_stray(passages: np.ndarray, goal: int | np.ndarray, path: np.ndarray) -> int | None:
    """Index in `path` of the first step that does not come closer to the nearest goal; None if there is none.

    Steps are compared by distance instead of with one stored path, because a maze with loops has several shortest
    paths.
    """
    goals = torch.tensor(np.atleast_1d(goal)[None], dtype=torch.int64, device="cpu")
    distance = _maze(passages).distances(goals)[0].numpy()
    strays = np.flatnonzero(np.diff(distance[path[path >= 0]]) != -1)
    return int(strays[0]) + 1 if len(strays) else None


def _maze(passages: np.ndarray, free: np.ndarray | None = None) -> MazeBatch:
    blocked = None if free is None else torch.tensor(free[None], device="cpu")
    return MazeBatch(torch.tensor(passages[None], device="cpu"), free=blocked)


def open_raster(mazes: MazeBatch, which: int = 0) -> np.ndarray:
    """bool [2H+1, 2W+1]: True where maze `which` is open, as `MazeBatch.raster` lays it out.

    Unlike there, the pixel between four cells is open if all four are open to one another: a lone post is no wall.
    """
    is_open = mazes[which].raster()[0].cpu().numpy() == 0
    sides = is_open[1:-2:2, 2:-1:2], is_open[3::2, 2:-1:2], is_open[2:-1:2, 1:-2:2], is_open[2:-1:2, 3::2]
    is_open[2:-1:2, 2:-1:2] = np.logical_and.reduce(sides)
    return is_open


def walls_between(mazes: MazeBatch) -> tuple[np.ndarray, np.ndarray]:
    """Walls of the first maze, but for those within blocked areas: bool [H+1, W] above the cells and below the last
    row, and bool [H, W+1] left of the cells and right of the last column."""
    wall, free = ~open_raster(mazes), mazes[0].free()[0].cpu().numpy()
    level, upright = wall[::2, 1::2].copy(), wall[1::2, ::2].copy()
    level[1:-1] &= free[1:] | free[:-1]
    upright[:, 1:-1] &= free[:, 1:] | free[:, :-1]
    return level, upright


def _wall_lines(mazes: MazeBatch) -> list:
    """Line segments ((x, y), (x, y)) on every side of a cell that cannot be crossed."""
    level, upright = walls_between(mazes)
    across = (((x - 0.5, y - 0.5), (x + 0.5, y - 0.5)) for y, x in np.argwhere(level))
    down = (((x - 0.5, y - 0.5), (x - 0.5, y + 0.5)) for y, x in np.argwhere(upright))
    return sorted([*across, *down])


def maze_sheet(sample: MazeSample, max_mazes: int = 4) -> Figure | None:
    """One row per maze and one column per model, or the other way round if there are many models.

    None if there is no maze or no model.

    Examples:
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
    passages, free = sample.passages[i], None if sample.free is None else sample.free[i]
    goals = [goal for goal in np.atleast_1d(sample.goal[i]).tolist() if goal >= 0]
    height, width = passages.shape
    collections = require("matplotlib.collections")
    lines = collections.LineCollection
    axis.add_collection(lines(_wall_lines(_maze(passages, free)), colors="black", linewidths=max(0.6, 1.6 - width / 40),
                              capstyle="projecting", zorder=4))  # fmt: skip
    if free is not None:
        corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
        blocked = np.argwhere(~free)[:, ::-1]
        axis.add_collection(collections.PolyCollection(blocked[:, None] + corners, facecolors=BLOCKED, zorder=0.5))
    unit = min(9.0, 90.0 / max(height, width))  # points; about half a cell
    true, path = (cells[cells >= 0] for cells in (sample.true_paths[i], path))
    axis.plot(true % width, true // width, color=TRUE_PATH, linewidth=unit, solid_capstyle="round", zorder=1)
    stray = first_stray(passages, goals, path)
    row, column = path // width, path % width
    straight = len(path) if stray is None else stray
    axis.plot(column[:straight], row[:straight], color=ON_PATH, linewidth=1.5, zorder=3)
    if stray is not None:
        axis.add_collection(lines(_walked_often(path, width), colors=STRAYED, alpha=0.3, linewidths=0.7 * unit,
                                  capstyle="round", zorder=1.5))  # fmt: skip
        x, y = _without_repeats(path[stray - 1 :], width)
        axis.plot(x, y, color=STRAYED, linewidth=1.3, linestyle=(0, (2, 1)), zorder=2)
        axis.plot(column[stray], row[stray], marker="X", color=STRAYED, markersize=unit, markeredgecolor="black",
                  markeredgewidth=0.7, zorder=5)  # fmt: skip
    if len(path) and path[-1] not in goals:
        axis.plot(column[-1], row[-1], marker="s", color="black", markersize=0.75 * unit, zorder=7)
    for cell, marker, size in ((int(sample.start[i]), "o", 0.85), *((goal, "*", 1.4) for goal in goals)):
        axis.plot(cell % width, cell // width, marker=marker, color="white", markeredgecolor="black",
                  markersize=size * unit, zorder=6)  # fmt: skip
    axis.set(xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6), aspect="equal", xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)
    arrived = bool(len(path)) and path[-1] in goals
    moves, cells = len(path) - 1, len(set(path.tolist()))
    text = f"{'reached' if arrived else 'not reached'} in {moves} move{'s' * (moves != 1)}" if len(path) else "no walk"
    text += f", shortest {len(true) - 1}" if len(true) else ", no way"
    text += "" if stray is None else f"\nstrays at move {stray}, sees {cells} cells"
    axis.set_xlabel(text, fontsize=9)


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
        "a shortest path": line([], [], color=TRUE_PATH, linewidth=6),
        "model, while on a shortest path": line([], [], color=ON_PATH, linewidth=1.5),
        "model, after it strayed": line([], [], color=STRAYED, linewidth=1.3, linestyle=(0, (2, 1))),
        f"walked {OFTEN} times or more": line([], [], color=STRAYED, alpha=0.3, linewidth=6),
        "first stray": line([], [], marker="X", color=STRAYED, markersize=8, **edge),
        "start": line([], [], marker="o", color="white", markersize=8, **edge),
        "gave up": line([], [], marker="s", color="black", markersize=6, linestyle="none"),
        "goal": line([], [], marker="*", color="white", markersize=11, **edge),
    }
    legend(figure, handles, columns)


class Layout:
    """The layout of a picture about `pixels` wide: thin walls between cells, all edges at whole pixels.

    Attributes:
        pitch: pixels from cell to cell.
        wall: thickness of a wall in pixels.
        corridor: pixels between two walls.
        size: (width, height) of the picture: the maze, a margin around it, and `above` and `below` more for text.
    """

    def __init__(self, mazes: MazeBatch, pixels: int, *, above: int = 0, below: int = 0, least_width: int = 0):
        self.height, self.width = mazes.size
        self.pitch = min(LARGEST_PITCH, max(4 if max(mazes.size) <= LARGE else 2, pixels // max(mazes.size)))
        self.wall = max(1, round(self.pitch / 7))
        self.corridor = self.pitch - self.wall
        self.margin = max(8, self.pitch // 2)  # a marker in a corner is wider than its cell in a large maze
        across, down = (self.pitch * cells + self.wall for cells in (self.width, self.height))
        width = max(across + 2 * self.margin, least_width)
        self.origin = ((width - across) // 2, self.margin + above)
        self.size = (width, down + 2 * self.margin + above + below)

    def center(self, cell: int) -> tuple[float, float]:
        """The centre of a cell in pixels (x, y)."""
        row, column = divmod(cell, self.width)
        return tuple(
            start + self.wall + at * self.pitch + self.corridor / 2
            for start, at in zip(self.origin, (column, row), strict=True)
        )


def draw_walls(layout: Layout, mazes: MazeBatch, levels: np.ndarray, colours: np.ndarray) -> Image:
    """A new picture of the first of `mazes`. Cell i has the colour colours[levels[i]] (uint8 [..., 3]).

    What lies between open cells has the colour of the lowest of their levels.
    """
    open_ = open_raster(mazes)
    cells = levels.reshape(mazes.size)
    grid = np.zeros(open_.shape, dtype=levels.dtype)
    grid[1::2, 1::2] = cells
    grid[2:-1:2, 1::2] = np.minimum(cells[1:], cells[:-1])
    grid[1::2, 2:-1:2] = np.minimum(cells[:, 1:], cells[:, :-1])
    grid[2:-1:2, 2:-1:2] = np.minimum(grid[1:-2:2, 2:-1:2], grid[3::2, 2:-1:2])
    drawn = np.where(open_[..., None], colours[grid], np.asarray(WALL, dtype=np.uint8))
    for axis, cells_along in enumerate(mazes.size):
        drawn = drawn.repeat([layout.wall, layout.corridor] * cells_along + [layout.wall], axis=axis)
    images = require("PIL.Image")
    image = images.new("RGB", layout.size, PAPER)
    image.paste(images.fromarray(np.ascontiguousarray(drawn)), layout.origin)
    return image


def draw_path(image: Image, layout: Layout, cells: list[int], share: float, colour: tuple[int, int, int]) -> None:
    """Draw a line through the centres of the cells, with round corners; `share` is its width in corridors."""
    if len(cells) < 2:
        return
    width = max(1 if layout.corridor < 5 else 3, round(layout.corridor * share))
    # As even or odd as the corridor, so that edges lie at whole pixels; in a narrow one the wider line.
    width += (layout.corridor - width) % 2 * (1 if layout.corridor < 8 else -1)
    finer = FINER if max(layout.size) <= 2 * LARGE else 1  # the memory of a large picture
    half, radius = width / 2, width * finer // 2
    mask = require("PIL.Image").new("L", tuple(finer * side for side in layout.size))
    pen = require("PIL.ImageDraw").Draw(mask)
    points = [layout.center(cell) for cell in cells]
    for (x0, y0), (x1, y1) in pairwise(points):
        box = (min(x0, x1) - half, min(y0, y1) - half, max(x0, x1) + half, max(y0, y1) + half)
        left, top, right, bottom = (round(finer * edge) for edge in box)
        pen.rounded_rectangle((left, top, right - 1, bottom - 1), radius, fill=255)
    image.paste(colour, (0, 0), mask.reduce(finer))


def draw_marker(image: Image, center: tuple[float, float], radius: float, colour: tuple[int, int, int]) -> None:
    """Draw a disc, or a diamond for the goal, with a white edge."""
    side = 2 * int(radius + 2)
    corner = tuple(round(at) - side // 2 for at in center)
    x, y = (FINER * (at - start) for at, start in zip(center, corner, strict=True))
    for size, fill in ((radius + 1.2, PAPER), (radius, colour)):
        mask = require("PIL.Image").new("L", (FINER * side, FINER * side))
        pen, r = require("PIL.ImageDraw").Draw(mask), FINER * size
        if colour == GOAL:
            r *= 1.15  # looks as large as a disc
            pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=255)
        else:
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        image.paste(fill, corner, mask.reduce(FINER))


def goals_of(task: MazeTasks) -> list[int]:
    """The goals of the first task."""
    return [goal for goal in task.goal[0].reshape(-1).tolist() if goal >= 0]


def draw_ends(image: Image, layout: Layout, task: MazeTasks) -> None:
    radius = max(0.42 * layout.corridor, 5.0)
    for cell, colour in ((int(task.start[0]), START), *((goal, GOAL) for goal in goals_of(task))):
        draw_marker(image, layout.center(cell), radius, colour)


def draw_legend(image: Image, top: int, items: list[tuple[str, tuple[int, int, int], float]], size: int = 14) -> int:
    """Draw a line of (text, colour, thickness of its sample; 0: a marker), centred at height `top`.

    Returns the width of the line.
    """
    font = require("PIL.ImageFont").load_default(size)
    pen, middle = require("PIL.ImageDraw").Draw(image), top + size // 2
    samples = [2 * size if thickness else size for _, _, thickness in items]
    widths = [
        sample + size // 2 + round(font.getlength(text)) for sample, (text, *_) in zip(samples, items, strict=True)
    ]
    total = sum(widths) + 2 * size * (len(items) - 1)
    x = (image.width - total) // 2
    for sample, width, (text, colour, thickness) in zip(samples, widths, items, strict=True):
        if thickness:
            half = thickness / 2
            pen.rectangle((x, round(middle - half), x + sample - 1, round(middle + half) - 1), fill=colour)
        else:
            draw_marker(image, (x + sample / 2, middle), 0.42 * size, colour)
        pen.text((x + sample + size // 2, middle), text, fill=TEXT, font=font, anchor="lm")
        x += width + 2 * size
    return total


def maze_picture(
    maze: MazeTasks | MazeBatch, walked: Tensor | None = None, *, shortest: bool = True, pixels: int = 960
) -> Image:
    """The first maze, of a task with a shortest path, both ends, and the cells `walked` (int64 [S], padded with -1).

    Args:
        maze: tasks, or mazes alone, of which nothing but the walls is drawn.
        walked: a planner's path. None: there is none.
        shortest: draw the task's path.
        pixels: the longer side of the maze is about as long; more for a large maze, so that its paths are seen.

    Examples:
        >>> maze_picture(sample_tasks(1, 30, algorithm="obstacles", min_path=60)).save("maze.png")
    """
    mazes, task = (maze.mazes, maze) if isinstance(maze, MazeTasks) else (maze, None)
    legend, pixels = _legend_of(task, walked, shortest), max(pixels, min(6 * max(mazes.size), 3 * pixels // 2))
    layout = Layout(mazes, pixels, below=22 if legend else 0, least_width=520 if legend else 0)
    image = draw_walls(layout, mazes, np.zeros(mazes.n_cells, dtype=np.uint8), np.uint8([PAPER]))
    if task is None:
        return image
    for path, share, colour in ((task.path[0] if shortest else None, 0.9, TRUTH), (walked, 0.4, WALKED)):
        if path is not None:
            draw_path(image, layout, path[path >= 0].tolist(), share, colour)
    draw_ends(image, layout, task)
    draw_legend(image, layout.size[1] - 26, legend)
    return image


def _legend_of(
    task: MazeTasks | None, walked: Tensor | None, shortest: bool
) -> list[tuple[str, tuple[int, int, int], float]]:
    if task is None:
        return []
    shown = [("start", START, 0), ("goal", GOAL, 0)]
    shown += [("a shortest path", TRUTH, 10)] * (shortest and int(task.length[0]) > 1)
    return shown if walked is None else [*shown, ("the planner's path", WALKED, 4)]
