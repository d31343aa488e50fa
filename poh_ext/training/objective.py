"""What is minimised: the loss along the true paths or of every cell's next move, and PoH's routing entropy."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poh_ext.losses import multi_horizon_cross_entropy, multi_horizon_linear_cross_entropy
from poh_ext.tasks import MazeTasks
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.device import autocast
from poh_ext.training.every_cell import UNSUPERVISED, moves_loss, next_move_targets, on_paths
from poh_ext.training.passes import Passes, step_passes
from poh_ext.training.protocol import protocol_of

__all__ = ["Objective", "moves_targets", "moves_weights", "part_weights", "planning_loss", "term_weights"]


def planning_loss(hidden: Tensor, head: nn.Linear, tasks: MazeTasks, config: BenchmarkConfig, *,
                  precision: str = "float32", reduction: str | None = None) -> Tensor:
    """The loss along the true paths: the cell at position i of a path predicts the cells 1..K moves ahead.

    The scores of every cell as the next one from every cell, [B, N, N], are never formed: only the rows that a path
    visits are, a chunk at a time. (As published they are: each score is clamped there.)

    Args:
        hidden: [B, N, D], the state of every cell: `model.hidden(...)`.
        head: `model.head`, D features to the scores of N cells.
        tasks: the B tasks, on the same device.
        config: multi_horizon, label_smoothing, validity_mask and the protocol are used.
        precision: of the head's products, "float32" or "bfloat16"; the log-sum-exp and all sums are float32.
        reduction: of the loss, the protocol's where it is None.
    """
    path = tasks.path[:, : int(tasks.length.max())]
    # The loss wants one dtype, but autocast leaves hidden in whichever its last operator had, and the weights in
    # float32. All three go to the precision of the run, as a head called under autocast would cast them; the casts
    # are differentiable, so that the gradient arrives at the float32 weights.
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    protocol, hidden, weight, bias = protocol_of(config), hidden.to(dtype), head.weight.to(dtype), head.bias.to(dtype)
    if protocol.clamp is None:
        loss_of = functools.partial(multi_horizon_linear_cross_entropy, hidden, weight, bias=bias)
    else:
        scores = F.linear(hidden, weight, bias).clamp(-protocol.clamp, protocol.clamp)
        loss_of = functools.partial(multi_horizon_cross_entropy, scores)
    how = {"rows": path, "ignore_index": -1, "label_smoothing": config.label_smoothing}
    horizons, reduction = config.multi_horizon, reduction or protocol.reduction
    masked = {**how, "candidates": tasks.mazes.neighbors()} if config.validity_mask else how
    if protocol.smooth_masked or not config.validity_mask:
        return loss_of(targets=path, horizons=horizons, reduction=reduction, **masked)
    masked["label_smoothing"] = 0.0
    if horizons == 1:
        return loss_of(targets=path, reduction=reduction, **masked)
    # The next move, which alone is masked, is not smoothed; the moves after it are.
    terms = torch.cat([loss_of(targets=path, reduction="none", **masked),
                       loss_of(targets=path, horizons=horizons, reduction="none", **how)[..., 1:]], -1)
    return terms if reduction == "none" else (terms * term_weights(tasks.length, config)).sum()


class Objective(nn.Module):
    """The planner with its loss around it: one forward pass from mazes to what is minimised.

    Args:
        model: has `hidden(mazes, start, goal) -> [B, N, D]` and `head`, a linear layer to N scores or, with --head
            moves, to 4; one that loops has `hidden_passes`; PoH also `routing_entropy()`.
        config: see planning_loss and moves_targets.
        precision: of the forward pass.
    """

    def __init__(self, model: nn.Module, config: BenchmarkConfig, precision: str) -> None:
        super().__init__()
        self.model, self.config, self.precision = model, config, precision

    def forward(self, tasks: MazeTasks, entropy_weight: float, weights: Tensor | None = None, share: float = 1.0,
                passes: Passes | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(what is minimised, its cross-entropy, the routing entropy, 0 for planners without routing).

        Args:
            tasks: the batch, or a part of it.
            entropy_weight: of the routing entropy.
            weights: of a part: see part_weights. The three values are then the part's shares of the whole batch's.
            share: of the batch's mazes that are in the part.
            passes: to run and to supervise; None: the planner's own number, of which the last is supervised.
        """
        passes = passes or step_passes(self.config, self.config.R, self.model.looped)
        device = tasks.start.device
        shown = tasks.mazes, tasks.start, tasks.goal
        with autocast(device, self.precision):
            states = self.model.hidden_passes(*shown, after=passes.after, grad_passes=passes.grad,
                                               state_noise=self.config.state_noise) \
                if passes.looped else [self.model.hidden(*shown)]
        loss_of = self._moves if self.config.head == "moves" else self._cells
        cross_entropy = loss_of(states, tasks, weights, passes).float()
        if not self.model.has_router:
            return cross_entropy, cross_entropy, cross_entropy.new_zeros(())
        entropy = share * self.model.routing_entropy()
        return cross_entropy + entropy_weight * entropy if entropy_weight > 0 else cross_entropy, cross_entropy, entropy

    def _cells(self, states: list[Tensor], tasks: MazeTasks, weights: Tensor | None, passes: Passes) -> Tensor:
        def loss_of(state: Tensor) -> Tensor:
            if weights is None:
                return planning_loss(state, self.model.head, tasks, self.config, precision=self.precision)
            terms = planning_loss(state, self.model.head, tasks, self.config, precision=self.precision,
                                  reduction="none")
            return (terms * weights[: terms.shape[1]].to(terms.device)).sum()

        return sum(map(loss_of, states)) / len(states)

    def _moves(self, states: list[Tensor], tasks: MazeTasks, weights: Tensor | None, passes: Passes) -> Tensor:
        targets = moves_targets(tasks, self.config, passes)
        weights = moves_weights(targets) if weights is None else weights
        allowed = tasks.mazes.neighbors() >= 0 if self.config.validity_mask else None
        total = 0.0
        for state, wanted, weight in zip(states, targets, weights.tolist(), strict=True):
            with autocast(state.device, self.precision):
                logits = self.model.head(state)
            total = total + weight * moves_loss(logits, wanted, allowed=allowed, reduction="sum",
                                                label_smoothing=self.config.label_smoothing)
        return total


def moves_targets(tasks: MazeTasks, config: BenchmarkConfig, passes: Passes) -> list[Tensor]:
    """int64 [B, N] for each supervised state: the moves that it should give.

    --supervision all: of all cells, with --reach passes or seen of those only whose goal, or move, is within reach of
    the passes that led to the state; path: of the cells of the path, whatever the passes.
    """
    if config.supervision == "all" and config.reach != "all":
        return [next_move_targets(tasks.mazes, tasks.goal, reach=reach, dead_ends=config.reach == "seen")
                for reach in passes.after]
    targets = next_move_targets(tasks.mazes, tasks.goal, reach=tasks.mazes.n_cells)
    if config.supervision == "path":
        targets = on_paths(targets, tasks)
    return [targets] * len(passes.after)


def moves_weights(targets: list[Tensor]) -> Tensor:
    """float32 [states]: of the sum over a state's supervised cells, so that all make the mean over states of means."""
    counts = torch.stack([(wanted != UNSUPERVISED).sum() for wanted in targets])
    return 1.0 / (len(targets) * counts.clamp(min=1).float())


def part_weights(batch: MazeTasks, config: BenchmarkConfig, passes: Passes | None = None) -> Tensor:
    """The weights that make the losses of the parts of a batch add up to its own: see term_weights, moves_weights."""
    if config.head == "moves":
        return moves_weights(moves_targets(batch, config, passes or step_passes(config, config.R, looped=True)))
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
