"""The number of mazes that a planner solves exactly, over the number of passes that it gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from poh_ext.rollout import solved_exactly
from poh_ext.tasks import MazeTasks

__all__ = ["check_factors", "exact_over_passes", "passes_given", "states_after"]

CELLS_AT_ONCE = 16_384  # of a batch: large enough for the threads, small enough for a cache
STATES_AT_ONCE = 3_000_000  # of cells, kept until a batch is done: some 600 MB


def states_after(model: torch.nn.Module, tasks: MazeTasks, after: Sequence[int], *, tolerance: float = 0.0
                 ) -> list[Tensor]:
    """The state of every cell, [n, N, d], after each of the rising numbers of passes of one run.

    `model.head` makes the scores of the moves from a state. `tolerance`: see the planners' forward.
    """
    return model.hidden_passes(tasks.mazes, tasks.start, tasks.goal, after=after, tolerance=tolerance)


def check_factors(factors: Sequence[float]) -> list[float]:
    """`factors`, if they are one or more positive numbers. Raises ValueError otherwise."""
    if not factors or not all(0 < f < math.inf for f in factors):
        raise ValueError(f"factors must be positive numbers, got {list(factors)}")
    return list(factors)


@torch.no_grad()
def exact_over_passes(model: torch.nn.Module, tasks: MazeTasks, factors: Sequence[float], *,
                      tolerance: float = 0.0, done: Callable[[int], None] = lambda count: None) -> Tensor:
    """bool [len(factors), n]: True for mazes solved exactly with `factor` passes for each move of the shortest path.

    One run per batch serves all factors. Its state is read after each number of passes that one of its mazes needs.

    Args:
        model: a planner with head="moves". It is evaluated in eval mode and in float32, and its mode is restored.
        tasks: n tasks whose goal is not the start.
        factors: positive numbers. 1 gives as many passes as moves. The numbers of passes are rounded up.
        tolerance: see the planners' forward.
        done: called after each batch with the number of its mazes; may raise an error to stop.

    Raises:
        ValueError: there are no factors, or one is not positive.
    """
    factors = check_factors(factors)
    was_training, result = model.training, torch.zeros(len(factors), len(tasks), dtype=torch.bool)
    model.eval()
    try:
        for part in _parts(tasks, factors):
            result[:, part] = _batch(model, tasks[part], factors, tolerance)
            done(len(part))
    finally:
        model.train(was_training)
    return result


def passes_given(cells: int, factors: Sequence[float]) -> list[int]:
    """The number of passes that each factor gives for a shortest path of `cells` cells."""
    return [max(1, math.ceil(factor * (cells - 1))) for factor in factors]


def _parts(tasks: MazeTasks, factors: Sequence[float]) -> Iterator[list[int]]:
    """Batches of mazes with paths of about the same length, because a batch runs as long as its longest path needs."""
    lengths, part, numbers = tasks.length.tolist(), [], set()
    for i in sorted(range(len(tasks)), key=lambda i: -lengths[i]):
        mine = set(passes_given(lengths[i], factors))
        cells, kept = (len(part) + 1) * tasks.mazes.n_cells, len(numbers | mine)
        most = max(CELLS_AT_ONCE, torch.get_num_threads() * tasks.mazes.n_cells)  # a thread takes whole mazes
        if part and (cells > most or cells * kept > STATES_AT_ONCE):
            yield part
            part, numbers = [], set()
        part.append(i)
        numbers |= mine
    if part:
        yield part


def _batch(model: torch.nn.Module, tasks: MazeTasks, factors: Sequence[float], tolerance: float) -> Tensor:
    wanted = [passes_given(cells, factors) for cells in tasks.length.tolist()]
    after = sorted({passes for row in wanted for passes in row})
    place = {passes: i for i, passes in enumerate(after)}
    states = states_after(model, tasks, after, tolerance=tolerance)
    tables = []
    for row in zip(*wanted, strict=True):
        state = torch.stack([states[place[passes]][i] for i, passes in enumerate(row)])
        tables.append(solved_exactly(model.head(state), tasks))
    return torch.stack(tables)
