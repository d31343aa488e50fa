"""Rollouts: walks of a policy through mazes, and whether they reach the goal and how directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from poh_ext._checks import FLOATS, check_int, work_device
from poh_ext.mazes import MazeBatch
from poh_ext.ops import maze
from poh_ext.reference.maze_graph import at_goals, walk
from poh_ext.reference.philox import STREAM_POLICY, philox4x32
from poh_ext.tasks import MazeTasks

__all__ = [
    "Rollout",
    "beeline_policy",
    "best_neighbors",
    "greedy_rollout",
    "is_optimal",
    "random_policy",
    "random_rollout",
    "recondition_rollout",
    "solved_exactly",
]


class Rollout(NamedTuple):
    """The outcome of n walks, as `greedy_rollout` and `recondition_rollout` return it.

    Attributes:
        reached: bool [n], True if the walk reached the goal; of several goals any.
        optimal: bool [n], True if it did so in at most 1.05 x the moves of the task's path: see `is_optimal`.
        path: int64 [n, S], the cells walked, with the start, padded with -1; S = max_steps + 1.
        steps: int64 [n], the number of moves made.

    Examples:
        >>> walk = greedy_rollout(logits, tasks)
        >>> walk.reached.float().mean(), walk.optimal.float().mean()
    """

    reached: Tensor
    optimal: Tensor
    path: Tensor
    steps: Tensor


def _rollout(reached: Tensor, path: Tensor, steps: Tensor, tasks: MazeTasks) -> Rollout:
    return Rollout(reached, is_optimal(reached, steps, tasks.length), path, steps)


def is_optimal(reached: Tensor, steps: Tensor, length: Tensor, *, count_start: bool = False) -> Tensor:
    """bool [n]: True if the goal was reached in at most 1.05 x the moves of the task's path.

    Args:
        reached, steps: fields of a `Rollout`.
        length: int64 [n], cells on the paths of the tasks (`MazeTasks.length`), one more than their moves.
        count_start: compare numbers of cells, with the start, instead of moves, as the published evaluation does. This
            allows one move more on a path of 40, 80, 120 ... cells.
    """
    start = int(count_start)
    return reached & (20 * (steps + start) <= 21 * (length - 1 + start))  # 1.05 = 21 / 20, in whole numbers


def _check_tasks(tasks: MazeTasks) -> None:
    if not isinstance(tasks, MazeTasks):
        raise TypeError(f"tasks must be MazeTasks, as sample_tasks returns them, got {type(tasks).__name__}")


def _check_scores(name: str, scores: Tensor) -> None:
    if not isinstance(scores, Tensor) or scores.dtype not in FLOATS:
        given = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"{name} must be a float32, float64, bfloat16 or float16 tensor, got {given}")


def _check_device(name: str, scores: Tensor, mazes: MazeBatch) -> None:
    if scores.device != mazes.device:
        raise ValueError(f"{name} is on {scores.device}, the mazes are on {mazes.device}")


def _check_steps(max_steps: int | None, tasks: MazeTasks) -> int:
    return tasks.mazes.n_cells if max_steps is None else check_int("max_steps", max_steps, 0)


def greedy_rollout(
    policy_logits: Tensor, tasks: MazeTasks, *, max_steps: int | None = None, moves: bool | None = None
) -> Rollout:
    """Walk from each start by a table of scores, until the goal or max_steps.

    Each step goes to the passable neighbour with the highest score among those not visited yet. If all were visited, it
    goes to the passable neighbour with the highest score. Of equal scores the lower cell index wins; NaN counts as
    -inf.

    Args:
        policy_logits: float32, float64, bfloat16 or float16. [n, N, N] with the score of the step from cell i to cell j
            at [b, i, j], or [n, N, 4] with the scores of the moves up, down, left, right.
        tasks: n MazeTasks on the same device.
        max_steps: the largest number of moves. None: N.
        moves: True if policy_logits has the second form. None: the shape tells; on mazes of 4 cells, where both forms
            are [n, 4, 4], the first is assumed.

    Returns:
        Rollout of n walks.

    Raises:
        TypeError: policy_logits is no tensor of these dtypes.
        ValueError: policy_logits has the wrong shape or device, or max_steps is negative.
        IndexError: a start or goal is no cell.

    Examples:
        >>> tasks = sample_tasks(100, 12, seed=1)
        >>> greedy_rollout(model(tasks.mazes, tasks.start, tasks.goal), tasks).reached.float().mean()
    """
    _check_tasks(tasks)
    n, cells = len(tasks), tasks.mazes.n_cells
    _check_scores("policy_logits", policy_logits)
    shape = tuple(policy_logits.shape)
    if moves is None:
        moves = shape != (n, cells, cells)
    if shape != (n, cells, 4 if moves else cells):
        accepted = f"[{n}, {cells}, {cells}] or [{n}, {cells}, 4]"
        raise ValueError(f"policy_logits must be {accepted}, got {list(shape)}" + (" with moves=True" if moves else ""))
    _check_device("policy_logits", policy_logits, tasks.mazes)
    steps = _check_steps(max_steps, tasks)
    walked = maze.greedy_rollout(policy_logits.detach(), tasks.mazes.passages, tasks.start, tasks.goal, steps, moves)
    return _rollout(*walked, tasks)


@torch.no_grad()
def recondition_rollout(
    policy: Callable[[MazeBatch, Tensor, Tensor], Tensor], tasks: MazeTasks, *, max_steps: int | None = None
) -> Rollout:
    """Walk as `greedy_rollout` does, but call the policy anew at every step.

    Args:
        policy: policy(mazes, position [m], goal [m]) returns scores [m, N] of the cells to step to, or [m, 4] of the
            moves up, down, left, right. It is called once a step, without gradients, for the m mazes still walking. On
            mazes of 4 cells, [m, 4] is taken for moves. Where the tasks have several goals, goal is [m, G].
        tasks, max_steps: as in `greedy_rollout`.

    Returns:
        Rollout of n walks.

    Raises:
        ValueError: the policy's scores have another shape, or max_steps is negative.
        IndexError: a start or goal is no cell.

    Examples:
        >>> policy = lambda mazes, position, goal: model(mazes, position, goal)[torch.arange(len(mazes)), position]
        >>> recondition_rollout(policy, tasks).optimal.float().mean()
    """
    _check_tasks(tasks)
    mazes = tasks.mazes

    def scores_at(active: Tensor, position: Tensor) -> Tensor:
        scores = policy(mazes[active], position, tasks.goal[active])
        if tuple(scores.shape) not in ((len(active), 4), (len(active), mazes.n_cells)):
            raise ValueError(
                f"the policy must give scores [{len(active)}, {mazes.n_cells}] or [{len(active)}, 4], got "
                f"{list(scores.shape)}"
            )
        return scores

    steps = _check_steps(max_steps, tasks)
    return _rollout(*walk(scores_at, mazes.passages, tasks.start, tasks.goal, steps), tasks)


def best_neighbors(table: Tensor, mazes: MazeBatch) -> Tensor:
    """int64 [n, N]: the cell that the best-scored passable move of each cell leads to; -1 if a cell is walled in.

    Of equal scores the lower cell index wins, and NaN counts as -inf, as in `greedy_rollout`.

    Args:
        table: float32, float64, bfloat16 or float16, scores [n, N, 4] of the moves up, down, left, right.
        mazes: n mazes of N cells, on the same device.

    Raises:
        TypeError: table is no tensor of these dtypes.
        ValueError: table has another shape, as the scores [n, N, N] of all cells have, or is on another device.
    """
    _check_scores("table", table)
    if tuple(table.shape) != (len(mazes), mazes.n_cells, 4):
        raise ValueError(
            f"table must be [{len(mazes)}, {mazes.n_cells}, 4], the scores of the four moves as `policy` of the "
            f"planners gives them, got {list(table.shape)}"
        )
    _check_device("table", table, mazes)
    order = [0, 2, 3, 1]  # up, left, right, down: rising cell indices, so that argmax takes the lower of a tie
    neighbors = mazes.neighbors()[..., order]
    lowest = torch.finfo(table.dtype).min
    scores = table[..., order].nan_to_num(nan=lowest, posinf=torch.inf, neginf=lowest)
    return neighbors.gather(2, scores.masked_fill(neighbors < 0, -torch.inf).argmax(-1, keepdim=True)).squeeze(2)


def solved_exactly(table: Tensor, tasks: MazeTasks) -> Tensor:
    """bool [n]: True if the best-scored passable move of each cell, followed from the start, reaches a goal in as few
    moves as possible.

    The walk has no memory. (`greedy_rollout` prefers cells that it has not visited, so it cannot go wrong in a
    corridor.) A maze that is solved exactly is optimal in `greedy_rollout`, too.

    Args:
        table: scores [n, N, 4], as of `best_neighbors`.
        tasks: n tasks, on the same device.

    Raises:
        TypeError, ValueError: of table as `best_neighbors`; tasks are no MazeTasks.

    Examples:
        >>> solved_exactly(model.policy(tasks.mazes, tasks.start, tasks.goal), tasks).float().mean()
    """
    _check_tasks(tasks)
    following, at, moves = best_neighbors(table, tasks.mazes), tasks.start, tasks.length - 1
    for step in range(int(moves.max()) if len(tasks) else 0):
        at = torch.where((step < moves) & (at >= 0), following.gather(1, at.clamp(min=0)[:, None]).squeeze(1), at)
    return at_goals(tasks.goal, tasks.mazes.n_cells).gather(1, at.clamp(min=0)[:, None])[:, 0] & (at >= 0)


def random_rollout(tasks: MazeTasks, seed: int, *, max_steps: int | None = None) -> Rollout:
    """Walks with fresh uniform scores at every step. They are the row "random policy" of the benchmarks.

    The walk is that of `greedy_rollout`: it goes to a random unvisited passable neighbour, or, if all were visited, to
    a random passable one. A fixed table of random scores (`random_policy`) reaches the goal less often: where it must
    turn back, it soon walks back and forth between two cells.

    Args:
        tasks, max_steps: as in `greedy_rollout`.
        seed: seed of the draws on the CPU, in [0, 2^63).

    Raises:
        TypeError, ValueError: seed is no int or is out of range; else as `greedy_rollout`.

    Examples:
        >>> random_rollout(sample_tasks(1000, 12, min_path=51), 0).reached.float().mean()
    """
    _check_tasks(tasks)
    draws = torch.Generator().manual_seed(check_int("seed", seed, 0))

    def policy(mazes, *_):
        return torch.rand(len(mazes), 4, generator=draws, device="cpu").to(tasks.mazes.device)

    return recondition_rollout(policy, tasks, max_steps=max_steps)


def beeline_policy(tasks: MazeTasks) -> Tensor:
    """Scores [n, N, 4] of a policy that always steps nearer to the goal and ignores walls.

    A move scores 1 if it comes nearer to the goal by rows or columns, else -1. Of several goals that of fewest rows and
    columns counts, seen from each cell; of equal ones the first. On a grid without walls (`MazeBatch.open`) its
    `greedy_rollout` is a shortest path. It is the row "beeline policy" of the benchmarks.

    Returns:
        float32 [n, N, 4] of the moves up, down, left, right, on the device of the tasks.
    """
    _check_tasks(tasks)
    width = tasks.mazes.width
    cell = torch.arange(tasks.mazes.n_cells, device=tasks.mazes.device)
    goals = tasks.goal if tasks.goal.dim() == 2 else tasks.goal[:, None]
    down = right = torch.zeros_like(cell).expand(len(tasks), -1)
    nearest = torch.full_like(down, tasks.mazes.n_cells + 1)
    for goal in goals.unbind(1):
        rows, columns = (goal // width)[:, None] - cell // width, (goal % width)[:, None] - cell % width
        apart = rows.abs() + columns.abs()
        nearer = (apart < nearest) & (goal >= 0)[:, None]
        down, right = torch.where(nearer, rows.sign(), down), torch.where(nearer, columns.sign(), right)
        nearest = torch.where(nearer, apart, nearest)
    return torch.stack(
        [
            torch.where(down < 0, 1, -1),
            torch.where(down > 0, 1, -1),
            torch.where(right < 0, 1, -1),
            torch.where(right > 0, 1, -1),
        ],
        -1,
    ).float()


def random_policy(tasks: MazeTasks, seed: int, *, start_index: int = 0, shared: bool = False) -> Tensor:
    """A fixed table of independent uniform scores. An untrained planner acts like one.

    Its `greedy_rollout` reaches far fewer goals than fresh scores at every step. `random_rollout` is the row "random
    policy" of the benchmarks; this table, with shared=True, is their row "random table".

    Args:
        tasks: n MazeTasks.
        seed: in [0, 2^63).
        start_index: number of the first task, so that parts of a set get the same scores as the whole set.
        shared: give all tasks the scores of the first one, like a planner that ignores its input.

    Returns:
        float32 [n, N, 4] in [0, 1), of the moves up, down, left, right. They are counter-based, so the same on
        every device.

    Raises:
        TypeError, ValueError: seed or start_index is no int or is out of range.
    """
    seed, first = check_int("seed", seed, 0), check_int("start_index", start_index, 0)
    _check_tasks(tasks)
    device = work_device(tasks.mazes.device)
    task = torch.arange(first, first + len(tasks), device=device)[:, None]
    if shared:
        task = torch.full_like(task, first)
    cell = torch.arange(tasks.mazes.n_cells, device=device)
    low = 0xFFFFFFFF
    counter = (cell, torch.full_like(cell, STREAM_POLICY), task & low, task >> 32)
    draws = philox4x32(counter, (seed & low, seed >> 32))
    return ((draws >> 8).float() * 2.0**-24).to(tasks.mazes.device)
