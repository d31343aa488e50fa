"""Supervision of moves against breadth-first search and sums over single cells."""

import itertools
import math

import pytest
import torch

from poh_ext import MazeBatch, generate_mazes, sample_tasks
from poh_ext.tasks import MazeTasks
from poh_ext.training.step import moves_loss
from poh_ext.training.targets import (
    UNSUPERVISED,
    next_move_targets,
    on_paths,
    optimal_move_targets,
    passes_to_know,
    passes_to_know_paths,
)
from tests.cases.search import STEPS, plain_distances


def search(passages: list[list[int]], goal: int) -> dict[int, int]:
    """Moves to the goal of each cell that has a way there."""
    found = plain_distances(torch.tensor(passages), [goal])
    return {cell: moves for cell, moves in enumerate(found) if moves >= 0}


@pytest.mark.parametrize("algorithm", ["dfs", "wilson", "percolation", "obstacles"])
@pytest.mark.parametrize("reach", [1, 4, 1000])
@pytest.mark.parametrize("size", [(5, 7), (1, 6), (2, 2)])
def test_targets_are_the_first_step_closer_within_reach(algorithm, reach, size):
    mazes = generate_mazes(6, size, algorithm=algorithm, seed=9)
    goal = torch.arange(6) % mazes.n_cells
    targets = next_move_targets(mazes, goal, reach=reach).tolist()
    every = optimal_move_targets(mazes, goal, reach=reach).tolist()
    for passages, at, row, best in zip(mazes.passages.tolist(), goal.tolist(), targets, every, strict=True):
        distance = search(passages, at)
        for cell in range(mazes.n_cells):
            if not 0 < distance.get(cell, 0) <= reach:
                assert row[cell] == UNSUPERVISED and not any(best[cell])
                continue
            r, c = divmod(cell, size[1])
            closer = [
                move
                for move, (down, right) in enumerate(STEPS)
                if passages[r][c] >> move & 1 and distance[(r + down) * size[1] + c + right] == distance[cell] - 1
            ]
            assert row[cell] == closer[0]
            assert [move for move in range(4) if best[cell][move]] == closer


def test_targets_agree_with_the_shortest_paths():
    mazes = generate_mazes(20, 6, algorithm="percolation", seed=1)
    start, goal = torch.arange(20), torch.arange(20).flip(0)
    targets = next_move_targets(mazes, goal, reach=36)
    path = mazes.shortest_paths(start, goal)
    neighbors = mazes.neighbors()
    walked = 0
    for i in range(20):
        for here, there in zip(path[i].tolist(), path[i, 1:].tolist(), strict=False):
            if there >= 0:
                assert neighbors[i, here, targets[i, here]] == there
                walked += 1
    assert walked > 10


def depth(neighbors, cell, came_from, goal):
    """Moves to the last end behind `cell`, seen from `came_from`; infinite if goal or a loop lies there."""
    deepest, todo, seen = 1, [(cell, came_from, 1)], {came_from, cell}
    while todo:
        here, before, far = todo.pop()
        if here == goal:
            return math.inf
        deepest = max(deepest, far)
        for there in neighbors[here]:
            if there >= 0 and there != before:
                if there in seen:
                    return math.inf
                seen.add(there)
                todo.append((there, here, far + 1))
    return deepest


@pytest.mark.parametrize("algorithm", ["dfs", "wilson", "percolation", "obstacles"])
@pytest.mark.parametrize("size", [(5, 7), (1, 6), (2, 2), (9, 9)])
def test_a_move_is_known_when_the_goal_or_the_ends_of_all_other_ways_are_seen(algorithm, size):
    mazes = generate_mazes(6, size, algorithm=algorithm, seed=4)
    goal = torch.arange(6) * 5 % mazes.n_cells
    needed, distance = passes_to_know(mazes, goal), mazes.distances(goal).tolist()
    early = 0
    for b, neighbors in enumerate(mazes.neighbors().tolist()):
        for cell in range(mazes.n_cells):
            away = distance[b][cell]
            ways = [depth(neighbors, there, cell, int(goal[b])) for there in neighbors[cell] if there >= 0]
            if away > 0:
                # The way to the goal has no end; of the others the longest counts.
                ways.remove(math.inf)
                away = min(away, max(ways, default=0))
                early += away < distance[b][cell]
            assert needed[b, cell] == (away if away >= 0 else 2**30)
    assert early > 3 or size == (2, 2)
    starts = torch.arange(6).flip(0) % mazes.n_cells
    path = mazes.shortest_paths(starts, goal)
    tasks = MazeTasks(mazes, starts, goal, path, check=False)  # some are blocked, some without a way
    for found, row, walked in zip(passes_to_know_paths(tasks), needed, path, strict=True):
        assert found == max([int(row[cell]) for cell in walked if cell >= 0], default=0)
    for most in (0, 1, 4):
        assert torch.equal(passes_to_know(mazes, goal, most=most), needed.where(needed <= most, torch.tensor(2**30)))


def test_dead_ends_are_supervised_beyond_the_reach_of_the_goal():
    mazes, goal = generate_mazes(8, 8, seed=3), torch.arange(8)
    near, more = (next_move_targets(mazes, goal, reach=3, dead_ends=d) for d in (False, True))
    every = next_move_targets(mazes, goal, reach=64)
    known = (passes_to_know(mazes, goal) <= 3) & (every != UNSUPERVISED)
    assert torch.equal(more, every.where(known, torch.tensor(UNSUPERVISED)))
    assert ((near == UNSUPERVISED) | (near == more)).all() and (near != more).sum() > 30


def test_reach_must_be_positive():
    with pytest.raises(ValueError, match="reach must be at least 1, got 0"):
        next_move_targets(generate_mazes(1, 3), torch.tensor([0]), reach=0)


def test_loss_is_the_mean_over_supervised_cells():
    logits = torch.randn(2, 5, 4, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(2, 5, 4, dtype=torch.bool)
    targets[0, 1, 3] = targets[1, 4, 0] = targets[1, 4, 2] = True
    loss = moves_loss(logits, targets)
    p = logits.detach().double().softmax(-1)
    assert loss.item() == pytest.approx(-(p[0, 1, 3].log() + (p[1, 4, 0] + p[1, 4, 2]).log()).item() / 2, rel=1e-6)
    loss.backward()
    assert ((logits.grad != 0).any(-1) == targets.any(-1)).all()


def test_a_move_that_is_as_good_as_another_costs_nothing():
    targets = optimal_move_targets(MazeBatch.open(1, 3), torch.tensor([0]), reach=4)
    for first in (0, 2):  # up or left, both right wherever both lead nearer
        logits = torch.where(targets, 0.0, -50.0)
        logits[..., first] += 40
        assert moves_loss(logits, targets & targets.sum(-1, keepdim=True).eq(2)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, -2e4])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_walled_moves_get_no_mass_where_only_allowed_ones_count(smoothing, shift):
    mazes = generate_mazes(5, 4, seed=2)
    targets = optimal_move_targets(mazes, torch.arange(5), reach=6)
    allowed = mazes.neighbors() >= 0
    logits = torch.randn(5, 16, 4, generator=torch.Generator().manual_seed(1)) + shift
    total = []
    for b, n, move in targets.nonzero().tolist():  # without loops, one of a cell
        log_p = logits[b, n, allowed[b, n]].double().log_softmax(0)
        hit = int(allowed[b, n, :move].sum())
        total.append(-(1 - smoothing) * log_p[hit] - smoothing * log_p.mean())
    found = moves_loss(logits, targets, allowed=allowed, label_smoothing=smoothing)
    assert found.item() == pytest.approx(sum(total).item() / len(total), rel=1e-5)
    summed = moves_loss(logits, targets, allowed=allowed, label_smoothing=smoothing, reduction="sum")
    assert summed.item() == pytest.approx(sum(total).item(), rel=1e-5)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(moves_loss(logits, targets, allowed=allowed, label_smoothing=smoothing), logits)
    assert gradient.isfinite().all() and (gradient[~allowed] == 0).all() and (gradient != 0).any()
    everything = moves_loss(logits, targets, label_smoothing=smoothing)
    assert everything.item() == pytest.approx(
        moves_loss(logits, targets, allowed=torch.ones_like(allowed), label_smoothing=smoothing).item(), rel=1e-5
    )
    assert everything.item() != pytest.approx(found.item(), rel=1e-3)


def test_a_loss_of_no_cell_is_zero_with_a_gradient_of_zeros():
    logits = torch.randn(2, 4, 4, requires_grad=True)
    moves_loss(logits, torch.zeros(2, 4, 4, dtype=torch.bool)).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_targets_of_the_path_alone_are_its_moves():
    tasks = sample_tasks(12, 5, min_path=4, algorithm="percolation", seed=3)
    targets = on_paths(optimal_move_targets(tasks.mazes, tasks.goal, reach=25), tasks)
    neighbors = tasks.mazes.neighbors()
    for i in range(12):
        path = [cell for cell in tasks.path[i].tolist() if cell >= 0]
        assert sorted(targets[i].any(-1).nonzero().flatten().tolist()) == sorted(path[:-1])
        assert all(b in neighbors[i, a, targets[i, a]] for a, b in itertools.pairwise(path))
