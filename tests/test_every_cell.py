"""Supervision of every cell against breadth-first search, and batches that depend on seed and step alone."""

from collections import deque

import pytest
import torch

from poh_ext import generate_mazes
from poh_ext.training.every_cell import UNSUPERVISED, every_cell_batch, every_cell_loss, next_move_targets

STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right
DRAW = {"seed": 3, "batch_size": 8, "sizes": (3, 6), "passes": (2, 9)}


def search(passages: list[list[int]], goal: int) -> dict[int, int]:
    """Moves to the goal by breadth-first search, cell by cell."""
    width, distance, queue = len(passages[0]), {goal: 0}, deque([goal])
    while queue:
        cell = queue.popleft()
        row, column = divmod(cell, width)
        for bit, (down, right) in enumerate(STEPS):
            other = (row + down) * width + column + right
            if passages[row][column] >> bit & 1 and other not in distance:
                distance[other] = distance[cell] + 1
                queue.append(other)
    return distance


@pytest.mark.parametrize("algorithm", ["dfs", "wilson", "percolation"])
@pytest.mark.parametrize("reach", [1, 4, 1000])
@pytest.mark.parametrize("size", [(5, 7), (1, 6), (2, 2)])
def test_targets_are_the_first_step_closer_within_reach(algorithm, reach, size):
    mazes = generate_mazes(6, size, algorithm=algorithm, seed=9)
    goal = torch.arange(6) % mazes.n_cells
    targets = next_move_targets(mazes, goal, reach=reach).tolist()
    for passages, at, row in zip(mazes.passages.tolist(), goal.tolist(), targets, strict=True):
        distance = search(passages, at)
        for cell in range(mazes.n_cells):
            if not 0 < distance.get(cell, 0) <= reach:
                assert row[cell] == UNSUPERVISED
                continue
            r, c = divmod(cell, size[1])
            closer = [
                move for move, (down, right) in enumerate(STEPS)
                if passages[r][c] >> move & 1
                and distance[(r + down) * size[1] + c + right] == distance[cell] - 1
            ]
            assert row[cell] == closer[0]


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


def test_reach_must_be_positive():
    with pytest.raises(ValueError, match="reach must be at least 1, got 0"):
        next_move_targets(generate_mazes(1, 3), torch.tensor([0]), reach=0)


def test_loss_is_the_mean_over_supervised_cells():
    logits = torch.randn(2, 5, 4, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.full((2, 5), UNSUPERVISED)
    targets[0, 1], targets[1, 4] = 3, 0
    loss = every_cell_loss(logits, targets)
    log_p = logits.detach().double().log_softmax(-1)
    assert loss.item() == pytest.approx(-(log_p[0, 1, 3] + log_p[1, 4, 0]).item() / 2, rel=1e-6)
    loss.backward()
    assert ((logits.grad != 0).any(-1) == (targets != UNSUPERVISED)).all()


def test_a_batch_is_a_function_of_seed_and_step():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = [every_cell_batch(step, **DRAW) for step in range(150)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    for step in (39, 0, 17):  # in any order, whatever was drawn before
        again, before = every_cell_batch(step, **DRAW), first[step]
        assert again.passes == before.passes
        assert torch.equal(again.mazes.passages, before.mazes.passages)
        assert all(torch.equal(getattr(again, name), getattr(before, name)) for name in ("start", "goal", "targets"))
    assert {b.mazes.height for b in first} == {3, 4, 5, 6}
    assert {b.passes for b in first} == set(range(2, 10))
    other = every_cell_batch(0, **{**DRAW, "seed": 4})
    assert other.mazes.passages.shape != first[0].mazes.passages.shape or not torch.equal(
        other.mazes.passages, first[0].mazes.passages)


def test_supervised_cells_are_within_the_passes_of_the_batch():
    for step in range(20):
        batch = every_cell_batch(step, **DRAW)
        distance = batch.mazes.distances(batch.goal)
        assert torch.equal(batch.targets != UNSUPERVISED, (distance > 0) & (distance <= batch.passes))
