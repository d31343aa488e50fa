"""The picture of a solved maze: what lies at which pixel."""

import numpy as np
import pytest
import torch

from poh_ext import sample_tasks
from poh_ext._figures import save_png
from poh_ext.maze_drawing import GOAL, PAPER, START, TRUTH, WALKED, WALL, Layout, draw_walls, maze_picture
from poh_ext.mazes import MazeBatch

Image = pytest.importorskip("PIL.Image")


def layout_of(task):
    return Layout(task.mazes, 960, below=22, least_width=520)


def test_picture_shows_walls_both_paths_and_both_ends():
    task = sample_tasks(1, 5, min_path=6, seed=4)
    walked = torch.cat([task.path[0, :3], torch.full((4,), -1)])
    image, layout = maze_picture(task, walked), layout_of(task)
    assert image.size == layout.size
    on_path = [image.getpixel(tuple(map(int, layout.center(int(cell))))) for cell in task.path[0]]
    assert on_path == [START, WALKED, WALKED, *[TRUTH] * (len(on_path) - 4), GOAL]
    off_path = next(cell for cell in range(25) if cell not in task.path[0])
    assert image.getpixel(tuple(map(int, layout.center(off_path)))) == PAPER


def test_walls_and_passages_are_where_the_maze_has_them():
    """Three cells in a row above three: open between the first two, and down from the third."""
    mazes = MazeBatch(torch.tensor([[[8, 4, 2], [0, 0, 1]]], dtype=torch.uint8))
    layout = Layout(mazes, 100)
    colours = np.uint8([[255, 255, 255], [10, 20, 30], [40, 50, 60]])
    image = draw_walls(layout, mazes, np.array([1, 2, 0, 0, 0, 0]), colours)

    def between(a, b):
        (ax, ay), (bx, by) = layout.center(a), layout.center(b)
        return image.getpixel((int((ax + bx) / 2), int((ay + by) / 2)))

    assert between(0, 1) == (10, 20, 30)  # the lower level of both
    assert between(2, 5) == PAPER
    assert {between(1, 2), between(0, 3), between(1, 4), between(3, 4), between(4, 5)} == {WALL}
    assert image.getpixel(tuple(map(int, layout.center(1)))) == (40, 50, 60)
    pixels = np.asarray(image)
    assert (pixels == np.uint8(WALL)).all(-1).sum() == sum(
        # the frame, then the walls inside: across, down, and the corners between them
        (2 * (3 * layout.pitch + layout.wall) * layout.wall, 2 * (2 * layout.pitch - layout.wall) * layout.wall,
         3 * layout.corridor * layout.wall, 2 * layout.corridor * layout.wall, 2 * layout.wall**2)
    )


@pytest.mark.parametrize("size", [(2, 9), 30, (4, 150)])
def test_the_whole_maze_and_its_legend_fit(size):
    task = sample_tasks(1, size, min_path=2, seed=1)
    image, layout = maze_picture(task, task.path[0]), layout_of(task)
    assert 520 <= image.width <= 1024 and image.width == layout.size[0]
    pixels = np.asarray(image)
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == 255).all()


def test_it_is_saved_as_a_png_in_one_step(tmp_path):
    task = sample_tasks(1, 6, min_path=8, seed=4)
    image = maze_picture(task, task.path[0])
    with Image.open(save_png(image, tmp_path / "maze.png")) as read:
        assert read.format == "PNG" and np.array_equal(np.asarray(read.convert("RGB")), np.asarray(image))
    assert [file.name for file in tmp_path.iterdir()] == ["maze.png"]
