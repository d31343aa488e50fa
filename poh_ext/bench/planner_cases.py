"""Timed cases of the planners: training steps, and passes of the C++ inference against PyTorch's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import poh_ext
from poh_ext._optional import require
from poh_ext.bench import baselines
from poh_ext.bench.case import OURS, Case, close
from poh_ext.models import SHAPES, BaselinePlanner, PoHPlanner, gflop_per_maze, match_width
from poh_ext.models.blocks import Attention
from poh_ext.models.inference import SETTLED
from poh_ext.solve.pretrained import load
from poh_ext.tasks import sample_tasks
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.workers import autocast, choose_precision


def same_moves(found, expected) -> str:
    """'' when every cell that can move would make the same move."""
    a, b = (table[0].argmax(-1) for table in (found, expected))
    different = int((a != b).sum())
    return f"{different} of {a.numel()} cells would move elsewhere" if different else ""


def passes_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(size name, builder) of each case. Each runs twice as many passes as the longest shortest path has moves.

    "every cell" is the same kernel without a tolerance. "eager blocks" runs the planner's own blocks pass by pass.
    """

    def case(name, weights, size, min_path, count):
        def build() -> Case:
            planner = load(weights)[0].to(device, dtype)
            tasks = sample_tasks(count, size, min_path=min_path, seed=0)
            passes = 2 * int(tasks.length.max())
            args = [t.to(device) for t in (tasks.mazes, tasks.start, tasks.goal)]

            def policy(tolerance):
                def call():
                    with torch.no_grad():
                        return (planner.policy(*args, passes=passes, tolerance=tolerance),)

                return call

            @torch.no_grad()
            def blocks():
                tokens, neighbors = planner.embed(args[0].passages, *args[1:]), args[0].neighbors()
                state = planner._begin(tokens)
                for step in range(passes):
                    state = planner._pass(state, tokens, neighbors, step, 0.0)
                return (planner.head(planner._cells(state)).masked_fill(neighbors < 0, -torch.inf),)

            variants = {OURS: policy(SETTLED), "every cell": policy(0.0), "eager blocks": blocks}
            label = f"{passes} passes {name} B{count} N{size * size}"
            return Case(
                "passes",
                label,
                variants,
                same_moves,
                items=dict.fromkeys(variants, count),
                slower={"every cell": 18.0 if name.startswith("baseline") else 3.0},
            )

        return name, build

    yield case("baseline30", "baseline", 30, 225, 8)
    yield case("poh30", "poh", 30, 225, 8)
    yield case("baseline60", "baseline", 60, 900, 1)
    yield "map512", functools.partial(_large_map, device, dtype)


def _large_map(device: torch.device, dtype: torch.dtype) -> Case:
    """One task on a grid of 512x512 with obstacles: the planner, with a pass for each move, against plain searches.

    All return the number of moves from start to goal. The graphs of SciPy and NetworkX are made before.
    """
    planner = load("baseline")[0].to(device, dtype)
    tasks = sample_tasks(1, 512, algorithm="obstacles", density=0.3, min_path=900, seed=0)
    moves, args = int(tasks.length) - 1, [t.to(device) for t in (tasks.mazes, tasks.start, tasks.goal)]
    start, goal = int(tasks.start), int(tasks.goal)
    cell, way = (tasks.mazes.neighbors()[0] >= 0).nonzero(as_tuple=True)
    cells, edges = tasks.mazes.n_cells, (cell.numpy(), tasks.mazes.neighbors()[0][cell, way].numpy())

    def ours():
        with torch.no_grad():
            table = planner.policy(*args, passes=moves, tolerance=SETTLED)
        return (poh_ext.greedy_rollout(table, tasks.to(device), max_steps=moves).steps.cpu().long(),)

    def search():
        path = args[0].shortest_paths(*args[1:])
        return ((path >= 0).sum(1).cpu() - 1,)

    def scipy():
        graph = require("scipy.sparse").csr_array((np.ones(len(edges[0])), edges), shape=(cells, cells))
        sparse = require("scipy.sparse.csgraph")

        def call():
            before, at, steps = sparse.breadth_first_order(graph, goal)[1], start, 0
            while at != goal:
                at, steps = before[at], steps + 1
            return (torch.tensor([steps]),)

        return call

    def networkx():
        nx = require("networkx")
        graph = nx.Graph(zip(*(e.tolist() for e in edges), strict=True))

        def manhattan(a, b):
            return abs(a // 512 - b // 512) + abs(a % 512 - b % 512)

        return lambda: (torch.tensor([len(nx.astar_path(graph, start, goal, manhattan)) - 1]),)

    variants = {
        OURS: ours,
        "MazeBatch.shortest_paths": search,
        "SciPy breadth-first": scipy(),
        "NetworkX A*": networkx(),
    }
    return Case("passes", f"one task of {moves} moves on 512x512 with obstacles", variants, close(0.0))


BATCH, SIZE, CLIP_NORM, DROPOUT = 32, 12, 1.0, 0.1


def _set_dropout(model: nn.Module, p: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        elif isinstance(module, Attention):
            module.dropout = p


def _with_torch_dropout(model: nn.Module) -> nn.Module:
    """The model with torch's own dropout, as a user would write it."""

    def attend(attention: Attention, qkv):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        dropout = attention.dropout if attention.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2)

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.__class__ = nn.Dropout
        elif isinstance(module, Attention):
            module._wide = functools.partial(attend, module)
    return model


def _step(model, loss_of, fused: bool):
    """One training step as a call; returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)

    def call():
        loss = loss_of(model)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return (loss.detach(),)

    return call


@torch.no_grad()
def _difference(ours, plain, models) -> str:
    """What is wrong with the losses of two copies of one model: without dropout, whose masks differ, they may differ by
    the rounding of their precisions only."""
    for model in models:
        _set_dropout(model, 0.0)
    difference = abs(float(ours(models[0])) - float(plain(models[1])))
    for model in models:
        _set_dropout(model, DROPOUT)
    return "" if difference < 0.05 else f"their losses without dropout differ by {difference:.3g}"


def train_cases(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Case]]]:
    """(planner, builder) of each case: the trainer's step against the same model with a plain step.

    The trainer's step has the linear loss, a fused optimiser, and bfloat16 autocast if the machine has it or --dtype
    asks for it. The plain step is eager float32 with the dense eager loss.
    """
    precision = "bfloat16" if dtype == torch.bfloat16 else choose_precision(BenchmarkConfig(), device)
    shape = SHAPES["12x12"]
    planners = {"baseline": (BaselinePlanner, shape), "poh": (PoHPlanner, match_width(SIZE, shape, rule="heads"))}

    def case(name, planner, shape):
        def build() -> Case:
            torch.manual_seed(0)
            models = [planner(SIZE, **shape._asdict(), dropout=DROPOUT).to(device).train() for _ in range(2)]
            models[1].load_state_dict(models[0].state_dict())
            _with_torch_dropout(models[1])
            tasks = poh_ext.sample_tasks(BATCH, SIZE, min_path=51, device=device)
            candidates = tasks.mazes.neighbors()
            options = {"rows": tasks.path, "label_smoothing": 0.1, "horizons": 1, "candidates": candidates}

            def ours(model):
                with autocast(device, precision):
                    hidden = model.hidden(tasks.mazes, tasks.start, tasks.goal)
                weight, bias = model.head.weight.to(hidden.dtype), model.head.bias.to(hidden.dtype)
                return poh_ext.multi_horizon_linear_cross_entropy(
                    hidden, weight, tasks.path, bias=bias, ignore_index=-1, **options
                )

            def plain(model):
                return baselines.eager_cross_entropy(model(tasks.mazes, tasks.start, tasks.goal), tasks.path, **options)

            variants = {
                OURS: _step(models[0], ours, fused=device.type in ("cpu", "cuda")),
                "eager float32": _step(models[1], plain, fused=False),
            }
            wrong = _difference(ours, plain, models)
            flops = int(3 * BATCH * gflop_per_maze(models[0]) * 1e9)
            label = f"training step {name} {SIZE}x{SIZE} B{BATCH} dropout {DROPOUT} {precision}"
            return Case("train", label, variants, lambda *_: wrong, flops=flops, precision=getattr(torch, precision))

        return name, build

    for name, (planner, shape) in planners.items():
        yield case(name, planner, shape)
