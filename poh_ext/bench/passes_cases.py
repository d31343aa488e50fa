"""Timed cases of many passes without a graph: a trained planner from a maze to the moves of all cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from poh_ext.bench.case import OURS, Case
from poh_ext.models.inference import SETTLED
from poh_ext.solve.pretrained import load
from poh_ext.tasks import sample_tasks


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
