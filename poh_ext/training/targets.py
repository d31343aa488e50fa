"""What a step asks for: which of its passes are supervised, and the next move of which cells.

A planner that passes messages between neighbours knows after p passes what lies within p moves of a cell. So a cell
that sees no answer in there, neither the goal nor that all other ways end, is left out and not punished for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from poh_ext.mazes import MazeBatch, nearer_moves
from poh_ext.tasks import MazeTasks
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.presets import protocol_of

__all__ = [
    "UNSUPERVISED",
    "Passes",
    "moves_targets",
    "moves_weights",
    "next_move_targets",
    "on_paths",
    "optimal_move_targets",
    "part_weights",
    "passes_to_know",
    "passes_to_know_paths",
    "step_passes",
    "term_weights",
]

UNSUPERVISED = -100  # F.cross_entropy's ignore_index
FAR = 1 << 30


class Passes(NamedTuple):
    """The passes of one training step.

    Attributes:
        run: how many a planner that loops runs; what is farther from the goal is not supervised by --supervision all.
        after: numbers of passes whose states are supervised, rising.
        grad: gradients through so many passes before each of these; None: through all.
        looped: False: the planner runs one pass whatever `run` is.
    """

    run: int
    after: tuple[int, ...]
    grad: int | None = None
    looped: bool = True


def step_passes(config: BenchmarkConfig, run: int, looped: bool) -> Passes:
    """Which of `run` passes are supervised: `deep_supervision` of the last `grad_passes`, evenly spread.

    Examples:
        >>> step_passes(BenchmarkConfig(grad_passes=12, deep_supervision=3), 30, looped=True)
        Passes(run=30, after=(22, 26, 30), grad=4, looped=True)
    """
    if not looped:
        return Passes(run, (run,), looped=False)
    graded = config.graded(run)
    states = min(config.deep_supervision, graded)
    # The first gap is the largest, so that gradients through as many passes before each state are through `graded`.
    after = tuple(run - graded + math.ceil(graded * i / states) for i in range(1, states + 1))
    return Passes(run, after, None if graded == run else math.ceil(graded / states))


def next_move_targets(mazes: MazeBatch, goal: Tensor, *, reach: int, dead_ends: bool = False) -> Tensor:
    """int64 [B, N]: the first move (0 up, 1 down, 2 left, 3 right) of a shortest way to the goal.

    Of several shortest ways, that of the lowest move, as in `MazeBatch.shortest_paths`. UNSUPERVISED at the goal
    itself, where there is no way, and where more than `reach` passes would be needed.

    Args:
        mazes: B mazes of N cells.
        goal: int64 [B], cell indices; or [B, G], as of MazeTasks: the way is then to the nearest.
        reach: most moves to the goal, >= 1.
        dead_ends: cells farther from it count too if they need no more than `reach` of `passes_to_know`.

    Raises:
        ValueError: reach < 1. Of goal: as `MazeBatch.distances`.
    """
    optimal = optimal_move_targets(mazes, goal, reach=reach, dead_ends=dead_ends)
    return optimal.to(torch.uint8).argmax(-1).masked_fill(~optimal.any(-1), UNSUPERVISED)


def optimal_move_targets(mazes: MazeBatch, goal: Tensor, *, reach: int, dead_ends: bool = False) -> Tensor:
    """bool [B, N, 4]: the moves (up, down, left, right) with which a shortest way to the goal begins.

    In a maze without loops that is one move, that of `next_move_targets`; with loops several may be as good. Nothing is
    True where `next_move_targets` is UNSUPERVISED. Arguments and errors are its own.

    Examples:
        >>> optimal_move_targets(MazeBatch.open(1, 2), torch.tensor([0]), reach=2)[0, 3]  # from the opposite corner
        tensor([ True, False,  True, False])
    """
    return _optimal_moves(mazes, goal, mazes.neighbors(), (reach,), dead_ends)[0]


def _optimal_moves(
    mazes: MazeBatch, goal: Tensor, neighbors: Tensor, reaches: Sequence[int], dead_ends: bool
) -> list[Tensor]:
    """`optimal_move_targets` of several rising reaches."""
    if reaches[0] < 1:
        raise ValueError(f"reach must be at least 1, got {reaches[0]}")
    distance = mazes.distances(goal).long()
    nearer = nearer_moves(distance, neighbors)
    needed = _passes_to_know(distance, neighbors, goal, most=reaches[-1]) if dead_ends else distance
    return [nearer & (needed <= reach).unsqueeze(-1) for reach in reaches]


def passes_to_know(mazes: MazeBatch, goal: Tensor, *, most: int | None = None) -> Tensor:
    """int64 [B, N]: passes between neighbours after which the next move of a cell toward the goal can be known.

    Either the goal has been seen, as many moves away; or all ways but one have been seen to end without it, and it
    must lie that way: the ends of a maze are filled from pass to pass, the goal excepted. No planner whose heads see
    neighbours only can know it earlier in a maze without loops (with loops it might, of ways that lead back).

    Args:
        mazes: B mazes of N cells.
        goal: int64 [B], cell indices; or [B, G], as of MazeTasks.
        most: higher numbers are not told apart from having no way: both are 2^30. None: all are found.

    Raises:
        Of goal: as `MazeBatch.distances`.
    """
    return _passes_to_know(mazes.distances(goal).long(), mazes.neighbors(), goal, most)


def _passes_to_know(distance: Tensor, neighbors: Tensor, goal: Tensor, most: int | None) -> Tensor:
    # From here on the cells of all mazes in one row.
    first = torch.arange(len(distance), device=goal.device) * distance.shape[1]
    around = torch.where(neighbors < 0, -1, neighbors + first[:, None, None]).reshape(-1, 4)
    goals = goal[:, None] if goal.dim() == 1 else torch.where(goal < 0, goal[:, :1], goal)
    ways = (around >= 0).sum(-1).index_fill_(0, (goals + first[:, None]).flatten(), 9)  # a goal is never an end
    known = torch.full_like(ways, FAR)
    filled, passes = (ways <= 1).nonzero().flatten(), 0
    while len(filled) and (most is None or passes <= most):
        known[filled] = passes
        # Only a cell that has just lost a way can be a new end: some cells a pass, however large the mazes are.
        touched = around[filled].flatten()
        touched = touched[touched >= 0]
        ways.index_add_(0, touched, torch.full_like(touched, -1))
        touched = touched.unique()
        filled = touched[(ways[touched] <= 1) & (known[touched] == FAR)]
        passes += 1
    needed = torch.where(distance < 0, FAR, torch.minimum(distance, known.view_as(distance)))
    return needed if most is None else needed.masked_fill(needed > most, FAR)


def passes_to_know_paths(tasks: MazeTasks) -> Tensor:
    """int64 [n]: passes after which the moves of all cells on a task's path can be known (see `passes_to_know`)."""
    needed = passes_to_know(tasks.mazes, tasks.goal).gather(1, tasks.path.clamp(min=0))
    return needed.masked_fill(tasks.path < 0, 0).amax(1)


def on_paths(targets: Tensor, tasks: MazeTasks) -> Tensor:
    """The targets bool [B, N, 4] of the cells on the tasks' paths; all other cells get none."""
    walked = torch.zeros(len(tasks), tasks.mazes.n_cells + 1, dtype=torch.bool, device=targets.device)
    walked.scatter_(1, tasks.path % (tasks.mazes.n_cells + 1), True)  # padding goes to the last column
    return targets & walked[:, :-1, None]


def moves_targets(
    tasks: MazeTasks, config: BenchmarkConfig, passes: Passes, neighbors: Tensor | None = None
) -> list[Tensor]:
    """bool [B, N, 4] for each supervised state: the moves of which it should give any (`optimal_move_targets`).

    --supervision all: of all cells, with --reach passes or seen of those only whose goal, or move, is within reach of
    the passes that led to the state; path: of the cells of the path, whatever the passes. `neighbors`: those of the
    mazes, if the caller has them.
    """
    neighbors = tasks.mazes.neighbors() if neighbors is None else neighbors
    if config.supervision == "all" and config.reach != "all":
        return _optimal_moves(tasks.mazes, tasks.goal, neighbors, passes.after, config.reach == "seen")
    (targets,) = _optimal_moves(tasks.mazes, tasks.goal, neighbors, (tasks.mazes.n_cells,), False)
    if config.supervision == "path":
        targets = on_paths(targets, tasks)
    return [targets] * len(passes.after)


def moves_weights(targets: list[Tensor]) -> Tensor:
    """float32 [states]: of the sum over a state's supervised cells, so that all make the mean over states of means."""
    counts = torch.stack([wanted.any(-1).sum() for wanted in targets])
    return 1.0 / (len(targets) * counts.clamp(min=1).float())


def part_weights(batch: MazeTasks, config: BenchmarkConfig, passes: Passes) -> Tensor:
    """The weights that make the losses of the parts of a batch add up to its own: see term_weights, moves_weights."""
    if config.head == "moves":
        return moves_weights(moves_targets(batch, config, passes))
    return term_weights(batch.length, config)


def term_weights(length: Tensor, config: BenchmarkConfig) -> Tensor:
    """float32 [L, K]: by how much a term at position i and horizon k counts in the mean over a whole batch.

    "mean" counts all terms alike; "position_mean" each (i, k) that occurs alike, whatever its number of terms. With
    these weights the parts of a batch add up to its loss, however the terms are spread over the parts.

    Args:
        length: int64 [B], cells on the paths of the whole batch.
        config: multi_horizon and the protocol are used.
    """
    position = torch.arange(int(length.max()), device=length.device)
    horizon = torch.arange(1, config.multi_horizon + 1, device=length.device)
    counts = (position[:, None, None] + horizon[:, None] < length).sum(-1)  # [L, K]
    if protocol_of(config).reduction == "mean":
        return (1 / counts.sum().clamp(min=1)).float().expand(counts.shape)
    occurring = (counts > 0).sum().clamp(min=1)
    return (1 / (counts.clamp(min=1) * occurring)).float()
