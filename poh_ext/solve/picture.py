"""A maze drawn with Pillow: its walls, start and goal, a shortest path, and the path that a planner walked."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from poh_ext._files import write_atomically
from poh_ext._optional import require
from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Layout", "draw_ends", "draw_legend", "draw_path", "draw_walls", "maze_picture", "save_png"]

# Okabe and Ito's colours, which also differ under colour blindness; start and goal differ in shape as well.
WALL, PAPER, TRUTH, WALKED, START, GOAL = (
    (0x2b, 0x2f, 0x36), (255, 255, 255), (0x7c, 0xc4, 0xec), (0xd5, 0x5e, 0x00), (0x00, 0x9e, 0x73), (0xb8, 0x3b, 0x8a)
)  # fmt: skip
TEXT = (0x2b, 0x2f, 0x36)
LARGEST_PITCH = 40  # pixels from cell to cell
FINER = 4  # outlines are drawn so many times larger, then averaged


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
        self.pitch = min(LARGEST_PITCH, max(4, pixels // max(mazes.size)))
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
        return tuple(start + self.wall + at * self.pitch + self.corridor / 2
                     for start, at in zip(self.origin, (column, row), strict=True))


def draw_walls(layout: Layout, mazes: MazeBatch, levels: np.ndarray, colours: np.ndarray) -> Image:
    """A new picture of the first of `mazes`. Cell i has the colour colours[levels[i]] (uint8 [..., 3]).

    A passage has the colour of the lower level of its two cells.
    """
    open_ = mazes.raster()[0].numpy() == 0
    cells = levels.reshape(mazes.size)
    grid = np.zeros(open_.shape, dtype=levels.dtype)
    grid[1::2, 1::2] = cells
    grid[2:-1:2, 1::2] = np.minimum(cells[1:], cells[:-1])
    grid[1::2, 2:-1:2] = np.minimum(cells[:, 1:], cells[:, :-1])
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
    width = max(1, round(layout.corridor * share))
    width -= (layout.corridor - width) % 2 if width > 1 else 0  # as even or odd as the corridor: edges at whole pixels
    half, radius = width / 2, width * FINER // 2
    mask = require("PIL.Image").new("L", tuple(FINER * side for side in layout.size))
    pen = require("PIL.ImageDraw").Draw(mask)
    points = [layout.center(cell) for cell in cells]
    for (x0, y0), (x1, y1) in pairwise(points):
        box = (min(x0, x1) - half, min(y0, y1) - half, max(x0, x1) + half, max(y0, y1) + half)
        left, top, right, bottom = (round(FINER * edge) for edge in box)
        pen.rounded_rectangle((left, top, right - 1, bottom - 1), radius, fill=255)
    image.paste(colour, (0, 0), mask.reduce(FINER))


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


def draw_ends(image: Image, layout: Layout, task: MazeTasks) -> None:
    radius = max(0.42 * layout.corridor, 5.0)
    for cell, colour in ((task.start, START), (task.goal, GOAL)):
        draw_marker(image, layout.center(int(cell[0])), radius, colour)


def draw_legend(image: Image, top: int, items: list[tuple[str, tuple[int, int, int], float]], size: int = 14) -> int:
    """Draw a line of (text, colour, thickness of its sample; 0: a marker), centred at height `top`.

    Returns the width of the line.
    """
    font = require("PIL.ImageFont").load_default(size)
    pen, middle = require("PIL.ImageDraw").Draw(image), top + size // 2
    samples = [2 * size if thickness else size for _, _, thickness in items]
    widths = [sample + size // 2 + round(font.getlength(text))
              for sample, (text, *_) in zip(samples, items, strict=True)]
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


def maze_picture(task: MazeTasks, walked: Tensor, pixels: int = 960) -> Image:
    """The first maze of `task`, a shortest path, and the cells `walked` (int64 [S], padded with -1)."""
    layout = Layout(task.mazes, pixels, below=22, least_width=520)
    image = draw_walls(layout, task.mazes, np.zeros(task.mazes.n_cells, dtype=np.uint8), np.uint8([PAPER]))
    for path, share, colour in ((task.path[0], 0.9, TRUTH), (walked, 0.4, WALKED)):
        draw_path(image, layout, path[path >= 0].tolist(), share, colour)
    draw_ends(image, layout, task)
    draw_legend(image, layout.size[1] - 26, [("start", START, 0), ("goal", GOAL, 0), ("a shortest path", TRUTH, 10),
                                             ("the planner's path", WALKED, 4)])
    return image


def save_png(path: str | Path, image: Image) -> Path:
    """Write the picture atomically."""
    return write_atomically(path, lambda file: image.save(file, format="PNG", optimize=True))
