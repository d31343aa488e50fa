"""Mazes as SVG: a drawing whose lines stay sharp at any size. It needs no other package."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from poh_ext.maze_drawing import GOAL, START, TRUTH, WALKED, WALL, goals_of, walls_between
from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks

__all__ = ["maze_svg"]

PITCH, STROKE = 16, 2.4  # of a cell and of a wall, in the units of the drawing
MARGIN = 8
MOST_PIXELS, LEAST_PIXELS = 960, 160  # of the longer side where nothing says how large it is shown


def maze_svg(maze: MazeTasks | MazeBatch, walked: Tensor | None = None, *, shortest: bool = True) -> str:
    """The first maze as SVG: of a task with a shortest path, both ends, and the cells `walked`.

    Args:
        maze: tasks, or mazes alone, of which nothing but the walls is drawn.
        walked: int64 [S], a planner's path padded with -1. None: there is none.
        shortest: draw the task's path.

    Returns:
        The text of an SVG file. Blocked cells are the path of class "blocked", walls that of class "walls".

    Examples:
        >>> Path("maze.svg").write_text(maze_svg(sample_tasks(1, 12, min_path=50)))
    """
    mazes, task = (maze.mazes, maze) if isinstance(maze, MazeTasks) else (maze, None)
    height, width = mazes.size
    across, down = width * PITCH + 2 * MARGIN, height * PITCH + 2 * MARGIN
    scale = min(max(MOST_PIXELS / max(across, down), 1e-3), 2.5)
    scale = max(scale, LEAST_PIXELS / max(across, down))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-MARGIN} {-MARGIN} {across} {down}" '
        f'width="{across * scale:.0f}" height="{down * scale:.0f}">',
        f"<title>a maze of {height} x {width} cells</title>",
        f'<rect x="{-MARGIN}" y="{-MARGIN}" width="{across}" height="{down}" fill="#fff"/>',
    ]
    if task is not None:
        if shortest:
            parts += _line("shortest", task.path[0], width, 0.62, TRUTH)
        if walked is not None:
            parts += _line("walked", walked, width, 0.26, WALKED)
    free = mazes[0].free()[0].cpu().numpy()
    if not free.all():
        parts.append(f'<path class="blocked" fill="{_hex(WALL)}" d="{_squares(~free)}"/>')
    parts.append(
        f'<path class="walls" fill="none" stroke="{_hex(WALL)}" stroke-width="{STROKE}" stroke-linecap="square" '
        f'd="{_walls(*walls_between(mazes))}"/>'
    )
    if task is not None:
        x, y = _center(int(task.start[0]), width)
        edge = 'stroke="#fff" stroke-width="1"'
        parts.append(f'<circle class="start" cx="{x:g}" cy="{y:g}" r="5" fill="{_hex(START)}" {edge}/>')
        for goal in goals_of(task):
            x, y = _center(goal, width)
            corners = f"M{x:g} {y - 6:g}L{x + 6:g} {y:g}L{x:g} {y + 6:g}L{x - 6:g} {y:g}Z"
            parts.append(f'<path class="goal" fill="{_hex(GOAL)}" {edge} d="{corners}"/>')
    return "\n".join([*parts, "</svg>", ""])


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _center(cell: int, width: int) -> tuple[float, float]:
    row, column = divmod(cell, width)
    return (column + 0.5) * PITCH, (row + 0.5) * PITCH


def _line(name: str, path: Tensor, width: int, share: float, colour: tuple[int, int, int]) -> list[str]:
    """A line through the centres of the cells, `share` of a cell wide; none for less than two cells."""
    points = [_center(cell, width) for cell in path[path >= 0].tolist()]
    if len(points) < 2:
        return []
    through = " ".join(f"{x:g},{y:g}" for x, y in points)
    return [
        f'<polyline class="{name}" fill="none" stroke="{_hex(colour)}" stroke-width="{share * PITCH:g}" '
        f'stroke-linecap="round" stroke-linejoin="round" points="{through}"/>'
    ]


def _runs(line: np.ndarray) -> list[tuple[int, int]]:
    """(first, one past the last) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _walls(level: np.ndarray, upright: np.ndarray) -> str:
    """One stroke for each straight run of wall."""
    across = [f"M{a * PITCH} {row * PITCH}H{b * PITCH}" for row, line in enumerate(level) for a, b in _runs(line)]
    down = [
        f"M{column * PITCH} {a * PITCH}V{b * PITCH}" for column, line in enumerate(upright.T) for a, b in _runs(line)
    ]
    return "".join([*across, *down])


def _squares(blocked: np.ndarray) -> str:
    """One rectangle for each run of blocked cells in a row."""
    return "".join(
        f"M{a * PITCH} {row * PITCH}H{b * PITCH}V{(row + 1) * PITCH}H{a * PITCH}Z"
        for row, line in enumerate(blocked)
        for a, b in _runs(line)
    )
