"""What "solved exactly" means, and one run read after several numbers of passes."""

import math
from itertools import pairwise

import pytest
import torch

from poh_ext import greedy_rollout, sample_tasks
from poh_ext.commands import solve as cli
from poh_ext.mazes import MazeBatch
from poh_ext.models.inference import SETTLED
from poh_ext.rollout import best_neighbors, solved_exactly
from poh_ext.solve import evaluation
from poh_ext.solve.evaluation import exact_over_passes, passes_given
from poh_ext.solve.pretrained import load
from poh_ext.tasks import MazeTasks
from tests.cases.planners import make
from tests.cases.solvers import ROWS, fresh


@pytest.fixture(params=ROWS)
def planner(request):
    return request.param


def test_states_read_on_the_way_equal_runs_of_their_own(planner):
    model = fresh(planner)
    tasks, factors = sample_tasks(12, 5, min_path=3, seed=1), (0.5, 1.0, 3.0)
    for p in model.parameters():  # far from a first guess that is right nowhere
        torch.nn.init.normal_(p, std=0.4, generator=torch.Generator().manual_seed(p.numel()))
    found = exact_over_passes(model.train(), tasks, factors)
    assert model.training
    with torch.no_grad():
        for row, factor in zip(found, factors, strict=True):
            for i in range(len(tasks)):
                task = tasks[i]
                passes = max(1, math.ceil(factor * (int(task.length) - 1)))
                logits = model(task.mazes, task.start, task.goal, passes=passes)
                assert bool(row[i]) == bool(solved_exactly(logits, task)[0])
    for factor in (0.0, 1e308):
        with pytest.raises(ValueError, match="factors must be positive numbers of at most 1e"):
            exact_over_passes(model, tasks, (1.0, factor))


def test_passes_are_those_of_the_decimal_that_was_given():
    assert passes_given(101, [1.1, 0.07, 1.101, 1e-9, 1e9]) == [110, 7, 111, 1, 10**11]
    assert passes_given(2**26 + 1, [0.55, 1 / 3, 1.1]) == [36909876, 22369622, 73819751]


def test_a_planner_that_scores_cells_is_judged_by_the_moves_between_neighbours():
    model = make("baseline", 5, head="cells", positions="absolute")
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4, generator=torch.Generator().manual_seed(p.numel()))
    tasks = sample_tasks(60, 5, min_path=3, seed=1)
    with torch.no_grad():
        table = model.policy(tasks.mazes, tasks.start, tasks.goal, passes=30)
        scores = model(tasks.mazes, tasks.start, tasks.goal, passes=30)
    of_moves = scores.gather(2, tasks.mazes.neighbors().clamp(min=0))  # those of walls do not count
    found = exact_over_passes(model, tasks, (30.0 / 2,))[0]
    short = tasks.length == 3  # so that 30 passes are run for them
    assert 0 < found.sum() < len(tasks) and short.any()
    assert torch.equal(found[short], solved_exactly(table, tasks)[short])
    assert torch.equal(solved_exactly(of_moves, tasks), solved_exactly(table, tasks))


@pytest.mark.parametrize("algorithm", ["dfs", "percolation"])
def test_exact_means_reached_by_as_few_moves_as_there_can_be(algorithm):
    tasks = sample_tasks(30, 6, min_path=8, algorithm=algorithm, seed=2)
    neighbors, distance = tasks.mazes.neighbors(), tasks.mazes.distances(tasks.goal)
    closer = -distance.gather(1, neighbors.clamp(min=0).flatten(1)).view_as(neighbors).float()
    assert solved_exactly(closer, tasks).all()
    assert solved_exactly(-closer, tasks).sum() < 10


def test_a_way_round_a_loop_is_not_exact():
    """2 x 2 cells, all open: from 0 to 1, at once or by 2 and 3."""
    task = MazeTasks(
        MazeBatch(torch.tensor([[[10, 6], [9, 5]]], dtype=torch.uint8)),
        torch.tensor([0]),
        torch.tensor([1]),
        torch.tensor([[0, 1]]),
        torch.tensor([2]),
    )
    direct, round_ = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    direct[0, 0, 3] = 1
    round_[0, [0, 2, 3], [1, 3, 0]] = 1
    assert solved_exactly(direct, task).tolist() == [True] and solved_exactly(round_, task).tolist() == [False]
    assert greedy_rollout(round_, task, moves=True).reached.all()


def test_any_of_several_goals_is_exact_if_none_is_nearer():
    """Five cells in a row, from the second; goals at both ends."""
    mazes = MazeBatch(torch.tensor([[[8, 12, 12, 12, 4]]], dtype=torch.uint8))
    task = MazeTasks(mazes, torch.tensor([1]), torch.tensor([[4, 0, -1]]))
    left, right = torch.zeros(1, 5, 4), torch.zeros(1, 5, 4)
    left[..., 2] = right[..., 3] = 1
    assert solved_exactly(left, task).tolist() == [True] and solved_exactly(right, task).tolist() == [False]
    assert greedy_rollout(right, task).reached.all()


def test_a_corridor_does_not_help():
    """1 x 4 cells, goal at the right end: the second cell points back, which a walk that avoids its steps ignores."""
    task = MazeTasks(
        MazeBatch(torch.tensor([[[8, 12, 12, 4]]], dtype=torch.uint8)),
        torch.tensor([0]),
        torch.tensor([3]),
        torch.tensor([[0, 1, 2, 3]]),
        torch.tensor([4]),
    )
    table = torch.zeros(1, 4, 4)
    table[0, :, 3] = 1
    assert solved_exactly(table, task).tolist() == [True]
    table[0, 1, 2] = 2
    rollout = greedy_rollout(table, task, moves=True)
    assert rollout.optimal.all() and solved_exactly(table, task).tolist() == [False]
    table[0, 1, 0] = 9  # into a wall: no choice
    table[0, 1, 2] = 0
    assert solved_exactly(table, task).tolist() == [True]


def test_batches_hold_every_maze_once_and_few_states(monkeypatch):
    tasks, factors = sample_tasks(70, 7, min_path=6, seed=1), [0.5, 1.0, 2.0]
    monkeypatch.setattr(evaluation, "CELLS_AT_ONCE", 16 * 49)
    monkeypatch.setattr(evaluation, "STATES_AT_ONCE", 12 * 49 * 10)
    parts = list(evaluation._parts(tasks, factors))
    assert sorted(i for part in parts for i in part) == list(range(70)) and len(parts) >= 5

    def fits(part):
        numbers = {n for i in part for n in evaluation.passes_given(int(tasks.length[i]), factors)}
        return len(part) <= 16 and len(part) * len(numbers) <= 120

    assert all(fits(part) for part in parts)
    assert not any(fits([*part, then[0]]) for part, then in pairwise(parts))  # none could have taken one more
    lengths = [int(tasks.length[i]) for part in parts for i in part]
    assert lengths == sorted(lengths, reverse=True)


def test_batches_change_nothing(monkeypatch):
    model = fresh()
    tasks, factors = sample_tasks(30, 6, min_path=4, seed=3), (0.2, 1.0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    whole = exact_over_passes(model, tasks, factors)
    monkeypatch.setattr(evaluation, "STATES_AT_ONCE", 1)  # one maze at a time
    calls = []
    assert torch.equal(exact_over_passes(model, tasks, factors, done=calls.append), whole)
    assert calls == [1] * 30 and 0 < int(whole.sum()) < whole.numel()


def test_settled_cells_solve_the_same_mazes():
    model, _, _ = load("baseline")
    tasks = sample_tasks(20, 12, min_path=50, seed=7)
    factors = (0.3, 0.6, 1.0, 2.0)
    every_cell = exact_over_passes(model, tasks, factors)
    assert torch.equal(exact_over_passes(model, tasks, factors, tolerance=SETTLED), every_cell)
    assert every_cell.any() and not every_cell.all()
    assert exact_over_passes(model, tasks, (2.0,), tolerance=100.0).float().mean() < 0.5  # it reaches the planner


@pytest.mark.parametrize("value", ["-1", "inf", "nan"])
@pytest.mark.parametrize("command", [[], ["evaluate"]])
def test_bad_tolerances_are_named(command, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, f"--tolerance={value}"])
    assert f"must be at least 0 and finite, got {value}" in capsys.readouterr().err


def test_what_is_exact_is_optimal_in_the_rollout_with_ties_and_what_is_not_finite():
    for algorithm in ("dfs", "percolation"):
        tasks = sample_tasks(400, 4, min_path=3, algorithm=algorithm, seed=5)
        table = torch.randint(3, (400, 16, 4), generator=torch.Generator().manual_seed(0)).float()
        table[table == 0] = math.nan
        table[::2][table[::2] == 1] = -math.inf
        exact, rollout = solved_exactly(table, tasks), greedy_rollout(table, tasks, moves=True)
        assert 10 < exact.sum() < 200 and rollout.optimal[exact].all()
        first = best_neighbors(table, tasks.mazes).gather(1, tasks.start[:, None]).squeeze(1)
        assert torch.equal(first, rollout.path[:, 1])  # nothing was visited yet: the two choose alike
