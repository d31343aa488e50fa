"""Mazes as SVG: the walls, blocked cells, paths and ends that the drawing holds are those of the maze."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from poh_ext import MazeBatch, MazeTasks, generate_mazes, sample_tasks
from poh_ext.maze_svg import PITCH, maze_svg


def parts_of(svg):
    """class -> element of the drawing."""
    return {part.get("class"): part for part in ElementTree.fromstring(svg).iter() if part.get("class")}


def sides(path, size):
    """The sides of cells that strokes cover: (level [H+1, W], upright [H, W+1])."""
    level, upright = np.zeros((size[0] + 1, size[1]), bool), np.zeros((size[0], size[1] + 1), bool)
    for x, y, way, end in re.findall(r"M(\d+) (\d+)([HV])(\d+)", path):
        column, row, end = int(x) // PITCH, int(y) // PITCH, int(end) // PITCH
        if way == "H":
            level[row, column:end] = True
        else:
            upright[row:end, column] = True
    return level, upright


@pytest.mark.parametrize("algorithm", ["dfs", "percolation", "obstacles"])
def test_strokes_are_the_walls_and_rectangles_the_blocked_cells(algorithm):
    mazes = generate_mazes(1, (6, 9), algorithm=algorithm, seed=3)
    parts, p, free = parts_of(maze_svg(mazes)), mazes.passages[0].numpy(), mazes.free()[0].numpy()
    level, upright = sides(parts["walls"].get("d"), (6, 9))
    for row in range(7):
        for column in range(9):
            between = [free[r, column] for r in (row - 1, row) if 0 <= r < 6]
            shut = row in (0, 6) or not p[row, column] & 1
            assert level[row, column] == (shut and (row in (0, 6) or any(between)))
    for row in range(6):
        for column in range(10):
            between = [free[row, c] for c in (column - 1, column) if 0 <= c < 9]
            shut = column in (0, 9) or not p[row, column] & 4
            assert upright[row, column] == (shut and (column in (0, 9) or any(between)))
    filled = np.zeros((6, 9), bool)
    drawn = parts["blocked"].get("d") if "blocked" in parts else ""
    for x, y, end, bottom in re.findall(r"M(\d+) (\d+)H(\d+)V(\d+)", drawn):
        filled[int(y) // PITCH, int(x) // PITCH : int(end) // PITCH] = True
        assert int(bottom) - int(y) == PITCH
    assert np.array_equal(filled, ~free) and bool((~free).any()) == (algorithm == "obstacles")
    assert set(parts) <= {"walls", "blocked"}


def test_paths_go_through_the_centres_and_every_goal_is_marked():
    goals = torch.tensor([[3, 5, -1]])
    task = MazeTasks(MazeBatch.open(1, (2, 4)), torch.tensor([0]), goals)
    walked = torch.tensor([0, 4, 5, -1])
    svg = maze_svg(task, walked)
    parts = parts_of(svg)
    points = [tuple(map(float, at.split(","))) for at in parts["walked"].get("points").split()]
    assert points == [((c % 4 + 0.5) * PITCH, (c // 4 + 0.5) * PITCH) for c in (0, 4, 5)]
    assert len(parts["shortest"].get("points").split()) == int(task.length[0]) == 3
    assert svg.count('class="goal"') == 2 and svg.count('class="start"') == 1
    assert "shortest" not in parts_of(maze_svg(task, walked, shortest=False))


def test_a_drawing_has_a_size_that_fits_a_screen():
    for size in (2, 30, (4, 150), 300):
        root = ElementTree.fromstring(maze_svg(sample_tasks(1, size, seed=1)))
        assert 60 <= max(int(root.get("width")), int(root.get("height"))) <= 960
