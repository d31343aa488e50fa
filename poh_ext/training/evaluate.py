"""How well a planner plans: mazes reached, reached optimally, solved exactly, and next moves predicted.

One forward pass per batch of mazes yields the scores of every cell's four moves; a batched rollout follows them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from poh_ext.mazes import MazeBatch
from poh_ext.rollout import best_neighbors, greedy_rollout, recondition_rollout, solved_exactly
from poh_ext.tasks import MazeTasks
from poh_ext.training.device import autocast
from poh_ext.training.progress import Progress

__all__ = ["Evaluation", "evaluate", "evaluate_random", "first_maze_routing", "next_move_accuracy"]


@dataclass(frozen=True)
class Evaluation:
    """Raw outcomes on the test mazes, in their order.

    Attributes:
        reached, optimal: bool [n], of the rollout.
        exact: bool [n], `solved_exactly`: by the table alone, without the rollout's memory. None for
            decode="recondition" and the random policy, which walk by other scores at every step.
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
def evaluate(model: torch.nn.Module, tasks: MazeTasks, *, decode: str = "table", batch_size: int = 64,
             passes: int | None = None, tolerance: float = 0.0, precision: str = "float32",
             view: Callable[[MazeBatch], MazeBatch] = lambda mazes: mazes,
             check: Callable[[], None] = lambda: None, observe: Callable[[], None] = lambda: None,
             label: str = "evaluating") -> Evaluation:
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
        view: what the planner is shown of the mazes; the rollout itself always meets their walls.
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
            return model.policy(view(mazes), start, goal, **chosen).float()

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
    return _outcome(torch.cat(tables), rollouts, tasks, seconds, exactly=decode == "table")


@torch.no_grad()
def first_maze_routing(model: torch.nn.Module, tasks: MazeTasks, *, passes: int | None = None,
                       tolerance: float = 0.0, precision: str = "float32",
                       view: Callable[[MazeBatch], MazeBatch] = lambda mazes: mazes) -> tuple[torch.Tensor, float]:
    """(routing weights [R, depth, 1, ...], entropy in nats) of a PoH planner in eval mode on the first of `tasks`."""
    device = next(model.parameters()).device
    was_training = model.training
    task = tasks[:1].to(device)
    model.eval()
    try:
        with autocast(device, precision):
            model.hidden(view(task.mazes), task.start, task.goal, passes=passes, tolerance=tolerance)
    finally:
        model.train(was_training)
    return model.routing_weights().float().cpu(), float(model.routing_entropy())


def evaluate_random(tasks: MazeTasks, seed: int) -> Evaluation:
    """The control that knows nothing: scores drawn afresh at every step, the same rollout.

    Afresh, because a fixed random table walks to and fro between two cells once it meets a dead end, and would make
    the control look worse than a random walk is.
    """
    draws = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    rollout = recondition_rollout(lambda mazes, *_: torch.rand(len(mazes), 4, generator=draws), tasks)
    seconds = time.perf_counter() - started
    table = torch.rand(len(tasks), tasks.mazes.n_cells, 4, generator=draws)  # for the next moves; none was followed
    return _outcome(table, [rollout], tasks, seconds, exactly=False)


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


def _outcome(table: torch.Tensor, rollouts: list, tasks: MazeTasks, seconds: float, *, exactly: bool) -> Evaluation:
    correct, total = next_move_accuracy(table, tasks)
    paths = [[cell for cell in path if cell >= 0] for r in rollouts for path in r.path.tolist()]
    return Evaluation(torch.cat([r.reached.cpu() for r in rollouts]), torch.cat([r.optimal.cpu() for r in rollouts]),
                      solved_exactly(table, tasks) if exactly else None, paths, correct, total,
                      len(tasks) / max(seconds, 1e-9))
