"""What is minimised: the loss along the true paths or of every cell's next move, and PoH's routing entropy."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poh_ext.losses import multi_horizon_cross_entropy, multi_horizon_linear_cross_entropy
from poh_ext.models.base import Planner
from poh_ext.tasks import MazeTasks
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.presets import protocol_of
from poh_ext.training.targets import Passes, moves_targets, moves_weights, term_weights
from poh_ext.training.workers import autocast

__all__ = ["Objective", "moves_loss", "planning_loss"]


def planning_loss(
    hidden: Tensor,
    head: nn.Linear,
    tasks: MazeTasks,
    config: BenchmarkConfig,
    *,
    precision: str = "float32",
    reduction: str | None = None,
    neighbors: Tensor | None = None,
) -> Tensor:
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
        neighbors: those of the mazes, if the caller has them.
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
    masked = how
    if config.validity_mask:
        masked = {**how, "candidates": tasks.mazes.neighbors() if neighbors is None else neighbors}
    if protocol.smooth_masked or not config.validity_mask:
        return loss_of(targets=path, horizons=horizons, reduction=reduction, **masked)
    masked["label_smoothing"] = 0.0
    if horizons == 1:
        return loss_of(targets=path, reduction=reduction, **masked)
    # The next move, which alone is masked, is not smoothed; the moves after it are.
    terms = torch.cat(
        [
            loss_of(targets=path, reduction="none", **masked),
            loss_of(targets=path, horizons=horizons, reduction="none", **how)[..., 1:],
        ],
        -1,
    )
    return terms if reduction == "none" else (terms * term_weights(tasks.length, config)).sum()


def moves_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    allowed: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Minus the log of the summed probability of all right moves, of the supervised cells; 0 if there are none.

    Where one move is right this is cross-entropy. A shortest way of a maze with loops may begin with several: which
    of them the planner prefers is its own choice.

    Args:
        logits: [B, N, 4], of the moves.
        targets: bool [B, N, 4], the right moves; cells without any do not count.
        allowed: bool [B, N, 4]: the softmax runs over these moves alone; every supervised move is one. None: all are.
        label_smoothing: probability mass spread evenly over the allowed moves.
        reduction: "mean" over the supervised cells, or "sum".
    """
    supervised = targets.any(-1)
    scores, wanted = logits[supervised].float(), targets[supervised]
    open_ = torch.ones_like(wanted) if allowed is None else allowed[supervised]
    log_p = scores.masked_fill(~open_, -torch.inf).log_softmax(-1)
    hit = log_p.masked_fill(~wanted, -torch.inf).logsumexp(-1).sum()
    loss = -(1 - label_smoothing) * hit
    if label_smoothing > 0:
        loss = loss - label_smoothing * (log_p.masked_fill(~open_, 0).sum(-1) / open_.sum(-1)).sum()
    return loss if reduction == "sum" else loss / max(1, len(wanted))


class Objective(nn.Module):
    """The planner with its loss around it: one forward pass from mazes to what is minimised.

    Args:
        model: the planner.
        config: see planning_loss and moves_targets.
        precision: of the forward pass.
    """

    def __init__(self, model: Planner, config: BenchmarkConfig, precision: str) -> None:
        super().__init__()
        self.model, self.config, self.precision = model, config, precision

    def forward(
        self, tasks: MazeTasks, passes: Passes, entropy_weight: float, weights: Tensor | None = None, share: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(what is minimised, its cross-entropy, the routing entropy, 0 for planners without routing).

        Args:
            tasks: the batch, or a part of it.
            passes: to run and to supervise.
            entropy_weight: of the routing entropy.
            weights: of a part: see part_weights. The three values are then the part's shares of the whole batch's.
            share: of the batch's mazes that are in the part.
        """
        config, model = self.config, self.model
        wanted = model.valid_heads or config.validity_mask or config.head == "moves"
        neighbors = tasks.mazes.neighbors() if wanted else None
        with autocast(tasks.start.device, self.precision):
            states = model.hidden_passes(
                tasks.mazes,
                tasks.start,
                tasks.goal,
                neighbors=neighbors,
                after=passes.after if passes.looped else (1,),
                grad_passes=passes.grad,
                state_noise=config.state_noise,
            )
        if config.head == "moves":
            targets = moves_targets(tasks, config, passes, neighbors)
            cross_entropy = self._moves(states, targets, weights, neighbors).float()
        else:
            cross_entropy = self._cells(states, tasks, weights, neighbors).float()
        if not model.has_router:
            return cross_entropy, cross_entropy, cross_entropy.new_zeros(())
        entropy = share * model.routing_entropy()
        return cross_entropy + entropy_weight * entropy if entropy_weight > 0 else cross_entropy, cross_entropy, entropy

    def _cells(
        self, states: list[Tensor], tasks: MazeTasks, weights: Tensor | None, neighbors: Tensor | None
    ) -> Tensor:
        reduction = None if weights is None else "none"
        total = 0.0
        for state in states:
            loss = planning_loss(
                state,
                self.model.head,
                tasks,
                self.config,
                precision=self.precision,
                reduction=reduction,
                neighbors=neighbors,
            )
            total = total + (loss if weights is None else (loss * weights[: loss.shape[1]].to(loss.device)).sum())
        return total / len(states)

    def _moves(self, states: list[Tensor], targets: list[Tensor], weights: Tensor | None, neighbors: Tensor) -> Tensor:
        weights = moves_weights(targets) if weights is None else weights
        allowed = neighbors >= 0 if self.config.validity_mask else None
        total = 0.0
        for state, wanted, weight in zip(states, targets, weights.tolist(), strict=True):
            with autocast(state.device, self.precision):
                logits = self.model.head(state)
            total = total + weight * moves_loss(
                logits, wanted, allowed=allowed, reduction="sum", label_smoothing=self.config.label_smoothing
            )
        return total
