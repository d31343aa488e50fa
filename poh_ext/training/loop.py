"""Train one planner: AdamW, warm-up and cosine, clipped gradients, the fused multi-horizon loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from poh_ext.losses import multi_horizon_linear_cross_entropy
from poh_ext.tasks import MazeTasks
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.device import autocast
from poh_ext.training.progress import Progress
from poh_ext.training.protocol import planner_view, protocol_settings
from poh_ext.training.schedule import learning_rate

__all__ = ["CLIP_NORM", "Diverged", "Training", "planning_loss", "total_steps", "train_planner"]

CLIP_NORM = 1.0
CURVE_POINTS = 400  # at most about this many points are kept of a run


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass
class Training:
    """What training took and showed: steps, seconds, and a curve of one dict per logged step."""

    steps: int = 0
    seconds: float = 0.0
    mazes_per_second: float = 0.0
    curve: list[dict] = field(default_factory=list)


def total_steps(config: BenchmarkConfig, mazes: int) -> int:
    """Updates of a run on so many mazes; the last batch of an epoch may be smaller than the others."""
    return config.epochs * math.ceil(mazes / config.batch_size)


def planning_loss(hidden: torch.Tensor, head: nn.Linear, tasks: MazeTasks, config: BenchmarkConfig, *,
                  precision: str = "float32") -> torch.Tensor:
    """The loss along the true paths: the cell at position i of a path predicts the cells 1..K moves ahead.

    The scores of every cell as the next one from every cell, [B, N, N], are never formed: only the rows that a path
    visits are, a chunk at a time.

    Args:
        hidden: [B, N, D], the state of every cell: `model.hidden(...)`.
        head: `model.head`, D features to the scores of N cells.
        tasks: the B tasks, on the same device.
        config: multi_horizon, label_smoothing, validity_mask and the protocol are used.
        precision: of the head's products, "float32" or "bfloat16"; the log-sum-exp and all sums are float32.
    """
    path = tasks.path[:, : int(tasks.length.max())]
    # The loss wants one dtype, but autocast leaves hidden in whichever its last operator had, and the weights in
    # float32. All three go to the precision of the run, as a head called under autocast would cast them; the casts
    # are differentiable, so that the gradient arrives at the float32 weights.
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return multi_horizon_linear_cross_entropy(
        hidden.to(dtype), head.weight.to(dtype), path, bias=head.bias.to(dtype), rows=path,
        horizons=config.multi_horizon, label_smoothing=config.label_smoothing,
        candidates=tasks.mazes.neighbors() if config.validity_mask else None, ignore_index=-1,
        reduction=protocol_settings(config)["reduction"],
    )


def train_planner(model: nn.Module, tasks: MazeTasks, config: BenchmarkConfig, *, seed: int, label: str,
                  precision: str = "float32", check: Callable[[], None] = lambda: None, quiet: bool = False
                  ) -> Training:
    """Train `model` in place, on the device of its weights. The same seed gives the same order and dropout.

    Args:
        model: has `hidden(mazes, start, goal) -> [B, N, D]` and `head`, a linear layer to N scores; one with
            `routing_entropy()` is also penalised by route_ent_weight times it.
        tasks: training mazes.
        config: see BenchmarkConfig.
        seed: of the data order (a generator of its own, so that every model sees the same batches) and dropout.
        label: shown with the progress.
        precision: of the forward pass; weights, gradients and optimiser stay float32.
        check: called before each step; may raise to stop.
        quiet: show progress only where it takes long.

    Raises:
        Diverged: the loss is not finite.
    """
    device = next(model.parameters()).device
    fused = device.type in ("cpu", "cuda")  # one kernel for all parameters: half the optimiser's time on the CPU
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=fused)
    order = torch.Generator().manual_seed(seed)
    steps = total_steps(config, len(tasks))
    keep_every = max(1, steps // CURVE_POINTS)
    has_router = hasattr(model, "routing_entropy")
    result = Training()
    model.train()
    started = time.perf_counter()
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked), Progress(label, total=steps, unit="step", ends=not quiet) as progress:
        torch.manual_seed(seed)
        for epoch in range(config.epochs):
            for index in torch.randperm(len(tasks), generator=order).split(config.batch_size):
                check()
                batch = tasks[index].to(device)
                lr = learning_rate(result.steps, total_steps=steps, peak=config.lr, warmup_steps=config.warmup_steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                with autocast(device, precision):
                    hidden = model.hidden(planner_view(batch.mazes, config), batch.start, batch.goal)
                cross_entropy = planning_loss(hidden, model.head, batch, config, precision=precision)
                loss, entropy = cross_entropy.float(), None
                if has_router:
                    entropy = model.routing_entropy()
                    weight = config.route_ent_weight
                    if config.ent_anneal:
                        weight *= 1 - result.steps / steps
                    if weight > 0:
                        loss = loss + weight * entropy
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
                value = loss.item()
                if not math.isfinite(value):
                    raise Diverged(f"{label}: the loss is {value} at step {result.steps + 1}; try a lower --lr")
                optimizer.step()
                result.steps += 1
                if result.steps == 1 or result.steps % keep_every == 0 or result.steps == steps:
                    result.curve.append({
                        "step": result.steps, "epoch": epoch, "loss": value, "cross_entropy": cross_entropy.item(),
                        "routing_entropy": None if entropy is None else entropy.item(), "lr": lr,
                    })
                progress.step(loss=value, lr=lr)
    result.seconds = time.perf_counter() - started
    result.mazes_per_second = config.epochs * len(tasks) / max(result.seconds, 1e-9)
    return result
