"""Planners on one map that all tasks share, with several goals, and on several threads."""

import contextlib

import pytest
import torch

import poh_ext
from poh_ext import MazeBatch, MazeTasks
from poh_ext.rollout import solved_exactly
from poh_ext.solve.evaluation import exact_over_passes
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.targets import moves_targets, next_move_targets, passes_to_know, passes_to_know_paths, step_passes
from tests.cases.backends import needs_kernels, reference
from tests.cases.planners import PLANNERS, SHAPE, embed_alone, make
from tests.cases.search import plain_distances

ONE_BLOCK = {**SHAPE, "depth": 1}


def on_one_map(n: int = 7, size=(7, 9), seed: int = 3) -> MazeTasks:
    """Tasks with paths on one grid with obstacles, from anywhere to one to three goals."""
    grid = poh_ext.generate_mazes(1, size, algorithm="obstacles", density=0.2, seed=seed)
    inside = grid.distances(torch.tensor([int(grid.free().flatten().nonzero()[0])]))[0] >= 0
    generator = torch.Generator().manual_seed(seed)
    cells = torch.stack(
        [inside.nonzero()[:, 0][torch.randperm(int(inside.sum()), generator=generator)[:4]] for _ in range(n)]
    )
    goal = cells[:, 1:].clone()
    goal[::2, 1] = -1
    goal[::3, 2] = -1
    return MazeTasks(grid, cells[:, 0].contiguous(), goal)


def copied(tasks: MazeTasks) -> MazeTasks:
    mazes = MazeBatch(
        tasks.mazes.passages.clone(memory_format=torch.contiguous_format), free=tasks.mazes.free().contiguous()
    )
    return MazeTasks(mazes, tasks.start, tasks.goal, tasks.path, tasks.length)


def inputs(tasks: MazeTasks) -> tuple:
    return tasks.mazes, tasks.start, tasks.goal


@pytest.mark.parametrize(
    "options", [{}, {"maze_enc": True}, {"valid_heads": 1}, {"head": "cells"}, {"cell_features": 1}]
)
@pytest.mark.parametrize("name", PLANNERS)
def test_a_shared_map_is_as_good_as_copies(name, options):
    tasks = on_one_map()
    apart = copied(tasks)
    assert tasks.mazes.passages.stride(0) == 0 != apart.mazes.passages.stride(0)
    model = make(name, (7, 9), **options)
    for graph in (True, False):  # by the blocks and, where it serves, by the kernel
        with contextlib.nullcontext() if graph else torch.no_grad():
            for call in (model, model.policy):
                assert torch.equal(call(*inputs(tasks), passes=9), call(*inputs(apart), passes=9))
    with torch.no_grad():
        blocked = ~tasks.mazes.free().flatten(1)
        assert blocked.any() and (model.policy(*inputs(tasks))[blocked] == -torch.inf).all()


@pytest.mark.parametrize("features", [1, 4, 6])
@pytest.mark.parametrize("name", ["baseline", "pooled"])
def test_every_goal_is_marked(name, features):
    tasks = on_one_map()
    model = make(name, (7, 9), cell_features=features, positions="absolute")
    tokens = model.embed(tasks.mazes.passages, tasks.start, tasks.goal)
    for i in range(len(tasks)):
        goals = [goal for goal in tasks.goal[i].tolist() if goal >= 0]
        one = tasks.mazes.passages[i : i + 1], tasks.start[i : i + 1]
        for cell in range(tasks.mazes.n_cells):
            # A token depends on its own cell alone: it is as if this goal were the only one.
            like = cell if cell in goals else goals[0]
            alone = model.embed(*one, torch.tensor([like]))
            torch.testing.assert_close(tokens[i, cell], alone[0, cell], rtol=1e-6, atol=1e-6)
    first = tasks.goal[:, 0].contiguous()
    for padded in (first[:, None], torch.stack((first, first, torch.full_like(first, -1)), 1)):
        assert torch.equal(model(*inputs(tasks)[:2], padded), model(*inputs(tasks)[:2], first))


@pytest.mark.parametrize(
    "goal, error, message",
    [
        (torch.zeros(7, 0, dtype=torch.int64), ValueError, r"goal must have shape \(7,\) or \(7, G\), got \(7, 0\)"),
        (torch.zeros(6, 2, dtype=torch.int64), ValueError, r"goal must have shape \(7,\) or \(7, G\), got \(6, 2\)"),
        (torch.zeros(7, 1, 1, dtype=torch.int64), ValueError, r"got \(7, 1, 1\)"),
        (torch.tensor([[0, -1]] * 6 + [[-1, 0]]), IndexError, r"goal\[6, 0\] is -1, but cells are 0 to 62"),
        (torch.tensor([[0, -1]] * 6 + [[0, 63]]), IndexError, r"goal\[6, 1\] is 63, but cells are 0 to 62"),
        (torch.tensor([[0, -2]] * 7), IndexError, r"goal\[0, 1\] is -2, but"),
        (torch.tensor([0] * 6 + [-1]), IndexError, r"goal\[6\] is -1, but cells are 0 to 62"),
    ],
)
def test_bad_goals(goal, error, message):
    tasks = on_one_map()
    with pytest.raises(error, match=message):
        make("baseline", (7, 9))(tasks.mazes, tasks.start, goal)
    with pytest.raises(ValueError, match=r"start must have shape \(7,\), got \(7, 1\)"):
        make("baseline", (7, 9))(tasks.mazes, tasks.start[:, None], tasks.goal)


@needs_kernels
@pytest.mark.parametrize("tolerance", [0.0, 0.02])
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["baseline", "pooled"])
def test_fused_passes_do_not_depend_on_the_threads(name, batch, tolerance):
    """Threads take mazes, or tiles of 32 cells where there are fewer mazes than threads."""
    tasks = poh_ext.sample_tasks(batch, (21, 23), min_path=60, seed=1)
    model, before = make(name, **ONE_BLOCK), torch.get_num_threads()
    for p in model.parameters():
        torch.nn.init.uniform_(p, -0.3, 0.3)
    after, found = (1, 5, 40), []
    embed_alone(model)
    try:
        for threads in (1, 2, 3, 4, 8):
            torch.set_num_threads(threads)
            with torch.no_grad():
                states = model.hidden_passes(*inputs(tasks), after=after, tolerance=tolerance)
            routed = model.routing_weights() if model.has_router else torch.zeros(())
            found.append((*states, routed))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    slow = model.hidden_passes(*inputs(tasks), after=after, tolerance=0.0)  # with a graph: by the blocks
    close = {"rtol": 2e-3, "atol": 2e-4} if tolerance == 0 else {"rtol": 0, "atol": 0.5}
    torch.testing.assert_close(list(found[0][:3]), [s.detach() for s in slow], **close)


def test_evaluation_on_a_shared_map():
    tasks = on_one_map(12)
    tasks = tasks[tasks.length > 1]
    model = make("baseline", **ONE_BLOCK)
    shared, apart = (exact_over_passes(model, t, [1, 3], tolerance=0.01) for t in (tasks, copied(tasks)))
    assert torch.equal(shared, apart)
    with torch.no_grad():
        table = model.policy(*inputs(tasks))
    assert torch.equal(solved_exactly(table, tasks), solved_exactly(table, copied(tasks)))
    with reference():
        assert torch.equal(exact_over_passes(model, tasks, [1, 3], tolerance=0.01), shared)


@pytest.mark.parametrize("algorithm", ["dfs", "percolation", "obstacles"])
def test_targets_lead_to_the_nearest_goal(algorithm):
    mazes = poh_ext.generate_mazes(8, (6, 7), algorithm=algorithm, seed=2)
    goal = torch.stack((torch.arange(8), torch.arange(8) * 5, torch.tensor([41, -1] * 4)), 1)
    targets, around = next_move_targets(mazes, goal, reach=42), mazes.neighbors()
    needed = passes_to_know(mazes, goal)
    for b in range(8):
        distance = plain_distances(mazes.passages[b], goal[b].tolist())
        for cell, away in enumerate(distance):
            if away <= 0:
                assert targets[b, cell] == -100 and needed[b, cell] == (0 if away == 0 else 2**30)
                continue
            ways = [d for d, to in enumerate(around[b, cell].tolist()) if to >= 0 and distance[to] == away - 1]
            assert targets[b, cell] == ways[0] and 0 <= needed[b, cell] <= away
            if len(around[b, cell][around[b, cell] >= 0]) == 1:  # a dead end has one way to go
                assert needed[b, cell] == 0
    for same in (goal[:, :1].contiguous(), torch.stack((goal[:, 0], torch.full((8,), -1)), 1)):
        assert torch.equal(passes_to_know(mazes, same), passes_to_know(mazes, goal[:, 0].contiguous()))
        assert torch.equal(
            next_move_targets(mazes, same, reach=5), next_move_targets(mazes, goal[:, 0].contiguous(), reach=5)
        )


def test_targets_on_a_shared_map():
    tasks = on_one_map()
    config = BenchmarkConfig(head="moves", supervision="all", reach="seen")
    passes = step_passes(config, 6, looped=True)
    for a, b in zip(moves_targets(tasks, config, passes), moves_targets(copied(tasks), config, passes), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(passes_to_know_paths(tasks), passes_to_know_paths(copied(tasks)))
