"""Rollouts: against a plain Python walk, with ties, NaN, dead ends and both forms of the table."""

import math

import pytest
import torch

from poh_ext import (
    GENERATORS,
    MazeBatch,
    MazeTasks,
    beeline_policy,
    generate_mazes,
    greedy_rollout,
    random_policy,
    random_rollout,
    recondition_rollout,
    sample_tasks,
)
from poh_ext.mazes import DENSITY
from poh_ext.rollout import best_neighbors, solved_exactly
from tests.cases.backends import DTYPES


def plain_walk(table, tasks: MazeTasks, row: int, max_steps: int) -> list[int]:
    """One maze, straight from the definition; table [N, N] of the scores of cells."""
    around = tasks.mazes.neighbors()[row].tolist()
    cell, goal = int(tasks.start[row]), int(tasks.goal[row])
    path = [cell]
    while cell != goal and len(path) <= max_steps:
        passable = sorted(c for c in around[cell] if c >= 0)
        if not passable:
            break
        scores = [float(s) for s in table[cell]]
        key = {c: -math.inf if math.isnan(scores[c]) else scores[c] for c in passable}
        fresh = [c for c in passable if c not in path]
        cell = max(fresh or passable, key=key.__getitem__)  # max keeps the first, the lower index
        path.append(cell)
    return path


def spread(moves: torch.Tensor, tasks: MazeTasks) -> torch.Tensor:
    """[n, N, 4] -> [n, N, N], with junk where walled."""
    around, n = tasks.mazes.neighbors(), tasks.mazes.n_cells
    table = torch.full((len(tasks), n, n + 1), 99.0, dtype=moves.dtype)
    return table.scatter(2, torch.where(around < 0, n, around), moves)[..., :n]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ["dfs", "percolation"])
def test_rollout_against_a_plain_walk(algorithm, dtype):
    tasks = sample_tasks(40, (4, 5), algorithm=algorithm, seed=2)
    torch.manual_seed(0)
    moves = torch.randint(-2, 3, (40, 20, 4)).to(dtype)  # many ties
    moves[torch.rand(moves.shape) < 0.2] = torch.nan
    moves[torch.rand(moves.shape) < 0.1] = -torch.inf
    moves[torch.rand(moves.shape) < 0.1] = torch.inf
    table = spread(moves, tasks)
    for max_steps in (None, 7, 0):
        got = greedy_rollout(moves, tasks, max_steps=max_steps)
        most = 20 if max_steps is None else max_steps
        assert got.path.shape == (40, most + 1)
        for row in range(40):
            path = plain_walk(table[row], tasks, row, most)
            assert got.path[row].tolist() == path + [-1] * (most + 1 - len(path))
            assert got.steps[row] == len(path) - 1
            assert got.reached[row] == (path[-1] == tasks.goal[row])
            assert got.optimal[row] == (got.reached[row] and len(path) - 1 <= 1.05 * (tasks.length[row] - 1))
        for same in (
            greedy_rollout(table, tasks, max_steps=max_steps),
            greedy_rollout(table.transpose(1, 2).contiguous().transpose(1, 2), tasks, max_steps=max_steps),
        ):
            assert all(torch.equal(a, b) for a, b in zip(got, same, strict=True))


@pytest.mark.parametrize("algorithm", GENERATORS)
def test_the_true_distance_is_an_optimal_policy(algorithm):
    tasks = sample_tasks(50, 8, algorithm=algorithm, seed=1)
    table = -tasks.mazes.distances(tasks.goal).float()[:, None].expand(-1, 64, -1)
    table = torch.where(table > 0, -1000, table)
    rollout = greedy_rollout(table, tasks)
    assert rollout.reached.all() and rollout.optimal.all()
    assert torch.equal(rollout.steps, tasks.length - 1)
    if algorithm not in DENSITY:
        assert torch.equal(rollout.path[:, : tasks.path.shape[1]], tasks.path)


def test_reconditioning_on_a_fixed_table_is_the_greedy_rollout():
    tasks = sample_tasks(30, 6, algorithm="wilson", seed=4)
    table, rows, asked = random_policy(tasks, 0), {int(k): i for i, k in enumerate(tasks.mazes.index)}, []

    def policy(mazes: MazeBatch, position, goal):
        which = torch.tensor([rows[int(i)] for i in mazes.index])
        assert torch.equal(goal, tasks.goal[which]) and not torch.is_grad_enabled()
        asked.append(len(mazes))
        return table[which, position]

    for max_steps in (None, 9):
        asked.clear()
        got = recondition_rollout(policy, tasks, max_steps=max_steps)
        expected = greedy_rollout(table, tasks, max_steps=max_steps)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert asked == [int((expected.steps > step).sum()) for step in range(int(expected.steps.max()))]


def test_reconditioning_with_scores_of_cells():
    tasks = sample_tasks(30, 6, seed=4)
    rollout = recondition_rollout(lambda mazes, position, goal: -mazes.distances(goal).float(), tasks)
    assert rollout.optimal.all() and torch.equal(rollout.steps, tasks.length - 1)


def test_four_cells_and_one_cell():
    tasks = sample_tasks(20, 2, seed=0)
    moves = random_policy(tasks, 1)
    expected = greedy_rollout(spread(moves, tasks), tasks)
    got = greedy_rollout(moves, tasks, moves=True)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    alone = greedy_rollout(torch.zeros(3, 1, 1), sample_tasks(3, 1, min_path=1))
    assert alone.reached.all() and alone.optimal.all() and alone.path.tolist() == [[0, -1]] * 3


def test_a_cell_walled_all_around_stays():
    zero = torch.tensor([0])
    tasks = MazeTasks(MazeBatch(torch.zeros(1, 1, 2).byte()), zero, zero + 1, zero[:, None] - 1, zero)
    rollout = greedy_rollout(torch.zeros(1, 2, 4), tasks)
    assert not rollout.reached and not rollout.optimal and rollout.steps == 0 and rollout.path.tolist() == [[0, -1, -1]]


def test_optimal_is_within_five_percent_of_the_moves():
    corridor = MazeBatch(torch.tensor([[[8] + [12] * 20 + [4]]]).byte())
    at = lambda *x: torch.tensor(x)  # noqa: E731
    tasks = MazeTasks(corridor, at(0), at(21), torch.arange(22)[None], at(22))
    shorter = MazeTasks(corridor, at(0), at(21), torch.arange(22)[None], at(21), check=False)
    way_shorter = MazeTasks(corridor, at(0), at(21), torch.arange(22)[None], at(20), check=False)
    right = torch.zeros(1, 22, 4)
    assert [bool(greedy_rollout(right, t).optimal) for t in (tasks, shorter, way_shorter)] == [True, True, False]


def test_random_policy_depends_on_seed_and_number_of_the_task_alone():
    tasks = sample_tasks(10, 5, seed=0)
    scores = random_policy(tasks, 3)
    assert scores.shape == (10, 25, 4) and scores.dtype == torch.float32
    assert torch.equal(random_policy(tasks[4:], 3, start_index=4), scores[4:])
    assert not torch.equal(random_policy(tasks, 4), scores)
    assert 0 <= scores.min() and scores.max() < 1 and abs(float(scores.mean()) - 0.5) < 0.05
    assert len(scores.unique()) > 990
    shared = random_policy(tasks, 3, start_index=2, shared=True)
    assert torch.equal(shared, scores[2:3].expand_as(scores))


def test_random_rollout_is_a_walk_to_a_random_unvisited_neighbour():
    corner = MazeBatch.open(6000, 2)
    at = torch.zeros(6000, dtype=torch.int64)
    tasks = MazeTasks(corner, at, at + 3, torch.tensor([[0, 1, 3]]).expand(6000, -1), at + 3)
    walk = random_rollout(tasks, 1)
    assert walk.reached.all() and (walk.steps == 2).all()
    first = (walk.path[:, 1] == 1).double().mean()
    assert abs(float(first) - 0.5) < 4 * 0.5 / 6000**0.5  # right or down: a fair coin
    tasks = sample_tasks(200, 6, min_path=8, seed=1)
    same, other = random_rollout(tasks, 5), random_rollout(tasks, 6)
    assert torch.equal(same.path, random_rollout(tasks, 5).path) and not torch.equal(same.path, other.path)
    assert not random_rollout(tasks, 5, max_steps=3).reached.any()
    for row in range(20):  # never back to a cell while another one is at hand
        path = [cell for cell in same.path[row].tolist() if cell >= 0]
        for i in range(1, len(path)):
            near = {c for c in tasks.mazes.neighbors()[row, path[i - 1]].tolist() if c >= 0}
            assert path[i] in near and (path[i] not in path[:i] or near <= set(path[:i]))


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (4, 7)])
def test_beeline_is_a_shortest_way_where_nothing_is_in_between(size):
    n = size[0] * size[1]
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    mazes = MazeBatch.open(len(pairs), size)
    start, goal = pairs.unbind(1)
    path = mazes.shortest_paths(start, goal)
    tasks = MazeTasks(mazes, start.contiguous(), goal.contiguous(), path, (path >= 0).sum(1))
    walk = greedy_rollout(beeline_policy(tasks), tasks)
    assert walk.reached.all() and torch.equal(walk.steps, tasks.length - 1)


def test_beeline_knows_nothing_of_walls():
    tasks = MazeTasks(generate_mazes(1, 5, seed=3), *(torch.tensor([c]) for c in (0, 7)))
    open_tasks = MazeTasks(MazeBatch.open(1, 5), tasks.start, tasks.goal)
    table = beeline_policy(tasks)
    assert table.shape == (1, 25, 4) and table.dtype == torch.float32
    assert torch.equal(table, beeline_policy(open_tasks))
    assert table[0, [0, 7, 14]].tolist() == [[-1, 1, -1, 1], [-1] * 4, [1, -1, 1, -1]]  # to (1, 2)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda t: greedy_rollout(torch.zeros(3, 16, 5), t), ValueError, r"must be \[3, 16, 16\] or \[3, 16, 4\], got"),
        (lambda t: greedy_rollout(torch.zeros(2, 16, 4), t), ValueError, r"got \[2, 16, 4\]"),
        (lambda t: greedy_rollout(torch.zeros(3, 16, 16), t, moves=True), ValueError, "with moves=True"),
        (lambda t: greedy_rollout(torch.zeros(3, 16, 4).int(), t), TypeError, "got torch.int32"),
        (lambda t: greedy_rollout([1], t), TypeError, "got list"),
        (lambda t: greedy_rollout(torch.zeros(3, 16, 4), t.mazes), TypeError, "tasks must be MazeTasks, as"),
        (lambda t: random_rollout(None, 1), TypeError, "tasks must be MazeTasks"),
        (lambda t: random_policy(None, 1), TypeError, "tasks must be MazeTasks"),
        (lambda t: greedy_rollout(torch.zeros(3, 16, 4, device="meta"), t), ValueError, "policy_logits is on meta"),
        (lambda t: greedy_rollout(torch.zeros(3, 16, 4), t, max_steps=-1), ValueError, "max_steps must be"),
        (
            lambda t: solved_exactly(torch.zeros(3, 16, 16), t),
            ValueError,
            r"table must be \[3, 16, 4\], .* got \[3, 16, 16\]",
        ),
        (lambda t: solved_exactly(torch.zeros(2, 16, 4), t), ValueError, r"table must be \[3, 16, 4\]"),
        (
            lambda t: solved_exactly(torch.zeros(3, 16, 4).int(), t),
            TypeError,
            "table must be a float32, .* got torch.int32",
        ),
        (lambda t: best_neighbors([1], t.mazes), TypeError, "table must be .* got list"),
        (lambda t: best_neighbors(torch.zeros(3, 16, 4, device="meta"), t.mazes), ValueError, "table is on meta"),
        (lambda t: recondition_rollout(lambda *a: torch.zeros(3, 5), t), ValueError, r"must give scores \[3, 16\]"),
        (lambda t: random_rollout(t, -1), ValueError, "seed must be"),
        (lambda t: random_rollout(t, 1.5), TypeError, "seed must be an int, got 1.5"),
        (lambda t: random_rollout(t, 1, max_steps=-1), ValueError, "max_steps must be"),
        (lambda t: random_policy(t, -1), ValueError, "seed must be"),
        (lambda t: random_policy(t, 1, start_index=-1), ValueError, "start_index must be"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(sample_tasks(3, 4))


def test_cells_out_of_range_are_named():
    tasks = sample_tasks(3, 4)
    tasks.goal = torch.tensor([0, 16, 1])
    with pytest.raises(IndexError, match=r"goal\[1\] = 16 is out of range for 16 cells"):
        greedy_rollout(torch.zeros(3, 16, 4), tasks)
