"""Sampled tasks: exact counts and lengths, distributions against brute force, errors."""

import contextlib

import numpy as np
import pytest
import torch

from poh_ext import GENERATORS, MazeTasks, generate_mazes, sample_tasks, sample_tasks_as_published
from poh_ext.ops.maze import endpoints
from poh_ext.tasks import STARTS
from tests.cases.backends import reference


def check(tasks: MazeTasks, n: int, low: int, high: int) -> None:
    assert len(tasks) == n == len(tasks.mazes)
    assert ((tasks.length >= low) & (tasks.length <= high)).all()
    assert torch.equal((tasks.path >= 0).sum(1), tasks.length)
    assert torch.equal(tasks.mazes.shortest_paths(tasks.start, tasks.goal), tasks.path)
    distance = tasks.mazes.distances(tasks.goal).gather(1, tasks.start[:, None])[:, 0]
    assert torch.equal(distance.long() + 1, tasks.length)


@pytest.mark.parametrize("low, high", [(2, None), (1, 1), (12, None), (5, 6)])
@pytest.mark.parametrize("algorithm", GENERATORS)
def test_exactly_n_that_fit(algorithm, low, high):
    check(sample_tasks(60, (5, 7), min_path=low, max_path=high, algorithm=algorithm, seed=1), 60, low, high or 35)


def test_a_maze_without_a_fitting_path_is_the_only_one_given_up():
    tasks = sample_tasks(50, 4, min_path=12, seed=2)
    mazes = generate_mazes(int(tasks.mazes.index[-1]) + 1, 4, seed=2)
    diameter = torch.stack([mazes.distances(torch.full((len(mazes),), g)).amax(1) for g in range(16)]).amax(0)
    assert torch.equal((diameter >= 11).nonzero()[:, 0], tasks.mazes.index)
    assert 0 < len(tasks) < len(mazes)


@pytest.mark.parametrize("algorithm", ["dfs", "percolation"])
def test_start_and_goal_are_uniform_given_the_maze(algorithm):
    """On one maze, over many indices: start uniform over the cells with a fitting goal, then the goal."""
    n, low = 8000, 5
    maze = sample_tasks(1, 3, min_path=low, algorithm=algorithm, seed=5).mazes
    passages = maze.passages.expand(n, 3, 3).contiguous()
    start, goal, _ = endpoints(passages, torch.arange(n), 17, low, 9)
    distance = torch.stack([maze.distances(torch.tensor([g]))[0] for g in range(9)])
    fits = (distance >= low - 1).double()
    probability = fits / fits.sum(1, keepdim=True).clamp(min=1) / (fits.sum(1) > 0).sum()
    counts = torch.bincount(start * 9 + goal, minlength=81).double().view(9, 9)
    assert (counts[probability == 0] == 0).all()
    expected = probability[probability > 0] * n
    chi = float(((counts[probability > 0] - expected) ** 2 / expected).sum())
    degrees = len(expected) - 1
    assert degrees > 2 and chi < degrees + 4 * (2 * degrees) ** 0.5


def test_more_tasks_begin_with_the_same():
    few, many = (sample_tasks(n, 5, min_path=13, algorithm="wilson", seed=3) for n in (7, 90))
    assert torch.equal(few.mazes.passages, many[:7].mazes.passages)
    assert torch.equal(few.start, many.start[:7]) and torch.equal(few.goal, many.goal[:7])


def test_longest_possible_path():
    check(sample_tasks(3, 3, min_path=9, seed=0), 3, 9, 9)
    check(sample_tasks(3, 1, min_path=1, seed=0), 3, 1, 1)


def test_infeasible_filters_name_the_longest_path_seen():
    with pytest.raises(ValueError, match="min_path is 10 cells, but a maze of 3 x 3 has only 9"):
        sample_tasks(1, 3, min_path=10)
    with pytest.raises(ValueError, match="min_path is 2 cells, but a maze of 1 x 1 has only 1"):
        sample_tasks(1, 1)
    with pytest.raises(ValueError, match=r"in 10000 prim mazes .*the longest path seen has \d+ cells"):
        sample_tasks(1, 6, min_path=36, algorithm="prim")


@pytest.mark.parametrize("exclude, error, message", [
    (torch.zeros(3, dtype=torch.int32), TypeError, "exclude must be an int64 tensor, got int32"),
    ([1, 2], TypeError, "exclude must be an int64 tensor, got list"),
    (torch.zeros(2, 3, dtype=torch.int64), ValueError, r"exclude must have shape \[m\], got \[2, 3\]"),
])  # fmt: skip
def test_keys_that_could_not_exclude_are_refused(exclude, error, message):
    with pytest.raises(error, match=message):
        sample_tasks(2, 4, exclude=exclude)


def test_an_integer_of_any_library_is_an_index():
    tasks = sample_tasks(5, 4, seed=1)
    for index in (np.int64(3), np.uint8(3), torch.tensor(3), np.int64(-2)):
        assert torch.equal(tasks[index].path, tasks.path[3:4]) and len(tasks.mazes[index]) == 1
    for index in (True, None):
        with pytest.raises(TypeError, match="an index must be an int"):
            tasks.mazes[index]
    with pytest.raises(IndexError, match="index 5 is out of range for 5 mazes"):
        tasks[np.int64(5)]


def test_exclude_leaves_mazes_out():
    train = sample_tasks(40, 3, seed=0)
    test = sample_tasks(40, 3, seed=10000)
    assert torch.isin(test.keys(), train.keys()).any()
    check(apart := sample_tasks(40, 3, seed=10000, exclude=train.keys()), 40, 2, 9)
    assert not torch.isin(apart.keys(), train.keys()).any()
    every = generate_mazes(5000, 2, seed=0).hash()
    with pytest.raises(ValueError, match=r"^exclude leaves out all of 10000 dfs mazes of 2 x 2 cells in a row$"):
        sample_tasks(1, 2, seed=1, exclude=every)
    halves = generate_mazes(500, 2, algorithm="percolation")
    one_wall = halves[(halves.neighbors() >= 0).sum((1, 2)) == 6].hash()  # the only ones with a path of 4 cells
    few = "in 10000 percolation mazes .* the longest path seen has 4 cells; exclude leaves out [12].* of them that have"
    with pytest.raises(ValueError, match=few):
        sample_tasks(1, 2, seed=1, min_path=4, algorithm="percolation", exclude=one_wall)


def test_as_published_is_a_blind_draw():
    tasks = sample_tasks_as_published(1200, 12, 51, 42)
    assert 0.15 < len(tasks) / 1200 < 0.35  # the document kept 306 of 1200 and 57 of 240
    check(tasks, len(tasks), 51, 144)
    loose = sample_tasks_as_published(9000, 2, 1, 7)
    counts = torch.bincount(loose.start * 4 + loose.goal, minlength=16).double()
    assert len(loose) == 9000 and float(((counts - 562.5) ** 2 / 562.5).sum()) < 37.7  # 15 degrees, p = 0.001


def test_tasks_slice_move_and_hold_nothing():
    tasks = sample_tasks(5, 4, seed=1)
    part = tasks[1:3].to("cpu")
    assert len(part) == 2 and torch.equal(part.path, tasks.path[1:3]) and torch.equal(part.keys(), tasks.keys()[1:3])
    assert len(tasks[-1]) == 1 and len(list(tasks)) == 5
    none = sample_tasks(0, 4, min_path=99)
    assert len(none) == 0 and none.path.shape == (0, 0) and none.mazes.size == (4, 4)
    assert len(sample_tasks_as_published(0, 4, 2, 0)) == 0


def test_bad_input():
    for arguments, message in (
        ({"n": -1}, "n must be"),
        ({"min_path": 0}, "min_path must be"),
        ({"max_path": 0}, "max_path must be in"),
        ({"min_path": 5, "max_path": 4}, "max_path must be at least min_path = 5, got 4"),
        ({"seed": -1}, "seed must be"),
        ({"algorithm": "x"}, "algorithm 'x' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_tasks(**{"n": 1, "size": 4, **arguments})
    tasks = sample_tasks(3, 4)
    fields = {"start": tasks.start, "goal": tasks.goal, "path": tasks.path, "length": tasks.length}
    for name in fields:
        with pytest.raises(TypeError, match=f"{name} must be an int64 tensor, got float32"):
            MazeTasks(tasks.mazes, **{**fields, name: fields[name].float()})
        with pytest.raises(ValueError, match=rf"{name} must be \[3.*\].*, got \[2"):
            MazeTasks(tasks.mazes, **{**fields, name: fields[name][:2]})
        with pytest.raises(ValueError, match=f"{name} is on meta"):
            MazeTasks(tasks.mazes, **{**fields, name: fields[name].to("meta")})


# -- obstacles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("low", [1, 2, 9])
def test_on_obstacles_both_ends_are_free_and_joined(kind, low):
    tasks = sample_tasks(120, (6, 7), min_path=low, algorithm="obstacles", density=(0.3, 0.6), start=kind, seed=2)
    check(tasks, 120, low, 42)
    for cells in (tasks.start, tasks.goal):
        assert tasks.mazes.free().flatten(1).gather(1, cells[:, None]).all()
    MazeTasks(tasks.mazes, tasks.start, tasks.goal, tasks.path, tasks.length)  # is checked
    with reference():
        again = sample_tasks(120, (6, 7), min_path=low, algorithm="obstacles", density=(0.3, 0.6), start=kind, seed=2)
    for a, b in ((tasks.path, again.path), (tasks.start, again.start), (tasks.mazes.free(), again.mazes.free())):
        assert torch.equal(a, b)


def test_a_maze_of_blocked_cells_alone_is_given_up():
    tasks = sample_tasks(60, 2, min_path=1, algorithm="obstacles", density=0.6, seed=1)
    grids = generate_mazes(int(tasks.mazes.index[-1]) + 1, 2, algorithm="obstacles", density=0.6, seed=1)
    assert torch.equal(grids.free().flatten(1).any(1).nonzero()[:, 0], tasks.mazes.index) and len(grids) > 60
    message = (
        "at least min_path = 1 cells in 10000 obstacles mazes of 2 x 2 cells in a row; the longest path seen has 0"
    )
    with pytest.raises(ValueError, match=message):
        sample_tasks(1, 2, min_path=1, algorithm="obstacles", density=1)
    with pytest.raises(ValueError, match=r"min_path = 2 cells in 10000 obstacles mazes .* seen has 1 cells"):
        sample_tasks(1, 2, min_path=2, algorithm="obstacles", density=1)


def test_long_paths_among_obstacles():
    """Of the kind of Maze-Hard: 30 x 30 cells, paths of more than 110 moves."""
    tasks = sample_tasks(6, 30, algorithm="obstacles", min_path=112)
    check(tasks, 6, 112, 900)
    few = sample_tasks(2, 30, algorithm="obstacles", min_path=112)
    assert torch.equal(few.path[:, :112], tasks.path[:2, :112])


@pytest.mark.parametrize("braid", [0.2, (0.1, 0.6)])
def test_tasks_on_braided_mazes(braid):
    tasks = sample_tasks(50, (5, 7), min_path=8, algorithm="wilson", braid=braid, seed=1)
    check(tasks, 50, 8, 35)
    mazes = generate_mazes(int(tasks.mazes.index[-1]) + 1, (5, 7), algorithm="wilson", braid=braid, seed=1)
    assert torch.equal(mazes[tasks.mazes.index].passages, tasks.mazes.passages)


@pytest.mark.parametrize("backend", [contextlib.nullcontext, reference])
@pytest.mark.parametrize("most", [2**31, 2**32 + 3, 2**62])
def test_a_longest_path_beyond_every_maze_is_no_limit(most, backend):
    with backend():
        tasks = sample_tasks(5, 3, min_path=4, max_path=most, seed=1)
        free = sample_tasks(5, 3, min_path=4, seed=1)
    assert torch.equal(tasks.path, free.path) and (tasks.length >= 4).all()


@pytest.mark.parametrize("backend", [contextlib.nullcontext, reference])
def test_columns_beyond_the_longest_path_are_padding(backend):
    mazes = generate_mazes(2, (3, 4), seed=1)
    ends = torch.tensor([0, 0]), torch.tensor([11, 11])
    with backend():
        long, short = mazes.shortest_paths(*ends, length=100_000), mazes.shortest_paths(*ends, length=12)
    assert torch.equal(long[:, :12], short) and (long[:, 12:] == -1).all()
