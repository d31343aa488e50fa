"""Mazes drawn: what lies at which pixel of the sheet of mazes and of the picture of one maze."""

import numpy as np
import pytest
import torch

from poh_ext import MazeTasks, generate_mazes, sample_tasks
from poh_ext._figures import save_png
from poh_ext.maze_drawing import (
    GOAL,
    PAPER,
    START,
    TRUTH,
    WALKED,
    WALL,
    Layout,
    MazeSample,
    draw_walls,
    first_stray,
    maze_picture,
    maze_sheet,
    open_raster,
)
from poh_ext.mazes import MazeBatch

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib.figure")
from tests.cases.reports import carve, decode, is_dark, pad, walk  # noqa: E402 (it needs matplotlib)

UP, DOWN, LEFT, RIGHT = 1, 2, 4, 8  # bits of MazeBatch.passages


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    passages = carve(2, 4, 6, seed=3)
    truth = [walk(p, 0, 23) for p in passages]
    lost = [walk(p, 0, 23, np.random.default_rng(1)) for p in passages]
    sample = MazeSample(
        torch.from_numpy(passages), torch.zeros(2, dtype=torch.int64), np.full(2, 23), pad(truth),
        {"baseline": pad(lost), "PoH": torch.from_numpy(pad(truth))},
    )  # fmt: skip
    figure = maze_sheet(sample)
    return sample, figure, *decode(figure, tmp_path_factory.mktemp("sheet") / "mazes.png")


class TestSheet:
    def test_walls_are_dark_and_passages_are_not(self, sheet):
        sample, figure, _, pixel = sheet
        sides = {UP: (0, -0.5), DOWN: (0, 0.5), LEFT: (-0.5, 0), RIGHT: (0.5, 0)}
        seen = set()
        for j, axis in enumerate(figure.axes):
            for (row, column), bits in np.ndenumerate(sample.passages[j // 2]):
                for bit, (dx, dy) in sides.items():
                    # 0.38 beside the middle of the side, where no path is drawn
                    color = pixel(axis, column + dx + (0.38 if dy else 0), row + dy + (0.38 if dx else 0))
                    wall = not bits & bit
                    assert is_dark(color) == wall, (j, row, column, bit)
                    seen.add(wall)
        assert seen == {True, False}

    def test_the_true_path_lies_under_every_cell_on_it_and_no_other(self, sheet):
        sample, figure, _, pixel = sheet
        axis = figure.axes[1]  # PoH walks the true path
        ends = (0, 23)
        for cell in range(24):
            color = pixel(axis, cell % 6, cell // 6)
            on = cell in sample.true_paths[0]
            assert (is_dark(color) if on else color.min() > 0.97) or cell in ends, cell
            beside = pixel(axis, cell % 6 + 0.07, cell // 6 + 0.07)  # off the thin line, on the broad one
            expected = (0xB8 / 255, 0xCF / 255, 0xE0 / 255) if on else (1, 1, 1)
            assert np.allclose(beside, expected, atol=0.02) or cell in ends, cell

    def test_the_first_stray_is_marked_where_it_happens(self, sheet):
        sample, figure, _, pixel = sheet
        marked = 0
        for i in range(2):
            path, truth = sample.paths["baseline"][i], sample.true_paths[i]
            same = [a == b for a, b in zip(path, truth, strict=False)]
            if all(same[: (truth >= 0).sum()]):
                continue
            stray = same.index(False)
            assert first_stray(sample.passages[i], 23, path) == stray
            axis = figure.axes[2 * i]
            assert f"strays at move {stray}" in axis.get_xlabel()
            red, green, blue = pixel(axis, path[stray] % 6, path[stray] // 6)
            assert red > 0.7 and green < 0.5 and blue < 0.2
            marked += 1
        assert marked
        assert "strays" not in figure.axes[1].get_xlabel()

    def test_captions_count_moves_and_tell_failures(self):
        passages = np.array([[[RIGHT, LEFT | RIGHT, LEFT]]], dtype=np.uint8)
        paths = {"a": [[0, 1, 2]], "b": [[0, 1, -1]], "c": [[0, 1, 0]], "d": [[-1, -1]]}
        sample = MazeSample(passages, [0], [2], [[0, 1, 2]], paths)
        texts = [axis.get_xlabel() for axis in maze_sheet(sample).axes]
        assert texts[0] == "reached in 2 moves, shortest 2"
        assert texts[1] == "not reached in 1 move, shortest 2"
        assert texts[2] == "not reached in 2 moves, shortest 2\nstrays at move 2, sees 2 cells"
        assert texts[3] == "no walk, shortest 2"
        apart = MazeSample(passages * 0, [0], [2], [[-1]], {"a": [[0]], "b": np.zeros((1, 0), dtype=np.int64)})
        assert [axis.get_xlabel() for axis in maze_sheet(apart).axes] == [
            "not reached in 0 moves, no way",
            "no walk, no way",
        ]

    def test_a_walk_that_goes_to_and_fro_is_shown_where(self):
        passages = np.array([[[RIGHT, LEFT | RIGHT, LEFT | RIGHT, LEFT]]], dtype=np.uint8)
        path = [0, 1, 0, 1, 0, 1, 2, 1]
        figure = maze_sheet(MazeSample(passages, [0], [3], [[0, 1, 2, 3]], {"a": [path]}))
        _, often = figure.axes[0].collections
        assert [segment.tolist() for segment in often.get_segments()] == [[[0, 0], [1, 0]]]
        (end,) = [line for line in figure.axes[0].lines if line.get_marker() == "s"]
        assert (end.get_xdata()[0], end.get_ydata()[0]) == (1, 0)

    def test_another_shortest_path_of_an_open_maze_is_not_a_stray(self):
        passages = np.array([[DOWN | RIGHT, DOWN | LEFT], [UP | RIGHT, UP | LEFT]], dtype=np.uint8)
        for path in ([0, 1, 3], [0, 2, 3]):
            assert first_stray(passages, 3, np.array(path)) is None
        assert first_stray(passages, 3, np.array([0, 1, 0, 1, 3])) == 2

    @pytest.mark.parametrize("models", [1, 2, 5])
    def test_the_legend_lies_within_the_picture_and_beside_the_mazes(self, tmp_path, models):
        passages = carve(1, 6, 6)
        path = pad([walk(passages[0], 0, 35)])
        figure = maze_sheet(MazeSample(passages, [0], [35], path, {f"model {i}": path for i in range(models)}))
        decode(figure, tmp_path / "mazes.png")
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
        assert not any(axis.get_tightbbox().overlaps(box) for axis in figure.axes)

    def test_many_models_stand_below_each_other(self):
        passages = carve(2, 3, 3)
        path = pad([walk(p, 0, 8) for p in passages])
        paths = {f"model {i}": path for i in range(5)}
        figure = maze_sheet(MazeSample(passages, [0, 0], [8, 8], path, paths))
        assert [axis.get_title() for axis in figure.axes[:2]] == ["test maze 1", "test maze 2"]
        assert [axis.get_ylabel() for axis in figure.axes[::2]] == list(paths)

    def test_blocked_cells_are_filled_and_open_areas_are_empty(self, tmp_path):
        """2 x 3 cells; the last of the first row is blocked."""
        mazes = MazeBatch.from_free(torch.tensor([[[True, True, False], [True, True, True]]]))
        path = [[0, 3, 4, 5]]
        sample = MazeSample(mazes.passages, [0], [5], path, {"a": path}, mazes.free())
        figure = maze_sheet(sample)
        _, pixel = decode(figure, tmp_path / "mazes.png")
        axis = figure.axes[0]
        assert np.allclose(pixel(axis, 2, 0), 0.65, atol=0.03) and pixel(axis, 1, 0).min() > 0.97
        assert pixel(axis, 0.5, 0.5).min() > 0.97  # between four open cells
        assert is_dark(pixel(axis, 1.5, 0.2)) and is_dark(pixel(axis, 2.2, 0.5))

    def test_any_of_several_goals_is_reached(self):
        passages = np.array([[[RIGHT, LEFT | RIGHT, LEFT | RIGHT, LEFT]]], dtype=np.uint8)
        sample = MazeSample(passages, [1], [[3, 0, -1]], [[1, 0]], {"a": [[1, 0, -1]], "b": [[1, 2, 3]]})
        one, two = (axis.get_xlabel() for axis in maze_sheet(sample).axes)
        assert one == "reached in 1 move, shortest 1"
        assert two == "reached in 2 moves, shortest 1\nstrays at move 1, sees 3 cells"

    def test_nothing_to_draw(self):
        empty = np.zeros((0, 3, 3), dtype=np.uint8)
        none = np.zeros((0, 4), dtype=np.int64)
        assert maze_sheet(MazeSample(empty, [], [], none, {"PoH": none})) is None
        assert maze_sheet(MazeSample(carve(1, 3, 3), [0], [8], [[0]], {})) is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"passages": np.zeros((3, 3))}, r"passages must be \[n, H, W\], not \[3, 3\]"),
            ({"start": [0, 0]}, r"start must be \[n\] with n=1 as in passages, not \[2\]"),
            ({"true_paths": [0, 1]}, r"true_paths must be \[n, L\] with n=1"),
            ({"start": [0.5]}, r"start must hold cell indices, not float64"),
            ({"goal": [9]}, r"goal has cells outside 0..8"),
            ({"paths": {"PoH": [[0, -2]]}}, r"paths\['PoH'\] has cells outside"),
            (
                {"free": np.ones((1, 3, 2), bool)},
                r"free must be bool \[1, 3, 3\], as passages is, not bool \[1, 3, 2\]",
            ),
            ({"free": np.ones((1, 3, 3))}, r"free must be bool \[1, 3, 3\], as passages is, not float64"),
        ],
    )
    def test_bad_samples_are_named(self, change, message):
        good = {"passages": carve(1, 3, 3), "start": [0], "goal": [8], "true_paths": [[0]], "paths": {}}
        with pytest.raises((ValueError, TypeError), match=message):
            MazeSample(**{**good, **change})

    def test_they_are_drawn_under_any_default_device(self):
        passages = np.array([[[RIGHT, LEFT | RIGHT, LEFT]]], dtype=np.uint8)
        with torch.device("meta"):
            figure = maze_sheet(MazeSample(passages, [0], [2], [[0, 1, 2]], {"a": [[0, 1, 0]]}))
        assert "strays at move 2" in figure.axes[0].get_xlabel()


# -- the picture of one maze ------------------------------------------------------------------------------------


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
        (
            2 * (3 * layout.pitch + layout.wall) * layout.wall,
            2 * (2 * layout.pitch - layout.wall) * layout.wall,
            3 * layout.corridor * layout.wall,
            2 * layout.corridor * layout.wall,
            2 * layout.wall**2,
        )
    )


@pytest.mark.parametrize("size", [(2, 9), 30, (4, 150)])
def test_the_whole_maze_and_its_legend_fit(size):
    task = sample_tasks(1, size, min_path=2, seed=1)
    image, layout = maze_picture(task, task.path[0]), layout_of(task)
    assert 520 <= image.width <= 1024 and image.width == layout.size[0]
    pixels = np.asarray(image)
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == 255).all()


def test_blocked_cells_are_filled_and_nothing_stands_in_open_areas():
    """2 x 3 cells; the last of the first row is blocked, so one of two posts is free."""
    mazes = MazeBatch.from_free(torch.tensor([[[True, True, False], [True, True, True]]]))
    assert open_raster(mazes).astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    image, layout = maze_picture(mazes), Layout(mazes, 960)
    assert image.size == layout.size

    def at(x, y):  # in cells
        left, top = layout.center(0)
        return image.getpixel((int(left + layout.pitch * x), int(top + layout.pitch * y)))

    assert at(2, 0) == WALL and at(1.5, 0.5) == WALL and {at(0.5, 0.5), at(0, 0), at(1, 0.5)} == {PAPER}
    assert {colour for _, colour in image.getcolors()} == {PAPER, WALL}


@pytest.mark.parametrize("algorithm", ["dfs", "percolation", "obstacles"])
def test_a_post_stands_where_a_wall_ends(algorithm):
    mazes = MazeBatch.cat([generate_mazes(3, (7, 5), algorithm=algorithm, seed=2), MazeBatch.open(1, (7, 5))])
    for which in range(len(mazes)):
        found, raster = open_raster(mazes, which), mazes.raster()[which].numpy() == 0
        posts = np.zeros_like(found)
        posts[2:-1:2, 2:-1:2] = True
        assert np.array_equal(found[~posts], raster[~posts])
        for row, column in np.argwhere(posts):
            around = raster[row - 1, column], raster[row + 1, column], raster[row, column - 1], raster[row, column + 1]
            assert found[row, column] == all(around)
    assert open_raster(mazes, 3)[1:-1, 1:-1].all()


def test_every_goal_is_marked_and_the_paths_may_be_left_out():
    task = MazeTasks(MazeBatch.open(1, (3, 4)), torch.tensor([0]), torch.tensor([[11, 3, -1]]))
    layout = layout_of(task)

    def colours(image):
        return [image.getpixel(tuple(map(int, layout.center(cell)))) for cell in (0, 1, 3, 11)]

    assert colours(maze_picture(task)) == [START, TRUTH, GOAL, GOAL]
    assert colours(maze_picture(task, shortest=False)) == [START, PAPER, GOAL, GOAL]


def test_paths_are_seen_in_a_large_map():
    task = sample_tasks(1, 200, algorithm="obstacles", density=0.2, min_path=100, seed=1)
    image = maze_picture(task, task.path[0])
    counts = {colour: count for count, colour in image.getcolors(1 << 16)}
    assert max(image.size) < 1500 and counts[WALKED] > 10 * int(task.length[0]) < counts[TRUTH] * 2


def test_it_is_saved_as_a_png_in_one_step(tmp_path):
    task = sample_tasks(1, 6, min_path=8, seed=4)
    image = maze_picture(task, task.path[0])
    with Image.open(save_png(image, tmp_path / "maze.png")) as read:
        assert read.format == "PNG" and np.array_equal(np.asarray(read.convert("RGB")), np.asarray(image))
    assert [file.name for file in tmp_path.iterdir()] == ["maze.png"]
