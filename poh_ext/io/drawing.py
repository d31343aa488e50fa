"""Drawings in text: a character per cell, or walls between cells as lines.

S.#G        +---+---+        o---o---o
o.#o        | S   G |        |     G |
oooo        +---+---+        o   o---o
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from poh_ext._files import write_atomically
from poh_ext.io._cells import FREE, GOAL, PATH, START, WALL, cells_of, has_walls, tasks_of
from poh_ext.io._source import FormatError, Source, read_source
from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks

__all__ = ["draw", "draw_cells", "draw_walls", "parse", "read_drawings", "read_micromouse", "text", "write_micromouse"]

CELLS = "# .SGo"
_DRAWN = re.compile(r"\+|o-")  # the first line of a drawing with walls between cells
_PLACES = " ", "- ", "| ", " SGo#", "-", "|", "o+"  # in a drawing with walls: inside a cell, walls, ..., posts
_FITS = np.array([[chr(code) in accepted for code in range(256)] for accepted in _PLACES])
_RAGGED = ": rows have one length; where trailing spaces get lost, use '.' for free cells"


def parse(text: str) -> MazeTasks | MazeBatch:
    """The mazes drawn in a string: MazeTasks if they have starts and goals, else a MazeBatch.

    Args:
        text: one drawing, or several of one size with empty lines between them. Either a character per cell: '#' is
            blocked, '.' and ' ' are free, 'S' is the start, 'G' a goal (there may be several), 'o' a cell on the
            path. Or walls between cells: posts '+' (or 'o'), walls '---' and '|', and in the middle of a cell ' ',
            'S', 'G', 'o' or, for a blocked cell, '#'. Without marks 'o' a shortest path is found.

    Raises:
        TypeError: text is no string.
        FormatError: rows of several lengths or drawings of several sizes, an unknown character, an open border, no or
            two starts, no goal, a goal out of reach, or marks that are not one way.

    Examples:
        >>> tasks = poh_ext.io.parse("S.#G\\n..#.\\n....")
        >>> tasks.size, tasks.path.tolist()
        ((3, 4), [[0, 4, 8, 9, 10, 11, 7, 3]])
        >>> print(poh_ext.io.text(tasks), end="")
        S.#G
        o.#o
        oooo
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {type(text).__name__}")
    return read_drawings(Source("text", text))


def text(mazes_or_tasks: MazeBatch | MazeTasks, *, paths: Tensor | None = None) -> str:
    """Mazes drawn as `parse` reads them, with empty lines between them.

    Grids of free and blocked cells are drawn with a character per cell, mazes with walls between cells as lines.

    Args:
        paths: int64 [n, L], the cells to mark for each task, padded with -1, for example `Rollout.path`. None: the
            paths of the tasks.

    Raises:
        TypeError: mazes_or_tasks is neither, or paths is given for a MazeBatch.
        ValueError: paths has another shape or a value that is no cell.
        FormatError: a task starts on its goal.

    Examples:
        >>> corridor = MazeBatch(torch.tensor([[[8, 12, 4], [8, 12, 4]]], dtype=torch.uint8))
        >>> print(poh_ext.io.text(MazeTasks(corridor, torch.tensor([0]), torch.tensor([2]))), end="")
        +---+---+---+
        | S   o   G |
        +---+---+---+
        |           |
        +---+---+---+
    """
    return draw(mazes_or_tasks, paths)


def draw(mazes_or_tasks: MazeBatch | MazeTasks, paths: Tensor | None, place: str = "") -> str:
    """As `text`. place: with which an error begins."""
    cells = cells_of(mazes_or_tasks, paths, place)
    mazes = mazes_or_tasks.mazes if isinstance(mazes_or_tasks, MazeTasks) else mazes_or_tasks
    drawings = draw_walls(mazes, cells) if has_walls(mazes) else draw_cells(cells)
    return "\n".join(drawings)


def draw_cells(cells: np.ndarray, free: str = ".") -> list[str]:
    """A character per cell; each row ends with a line feed."""
    n, height, _ = cells.shape
    drawn = np.where(cells == FREE, np.uint8(ord(free)), cells)
    ends = np.full((n, height, 1), ord("\n"), dtype=np.uint8)
    return [maze.tobytes().decode() for maze in np.concatenate([drawn, ends], 2)]


def draw_walls(mazes: MazeBatch, cells: np.ndarray, post: str = "+") -> list[str]:
    """Lines between cells; each row ends with a line feed."""
    n, height, width = cells.shape
    image = np.full((n, 2 * height + 1, 4 * width + 2), FREE, dtype=np.uint8)
    passages = mazes.passages.cpu().numpy()
    image[:, ::2, : 4 * width + 1 : 4] = ord(post)
    image[:, :, -1] = ord("\n")
    level, upright = ord("-"), ord("|")
    above = np.ones((n, height + 1, width), dtype=bool)
    above[:, :-1] = passages & 1 == 0
    for column in (1, 2, 3):
        image[:, ::2, column : 4 * width : 4][above] = level
    left = np.ones((n, height, width + 1), dtype=bool)
    left[:, :, :-1] = passages & 4 == 0
    image[:, 1::2, : 4 * width + 1 : 4][left] = upright
    image[:, 1::2, 2 : 4 * width : 4] = cells
    return [maze.tobytes().decode() for maze in image]


def read_drawings(source: Source, *, several: bool = True, walls: bool | None = None) -> MazeTasks | MazeBatch:
    """As `parse`. several: may be more than one. walls: of which kind they are; None: what the first line says."""
    blocks = _blocks(source)
    if not blocks:
        raise source.error("there is no maze, only empty lines")
    if len(blocks) > 1 and not several:
        raise source.error(
            "the maze ends at an empty line, and there is another one below: one is accepted", blocks[1][0]
        )
    if walls is None:
        walls = _DRAWN.match(blocks[0][1][0]) is not None
    read = _walls if walls else _cells
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for first, rows in blocks:
        found.append(read(source, first, rows))
        size, height, width = found[0][1].shape, *found[-1][1].shape
        if (height, width) != size:
            below = f"a maze of {height} x {width} cells below one of {size[0]} x {size[1]}"
            raise source.error(f"{below}: one size is accepted", first)
    grids, marks = (np.stack(each) for each in zip(*found, strict=True))
    batch = (MazeBatch.from_raster if walls else MazeBatch.from_free)(torch.from_numpy(grids))
    if not ((marks == START) | (marks == GOAL) | (marks == PATH)).any():
        return batch

    def fail(reason: str, task: int, cell: int | None) -> FormatError:
        first, width = blocks[task][0], marks.shape[2]
        if cell is None:
            return source.error(reason, first)
        row, column = divmod(cell, width)
        return source.error(reason, first + (2 * row + 1 if walls else row), 4 * column + 2 if walls else column)

    return tasks_of(batch, marks, fail)


def _blocks(source: Source) -> list[tuple[int, list[str]]]:
    """The runs of lines that are not empty, each with its first line."""
    blocks: list[tuple[int, list[str]]] = []
    fresh = True
    for number, line in enumerate(source.lines):
        if line and fresh:
            blocks.append((number, [line]))
        elif line:
            blocks[-1][1].append(line)
        fresh = not line
    return blocks


def _cells(source: Source, first: int, rows: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """bool [H, W], where it is free; and the characters of the cells, uint8 [H, W]."""
    cells = source.grid(rows, first, CELLS, _RAGGED)
    return cells != WALL, cells


def _walls(source: Source, first: int, rows: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [2H+1, 2W+1], a raster; and the characters of the cells, uint8 [H, W]."""
    image = source.grid(rows, first, "o+-| SG#")
    height, width = image.shape
    if width % 4 != 1 or width < 5:
        raise source.error(f"the row has {width} characters; 4 for each cell and one more are accepted", first)
    if height % 2 != 1 or height < 3:
        raise source.error(
            f"the maze has {height} lines; 2 for each row of cells and one more are accepted", first + height - 1
        )
    kind = np.zeros(image.shape, dtype=np.uint8)  # what is accepted at each place: an index into _PLACES
    kind[::2], kind[1::2, ::4], kind[1::2, 2::4] = 1, 2, 3
    kind[[0, -1]], kind[1::2, [0, -1]] = 4, 5
    kind[::2, ::4] = 6
    wrong = ~_FITS[kind, image]
    for at in (2, 3):
        wrong[::2, at::4] |= image[::2, at::4] != image[::2, 1::4]
    if wrong.any():
        row, column = divmod(int(wrong.argmax()), width)
        accepted = _PLACES[kind[row, column]]
        if accepted == "- " and column % 4 > 1:
            accepted = chr(image[row, column // 4 * 4 + 1])
        choice = " or ".join(map(repr, accepted))
        raise source.error(f"{rows[row][column]!r} is out of place; accepted here: {choice}", first + row, column)
    cells = np.ascontiguousarray(image[1::2, 2::4])
    raster = np.ones([side * 2 + 1 for side in cells.shape], dtype=np.uint8)
    raster[1::2, 1::2] = cells == WALL
    raster[::2, 1::2] = image[::2, 1::4] == ord("-")
    raster[1::2, ::2] = image[1::2, ::4] == ord("|")
    closed = raster[:-1:2, 1::2] & raster[2::2, 1::2] & raster[1::2, :-1:2] & raster[1::2, 2::2]
    if (bad := (cells == WALL) & (closed == 0)).any():
        row, column = divmod(int(bad.argmax()), bad.shape[1])
        raise source.error(
            "the blocked cell '#' is open to a side; it has walls on all four", first + 2 * row + 1, 4 * column + 2
        )
    return raster, cells


def read_micromouse(path: str | os.PathLike[str]) -> MazeTasks | MazeBatch:
    """Read a micromouse maze (https://github.com/micromouseonline/mazefiles): all cells 'G' are goals.

    Raises:
        OSError: the file cannot be read.
        FormatError: as of `parse`, or there are several mazes.

    Examples:
        >>> tasks = poh_ext.io.read_micromouse("classic/87us1.txt")
        >>> tasks.size, tasks.goal.shape
        ((16, 16), torch.Size([1, 4]))
    """
    return read_drawings(read_source(path), several=False, walls=True)


def write_micromouse(path: str | os.PathLike[str], mazes_or_tasks: MazeBatch | MazeTasks) -> Path:
    """Write one maze as `read_micromouse` reads it, without its path, which the format has not.

    Raises:
        OSError: the file cannot be written.
        TypeError: mazes_or_tasks is neither a MazeBatch nor MazeTasks.
        FormatError: there are several mazes, or blocked cells, or a task starts on its goal.
    """
    cells = cells_of(mazes_or_tasks, None, f"{path}: ")
    mazes = mazes_or_tasks.mazes if isinstance(mazes_or_tasks, MazeTasks) else mazes_or_tasks
    if len(mazes) != 1:
        raise FormatError(f"{path}: there are {len(mazes)} mazes; the format micromouse has one")
    if (cells == WALL).any():
        raise FormatError(f"{path}: there are blocked cells; the format micromouse has walls between cells only")
    cells[cells == PATH] = FREE
    return write_atomically(path, draw_walls(mazes, cells, "o")[0].encode())
