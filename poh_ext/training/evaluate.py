"""How well a planner plans: mazes reached, reached optimally, solved exactly, and next moves predicted.

One forward pass per batch of mazes yields the scores of every cell's four moves; a batched rollout follows them. A
planner is evaluated in one way (`evaluation_options`) after its training, between its epochs, and for pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from poh_ext.models.base import Planner
from poh_ext.results import CONTROLS, Row
from poh_ext.rollout import (
    Rollout,
    beeline_policy,
    best_neighbors,
    greedy_rollout,
    is_optimal,
    random_policy,
    random_rollout,
    recondition_rollout,
    solved_exactly,
)
from poh_ext.tasks import MazeTasks
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.presets import protocol_of
from poh_ext.training.progress import Progress
from poh_ext.training.workers import autocast

__all__ = [
    "Evaluation",
    "Validation",
    "counting_options",
    "evaluate",
    "evaluate_control",
    "evaluation_options",
    "evaluation_passes",
    "first_maze_routing",
    "next_move_accuracy",
    "shares",
    "validations",
]


@dataclass(frozen=True)
class Evaluation:
    """Raw outcomes on the test mazes, in their order.

    Attributes:
        reached, optimal: bool [n], of the rollout.
        exact: bool [n], `solved_exactly`: by the table alone, without the rollout's memory. None for
            decode="recondition" and the random policy, which walk by other scores at every step, and where the mazes
            are not those of the paths.
        paths: the cells walked, start first; one list per maze.
        moves_correct, moves_total: cells of the true paths whose next move scores best, of how many.
        mazes_per_second: planned and rolled out.
    """

    reached: torch.Tensor
    optimal: torch.Tensor
    exact: torch.Tensor | None
    paths: list[list[int]]
    moves_correct: int
    moves_total: int
    mazes_per_second: float


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    tasks: MazeTasks,
    *,
    decode: str = "table",
    batch_size: int = 64,
    passes: int | None = None,
    tolerance: float = 0.0,
    precision: str = "float32",
    count_start: bool = False,
    true_mazes: bool = True,
    check: Callable[[], None] = lambda: None,
    observe: Callable[[], None] = lambda: None,
    label: str = "evaluating",
) -> Evaluation:
    """Evaluate a planner in eval mode, on the device of its weights.

    Args:
        model: has `policy(mazes, start, goal) -> [B, N, 4]`, the scores of each cell's moves.
        tasks: test mazes.
        decode: "table" follows the scores given for the task's start; "recondition" runs the network again with
            each new position as the start. Next moves are scored from the table in both.
        batch_size: mazes per forward pass.
        passes: of a planner whose `policy` takes them; None: its own number.
        tolerance: below which its cells are at rest: see the planners' forward. 0: not given to `policy`.
        precision: "float32" or "bfloat16" (autocast).
        count_start: optimal compares cells, the start included: see `rollout.is_optimal`.
        true_mazes: False: the tasks' paths are those of other mazes, and `exact` is None.
        check: called before each forward pass; may raise to stop.
        observe: called after each forward pass that yields the table of a batch.
        label: shown with the progress.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    tables, rollouts = [], []
    chosen = ({} if passes is None else {"passes": passes}) | ({"tolerance": tolerance} if tolerance else {})

    def policy(mazes, start, goal) -> torch.Tensor:
        check()
        with autocast(device, precision):
            return model.policy(mazes, start, goal, **chosen).float()

    def moves_here(mazes, position, goal) -> torch.Tensor:
        return policy(mazes, position, goal)[torch.arange(len(position), device=device), position]

    started = time.perf_counter()
    try:
        with Progress(label, total=len(tasks), unit="maze", ends=False) as progress:
            for first in range(0, len(tasks), batch_size):
                batch = tasks[first : first + batch_size].to(device)
                table = policy(batch.mazes, batch.start, batch.goal)
                observe()
                rollout = greedy_rollout(table, batch) if decode == "table" else recondition_rollout(moves_here, batch)
                tables.append(table.cpu())
                rollouts.append(rollout)
                progress.step(len(batch))
    finally:
        model.train(was_training)
    seconds = time.perf_counter() - started
    return _outcome(
        torch.cat(tables), rollouts, tasks, seconds, count_start=count_start, exactly=true_mazes and decode == "table"
    )


@torch.no_grad()
def first_maze_routing(
    model: torch.nn.Module,
    tasks: MazeTasks,
    *,
    passes: int | None = None,
    tolerance: float = 0.0,
    precision: str = "float32",
) -> tuple[torch.Tensor, float]:
    """(routing weights [R, depth, 1, ...], entropy in nats) of a PoH planner in eval mode on the first of `tasks`."""
    device = next(model.parameters()).device
    was_training = model.training
    task = tasks[:1].to(device)
    model.eval()
    try:
        with autocast(device, precision):
            model.hidden(task.mazes, task.start, task.goal, passes=passes, tolerance=tolerance)
    finally:
        model.train(was_training)
    return model.routing_weights().float().cpu(), float(model.routing_entropy())


def evaluate_control(
    name: str, tasks: MazeTasks, seed: int, *, count_start: bool = False, true_mazes: bool = True
) -> Evaluation:
    """A control that learned nothing.

    Args:
        name: "random": scores drawn afresh at every step (`random_rollout`); "random_table": one fixed table of random
            scores for all mazes; "beeline": always nearer to the goal, whatever the walls.
        tasks: test mazes.
        seed: of the random ones.
        count_start, true_mazes: as in `evaluate`.
    """
    if name not in CONTROLS:
        raise ValueError(f"unknown control {name!r}; known: {', '.join(CONTROLS)}")
    started = time.perf_counter()
    table = beeline_policy(tasks) if name == "beeline" else random_policy(tasks, seed, shared=True)
    rollout = random_rollout(tasks, seed) if name == "random" else greedy_rollout(table, tasks)
    seconds = time.perf_counter() - started  # for "random", the table is for the next moves alone
    return _outcome(table, [rollout], tasks, seconds, count_start=count_start, exactly=true_mazes and name != "random")


def next_move_accuracy(table: torch.Tensor, tasks: MazeTasks) -> tuple[int, int]:
    """(correct, total) over all cells of all shortest paths but the goals.

    A move counts as correct when the best-scored passable neighbour (ties: the lower cell, as in the rollout) is
    the next cell of the path.

    Args:
        table: scores [n, N, 4].
        tasks: n tasks with paths [n, L].
    """
    here, following = tasks.path[:, :-1], tasks.path[:, 1:]
    counted = following >= 0
    chosen = best_neighbors(table, tasks.mazes).gather(1, here.clamp(min=0))
    return int(((chosen == following) & counted).sum()), int(counted.sum())


def _outcome(
    table: torch.Tensor, rollouts: list[Rollout], tasks: MazeTasks, seconds: float, *, count_start: bool, exactly: bool
) -> Evaluation:
    correct, total = next_move_accuracy(table, tasks)
    paths = [[cell for cell in path if cell >= 0] for r in rollouts for path in r.path.tolist()]
    reached, steps = (torch.cat([getattr(r, name).cpu() for r in rollouts]) for name in ("reached", "steps"))
    return Evaluation(
        reached,
        is_optimal(reached, steps, tasks.length.cpu(), count_start=count_start),
        solved_exactly(table, tasks) if exactly else None,
        paths,
        correct,
        total,
        len(tasks) / max(seconds, 1e-9),
    )


def shares(outcome: Evaluation | Row) -> dict[str, float]:
    """The shares of the mazes reached, reached optimally and, where known, solved exactly."""
    found = {name: getattr(outcome, name) for name in ("reached", "optimal", "exact")}
    known = {name: torch.as_tensor(values) for name, values in found.items() if values is not None and len(values)}
    return {name: int(values.sum()) / len(values) for name, values in known.items()}


def evaluation_passes(model: Planner, config: BenchmarkConfig) -> int | None:
    """How many passes `model` is tested with; None: its own one."""
    return config.test_passes if model.looped else None


def evaluation_options(model: Planner, config: BenchmarkConfig, precision: str) -> dict[str, Any]:
    """Arguments of `evaluate`: passes, tolerance, arithmetic, and what counts as optimal and exact.

    Args:
        model: the planner; one that does not loop has its own number of passes, and no cell at rest in them.
        config: of its row.
        precision: of the run.
    """
    return {
        "passes": evaluation_passes(model, config),
        "tolerance": config.tolerance if model.looped else 0.0,
        "precision": config.evaluation_precision(precision),
        **counting_options(config),
    }


def counting_options(config: BenchmarkConfig) -> dict[str, bool]:
    """Arguments of `evaluate` and `evaluate_control`: what counts as optimal, and whether exactness can be told."""
    protocol = protocol_of(config)
    return {"count_start": protocol.count_start, "true_mazes": protocol.true_mazes}


class Validation:
    """Evaluates a planner after some of the epochs of its training, as after it. It draws no random numbers and
    changes no weights: what is trained is the same with it and without it.

    Args:
        config: `validate_every` says after which epochs: every so many, and the last.
        tasks: validation mazes.
        precision: of the run.
    """

    def __init__(self, config: BenchmarkConfig, tasks: MazeTasks, precision: str) -> None:
        self.config, self.tasks, self.precision = config, tasks, precision

    def due(self, epoch: int) -> bool:
        """After epoch `epoch`, from 0."""
        return (epoch + 1) % self.config.validate_every == 0 or epoch + 1 == self.config.epochs

    def __call__(self, model: Planner) -> dict[str, Any]:
        """Validation mazes, and the shares of them reached, reached optimally and, where known, solved exactly."""
        # It is not stopped on the way: a signal waits for the end of a training step too, and a point is kept whole.
        outcome = evaluate(
            model,
            self.tasks,
            decode=self.config.decode_used,
            label="validating",
            **evaluation_options(model, self.config, self.precision),
        )
        return {"mazes": len(self.tasks), **shares(outcome)}


def validations(config: BenchmarkConfig) -> int:
    """The number of validations in a whole training."""
    return -(-config.epochs // config.validate_every) if config.validate_every else 0
