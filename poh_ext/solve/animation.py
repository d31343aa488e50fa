"""An animated GIF of a planner: its policy over the passes, then the path that it walks.

A cell is coloured as soon as the moves that the planner now prefers lead from it to the goal; lighter cells are nearer.
(To colour each cell whose own move is right would show half of all cells in any state, because many have only two
moves.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from poh_ext import maze_drawing
from poh_ext._files import write_atomically
from poh_ext._optional import require
from poh_ext.maze_drawing import GOAL, PAPER, START, WALKED, WALL, Layout
from poh_ext.rollout import Rollout, best_neighbors
from poh_ext.tasks import MazeTasks

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["animate", "leads_to_goal", "passes_shown", "save_gif"]

PIXELS = 480
FORMING, WALKING = 72, 20  # frames
FORMING_MS, WALKING_MS, PAUSE_MS, END_MS = 80, 60, 700, 3000  # how long a frame stays
NEAR, MIDDLE, FAR = (0xFB, 0xE9, 0xA0), (0x6B, 0xC4, 0xB4), (0x2B, 0x7B, 0xB4)
UNKNOWN = (0xF1, 0xF1, 0xF1)
SHADES = 60  # of a distance


def passes_shown(farthest: int, passes: int) -> list[int]:
    """Rising numbers of passes, evenly spread over those that may change anything; the last is `passes`.

    A pass carries information by one cell, so little changes after as many passes as there are moves from the cell
    `farthest` from the goal.
    """
    until = min(passes, farthest + farthest // 10 + 2)
    return sorted({round(n) for n in np.linspace(1, until, FORMING - 1)} | {passes})


def leads_to_goal(scores: Tensor, task: MazeTasks) -> Tensor:
    """bool [n, N]: True for cells from which the best-scored passable moves (scores [n, N, 4]) lead to a goal."""
    n_cells, then = task.mazes.n_cells, best_neighbors(scores, task.mazes)
    goals = task.goal if task.goal.dim() == 2 else task.goal[:, None]
    is_goal = torch.zeros(len(task), n_cells + 1, dtype=torch.bool, device=scores.device)
    is_goal = is_goal.scatter(1, goals.where(goals >= 0, n_cells), True)[:, :n_cells]
    then = torch.where((then < 0) | is_goal, torch.arange(n_cells, device=scores.device), then)  # these lead nowhere
    for _ in range(n_cells.bit_length()):  # each time twice as many moves
        then = then.gather(1, then)
    return is_goal.gather(1, then)


def animate(
    task: MazeTasks, after: Sequence[int], scores: Sequence[Tensor], rollout: Rollout
) -> Iterator[tuple[Image, int]]:
    """The frames, and the milliseconds that each is shown.

    Args:
        task: one task.
        after: rising numbers of passes.
        scores: scores of the moves after each of them, [1, N, 4].
        rollout: the walk by the last of the scores.
    """
    distance = task.mazes.distances(task.goal)[0]
    shade = 1 + distance * (SHADES - 1) // max(1, int(distance.max()))
    layout = Layout(task.mazes, PIXELS, above=40, below=22, least_width=440)
    for passes, table in zip(after, scores, strict=True):
        known = leads_to_goal(table, task)[0]
        levels = torch.where(known, shade, 0).numpy().astype(np.uint8)
        share = 100 * int(known.sum()) // int((distance >= 0).sum())
        frame = _frame(layout, task, levels, f"pass {passes:,}", f"{share} % of cells know the way")
        yield frame, PAUSE_MS if passes == after[-1] else FORMING_MS
    cells = rollout.path[0][rollout.path[0] >= 0].tolist()
    text = _outcome(rollout, int(task.length[0]) - 1)
    for step in range(1, WALKING + 1):
        frame = _frame(layout, task, levels, text if step == WALKING else "the walk by these moves")
        maze_drawing.draw_path(frame, layout, cells[: 1 + -(-(len(cells) - 1) * step // WALKING)], 0.5, WALKED)
        maze_drawing.draw_ends(frame, layout, task)
        yield frame, END_MS if step == WALKING else WALKING_MS


def _outcome(rollout: Rollout, shortest: int) -> str:
    moves = int(rollout.steps[0])
    if not rollout.reached[0]:
        return f"goal not reached in {moves:,} moves"
    return f"goal reached in {moves:,} moves: " + ("a shortest path" if moves == shortest else f"not {shortest:,}")


def _frame(layout: Layout, task: MazeTasks, levels: np.ndarray, title: str, aside: str = "") -> Image:
    frame = maze_drawing.draw_walls(layout, task.mazes, levels, _palette()[: SHADES + 1])
    maze_drawing.draw_ends(frame, layout, task)
    fonts, pen = require("PIL.ImageFont"), require("PIL.ImageDraw").Draw(frame)
    for text, size, x, anchor in ((title, 22, layout.margin, "ls"), (aside, 16, layout.size[0] - layout.margin, "rs")):
        pen.text((x, layout.origin[1] - 12), text, fill=maze_drawing.TEXT, font=fonts.load_default(size), anchor=anchor)
    items = [("start", START, 0), ("goal", GOAL, 0), ("knows the way", MIDDLE, 10), ("path walked", WALKED, 6)]
    maze_drawing.draw_legend(frame, layout.size[1] - 26, items, size=13)
    return frame


def _palette() -> np.ndarray:
    """uint8 [256, 3]: levels 0 ... SHADES first, then what else is drawn, and mixtures for smooth edges."""
    at = np.linspace(0, 2, SHADES)
    shades = np.stack([np.interp(at, [0, 1, 2], ends) for ends in zip(NEAR, MIDDLE, FAR, strict=True)], 1)
    marks = np.array([START, GOAL, WALKED], dtype=float)
    greys = np.linspace(PAPER, WALL, 12)
    rims = [(np.outer(1 - part, PAPER) + np.outer(part, mark)) for mark in marks for part in [np.arange(1, 7) / 7]]
    edges = [(shades[2::4] + mark) / 2 for mark in (marks[2], np.array(PAPER, dtype=float))]
    colours = np.concatenate([[UNKNOWN], shades, marks, greys, *rims, *edges]).round().astype(np.uint8)
    return np.concatenate([colours, np.repeat(colours[:1], 256 - len(colours), 0)])


def save_gif(path: str | Path, frames: Iterator[tuple[Image, int]]) -> Path:
    """Write an endless animation atomically. All frames have the same 256 colours."""
    colours = require("PIL.Image").new("P", (1, 1))
    colours.putpalette(_palette().tobytes())
    drawn, stays = zip(*((frame.quantize(palette=colours, dither=0), ms) for frame, ms in frames), strict=True)
    return write_atomically(
        path,
        lambda file: drawn[0].save(
            file, format="GIF", save_all=True, append_images=drawn[1:], duration=list(stays), loop=0, optimize=False
        ),
    )
