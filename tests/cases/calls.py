"""A small call of each operator, forward and where it has one backward, for tests of memory and of threads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import poh_ext
from tests.cases.planners import make

BATCH, SIZE, CLASSES, WIDTH = 4, 6, 36, 16

Call = Callable[[], list[Tensor]]


def differentiated(function: Callable[..., Tensor | tuple[Tensor, ...]], *leaves: Tensor, **options) -> Call:
    """A call on copies of the leaves: its results and the gradients of their sum."""

    def call() -> list[Tensor]:
        given = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        found = function(*given, **options)
        found = list(found) if isinstance(found, tuple) else [found]
        gradients = torch.autograd.grad(sum(each.sum() for each in found), given)
        return [*(each.detach() for each in found), *gradients]

    return call


def planning(planner: str, tasks: poh_ext.MazeTasks) -> tuple[Call, Call]:
    """(a training step without the update, inference of many passes)."""
    model, given = make(planner, size=SIZE, depth=1), (tasks.mazes, tasks.start, tasks.goal)
    weights = list(model.parameters())

    def train() -> list[Tensor]:
        loss = model(*given).square().mean()
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]

    def infer() -> list[Tensor]:
        with torch.no_grad():
            return [model.policy(*given, passes=4, tolerance=1e-3)]

    return train, infer


def calls() -> dict[str, Call]:
    """Calls by name; each gives the same tensors every time, from any thread."""
    g = torch.Generator().manual_seed(0)
    tasks = poh_ext.sample_tasks(BATCH, SIZE, min_path=4, seed=1)
    mazes, path = tasks.mazes, tasks.path
    candidates = mazes.neighbors()
    logits = torch.randn(BATCH, CLASSES, CLASSES, generator=g)
    hidden = torch.randn(BATCH, CLASSES, WIDTH, generator=g)
    weight = torch.randn(CLASSES, WIDTH, generator=g)
    target = torch.randint(CLASSES, (BATCH * CLASSES,), generator=g)
    heads = torch.randn(3, BATCH, 2, CLASSES, WIDTH, generator=g)
    weights = torch.randn(BATCH, CLASSES, 4, generator=g)
    planned = {"horizons": 3, "ignore_index": -1, "rows": path, "label_smoothing": 0.1}
    table = torch.randn(BATCH, CLASSES, 4, generator=g)
    found = {
        "cross_entropy": differentiated(
            lambda x: poh_ext.cross_entropy(x, target, label_smoothing=0.1, z_loss=0.01), logits.flatten(0, 1)
        ),
        "linear_cross_entropy": differentiated(
            lambda x, w: poh_ext.linear_cross_entropy(x, w, target), hidden.flatten(0, 1), weight
        ),
        "multi_horizon_cross_entropy": differentiated(
            lambda x: poh_ext.multi_horizon_cross_entropy(x, path, candidates=candidates, **planned), logits
        ),
        "multi_horizon_linear_cross_entropy": differentiated(
            lambda x, w: poh_ext.multi_horizon_linear_cross_entropy(x, w, path, **planned), hidden, weight
        ),
        "routing_entropy": differentiated(poh_ext.routing_entropy, weights),
        "route": differentiated(poh_ext.route, weights),
        "neighbor_attention": differentiated(
            lambda q, k, v: poh_ext.neighbor_attention(q, k, v, candidates), *heads.unbind(0)
        ),
        "distances": lambda: [mazes.distances(tasks.goal)],
        "shortest_paths": lambda: [mazes.shortest_paths(tasks.start, tasks.goal)],
        "sample_tasks": lambda: [poh_ext.sample_tasks(BATCH, SIZE, min_path=4, seed=3).path],
        "masks": lambda: [mazes.neighbors(), mazes.valid_mask(), mazes.raster(), mazes.free()],
        "greedy_rollout": lambda: [poh_ext.greedy_rollout(table, tasks).path],
        "random_rollout": lambda: [poh_ext.random_rollout(tasks, 5, max_steps=4).path],
        "recondition_rollout": lambda: [
            poh_ext.recondition_rollout(lambda mazes, at, goal: table[: len(mazes), 0], tasks, max_steps=4).path
        ],
    }
    for algorithm in poh_ext.GENERATORS:
        found[f"generate_mazes {algorithm}"] = lambda algorithm=algorithm: [
            poh_ext.generate_mazes(BATCH, SIZE, algorithm=algorithm, seed=7).passages
        ]
    for planner in ("baseline", "pooled", "token"):
        found[f"training {planner}"], found[f"inference {planner}"] = planning(planner, tasks)
    return found
