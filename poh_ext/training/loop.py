"""Train one planner: AdamW, warm-up and cosine, clipped gradients, and where it is asked for averaged weights (EMA)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from poh_ext.models.base import Planner
from poh_ext.results import DIVERGED, check_validation, plain, solved_measure
from poh_ext.tasks import MazeTasks
from poh_ext.training.checkpoint import Checkpoints, first_misfit, random_state, restore_random_state
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.data import Batches, FixedBatches, Step
from poh_ext.training.evaluate import Validation
from poh_ext.training.presets import protocol_of
from poh_ext.training.progress import Interrupted, Progress
from poh_ext.training.step import Objective
from poh_ext.training.targets import step_passes
from poh_ext.training.workers import ALONE, Workers

__all__ = [
    "CLIP_NORM",
    "Diverged",
    "Training",
    "Watcher",
    "averaged",
    "learning_rate",
    "peak_reached",
    "train_planner",
    "warmup_warning",
]

CLIP_NORM = 1.0
CURVE_POINTS = 400  # at most about this many points are kept of a run
FINAL_FRACTION = 0.1  # of the peak rate, at the last step
CURVE = ("step", "epoch", "loss", "cross_entropy", "routing_entropy", "lr")


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass
class Training:
    """What training took and showed: steps, seconds, mazes rejected (online), a dict per logged step and validation.

    Seconds are those of the training alone: not of validation, of checkpoints, nor of what watchers do between epochs.
    """

    steps: int = 0
    seconds: float = 0.0
    mazes_per_second: float = 0.0
    rejected: int = 0
    curve: list[dict] = field(default_factory=list)
    validation: list[dict] = field(default_factory=list)


class Watcher:
    """Is shown every step of a training; a subclass takes in what it wants to."""

    def step(self, record: dict[str, Any]) -> None:
        """A step was taken: its number (from 1), epoch, losses, learning rate, gradient norm, seconds so far."""

    def validated(self, point: dict[str, Any]) -> None:
        """The model was validated: step, epoch, seconds of training so far, mazes, shares of them (Row.validation)."""

    def epoch(self, model: Planner, epoch: int, step: int) -> None:
        """An epoch is over; the model may be evaluated."""

    def result(self, row: Any) -> None:
        """The planner was tested: a row of results.json."""

    def close(self) -> None:
        """Nothing more will come."""


def train_planner(
    model: Planner,
    data: MazeTasks | Batches,
    config: BenchmarkConfig,
    *,
    seed: int,
    label: str,
    precision: str = "float32",
    check: Callable[[], None] = lambda: None,
    quiet: bool = False,
    checkpoints: Checkpoints | None = None,
    watch: Callable[[int], Sequence[Watcher]] = lambda step: (),
    workers: Workers = ALONE,
    validation: Validation | None = None,
) -> Training:
    """Train `model` in place, on the device of its weights. The same seed gives the same order, passes and dropout.
    With --ema the model ends with the averaged weights, and validation and the watchers are shown these.

    Args:
        model: the planner; the routing entropy of one that has a router is weighted by route_ent_weight.
        data: training mazes, or the batches themselves.
        config: see BenchmarkConfig.
        seed: of dropout, and where `data` is a set of mazes of the order and the passes (a generator of its own, so
            that every model sees the same steps).
        label: shown with the progress.
        precision: of the forward pass; weights, gradients and optimiser stay float32.
        check: called before each step; may raise Interrupted to stop.
        quiet: show progress only where it takes long.
        checkpoints: go on from the last one there; write one after each epoch, and when `check` stops the training.
        watch: called with the number of steps that are done already; what it returns is shown the others.
        workers: that train this model together, each calling this function; the first alone has checkpoints and
            watchers and validation.
        validation: evaluates the model between epochs.

    Raises:
        Diverged: the loss is not finite.
    """
    device = next(model.parameters()).device
    batches = FixedBatches.of(data, config, seed) if isinstance(data, MazeTasks) else data
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked):
        torch.manual_seed(seed + (workers.rank << 40))  # dropout of its own in each process
        trainer = _Trainer(model, batches, config, label, precision, check, checkpoints, workers, validation)
        trainer.load()
        trainer.run(watch(trainer.result.steps), quiet)
        if trainer.ema:
            model.load_state_dict(trainer.ema.module.state_dict())
    result = trainer.result
    result.mazes_per_second = config.epochs * batches.mazes_per_epoch / max(result.seconds, 1e-9)
    return result


class _Trainer:
    """A training: all that it changes, its way to and from a checkpoint, and its steps."""

    def __init__(
        self,
        model: Planner,
        batches: Batches,
        config: BenchmarkConfig,
        label: str,
        precision: str,
        check: Callable[[], None],
        checkpoints: Checkpoints | None,
        workers: Workers,
        validation: Validation | None,
    ) -> None:
        self.model, self.batches, self.config, self.label, self.check = model, batches, config, label, check
        self.checkpoints, self.workers, self.validation = checkpoints, workers, validation
        self.device = next(model.parameters()).device
        fused = self.device.type in ("cpu", "cuda")  # one kernel for all parameters: half the optimiser's time
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=fused
        )
        self.ema = averaged(model, config.ema) if config.ema else None
        # The last few passes do not always have one in which the slow router cell runs.
        self.objective = workers.parallel(Objective(model, config, precision), static=config.grad_passes == "all")
        self.result = Training()
        self._started = time.perf_counter()

    def load(self) -> None:
        found = self.checkpoints.load(self.model, self.misfit) if self.checkpoints else None
        record = self.workers.share(found)
        if record is None:
            return
        self.model.load_state_dict(record["model"])
        self.optimizer.load_state_dict(record["optimizer"])
        if self.ema:
            self.ema.module.load_state_dict(record["average"])
            self.ema.n_averaged += record["training"]["steps"]
        restore_random_state(record["random"][self.workers.rank], self.device)
        self.result = Training(**record["training"])
        self._started = time.perf_counter() - self.result.seconds
        if self.workers.first:
            print(f"going on after step {self.result.steps} of {record['label']}", flush=True)

    def save(self) -> None:
        """Write a checkpoint; the time this takes is left out of the training time."""
        self.result.seconds = self.seconds()
        random = self.workers.collect(random_state(self.device))
        if self.checkpoints:
            self.checkpoints.save(self.result.steps, self.state(random))
        self._started = time.perf_counter() - self.result.seconds

    def state(self, random: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
        """What a checkpoint holds; random: the states of all processes."""
        return {
            "label": self.label,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.ema.module.state_dict() if self.ema else None,
            "random": random,
            "training": vars(self.result),
        }

    def misfit(self, state: dict[str, Any]) -> str | None:
        """What keeps the state of a checkpoint from being used, though its checksums are right: it may be made to."""
        try:
            like = self.state([random_state(self.device)] * self.workers.count)
            moments, like["optimizer"] = state["optimizer"]["state"], like["optimizer"]["param_groups"]
            groups = [{**group, "lr": 0.0} for group in state["optimizer"]["param_groups"]]
            if plain(groups) != plain([{**group, "lr": 0.0} for group in like["optimizer"]]):
                return "its optimizer has other settings"
            if found := first_misfit({**state, "optimizer": like["optimizer"]}, like):
                return found
            parameters = list(self.model.parameters())
            for index, moment in moments.items():
                wanted = {"step": torch.zeros(()), "exp_avg": parameters[index], "exp_avg_sq": parameters[index]}
                if found := first_misfit(moment, wanted, f"the optimizer's state of parameter {index}"):
                    return found
            training, total = Training(**state["training"]), self.config.epochs * self.batches.per_epoch
            if any(set(point) != set(CURVE) for point in training.curve):
                return f"its learning curve is not of {', '.join(CURVE)}"
            points = [value for point in training.curve for value in point.values()]
            if not all(value is None or type(value) in (int, float) for value in points):
                return "its learning curve holds more than numbers"
            if not (0 <= training.steps <= total and 0 <= training.seconds < math.inf):
                return f"it is of step {training.steps} of {total}, after {training.seconds} s"
            check_validation("it", training.validation)
            for states in state["random"]:
                torch.Generator().set_state(states["cpu"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return None

    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def stop_if_asked(self) -> None:
        """Raise what `check` raises, in all processes before the same step, with the checkpoint written."""
        reason = None
        try:
            self.check()
        except Interrupted as asked:
            reason = asked
        if self.workers.agree(reason is not None):
            self.save()
            # The one that was asked need not be the first, which alone reports.
            raise next(asked for asked in self.workers.collect(reason) if asked is not None)

    def run(self, watchers: Sequence[Watcher], quiet: bool) -> None:
        config, result, per_epoch = self.config, self.result, self.batches.per_epoch
        total = config.epochs * per_epoch
        keep_every = max(1, total // CURVE_POINTS)
        with (
            Progress(
                self.label, total=total, unit="step", ends=not quiet, done=result.steps, shown=self.workers.first
            ) as progress,
            closing(self.batches.run(result.steps, total)) as coming,
        ):
            for number in range(result.steps, total):
                self.stop_if_asked()
                step, epoch = next(coming), number // per_epoch
                lr = learning_rate(
                    number,
                    total_steps=total,
                    peak=config.lr,
                    warmup_steps=config.warmup_steps,
                    from_zero=protocol_of(config).rate_from_zero,
                )
                entropy_weight = config.route_ent_weight * (1 - number / total if config.ent_anneal else 1)
                values = self.step(step, lr, entropy_weight)
                if not math.isfinite(values["loss"]):
                    what = f"the loss is {values['loss']} at step {number + 1}; try a lower --lr"
                    raise Diverged(f"{self.label}{DIVERGED}{what}")
                result.steps, result.rejected = number + 1, result.rejected + step.rejected
                record = {"step": number + 1, "epoch": epoch, **values, "lr": lr, "seconds": self.seconds()}
                if number == 0 or (number + 1) % keep_every == 0 or number + 1 == total:
                    result.curve.append({name: record[name] for name in CURVE})
                for watcher in watchers:
                    watcher.step(record)
                last = result.validation[-1:]
                latest = {f"validated {solved_measure(last)}": last[0][solved_measure(last)]} if last else {}
                progress.step(loss=values["loss"], lr=lr, **latest)
                if (number + 1) % per_epoch == 0:
                    self.between_epochs(epoch, watchers)
                    self.save()
        result.seconds = self.seconds()

    def step(self, step: Step, lr: float, entropy_weight: float) -> dict[str, float | None]:
        """Make one update, unless the loss is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()  # a watcher may have evaluated it
        passes = step_passes(self.config, step.passes, self.model.looped)
        part, weights, share = self.workers.part(step.batch, self.config, passes)
        loss, cross_entropy, entropy = self.objective(part.to(self.device), passes, entropy_weight, weights, share)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.workers.count).backward()  # the exchange of gradients divides by the count
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        values = self.workers.total(torch.stack([loss, cross_entropy, entropy.float()]).detach())
        values = torch.cat([values, norm[None]]).tolist()  # one transfer for all, where the device is not the CPU
        if math.isfinite(values[0]):
            self.optimizer.step()
            if self.ema:
                self.ema.update_parameters(self.model)
        found = dict(zip(("loss", "cross_entropy", "routing_entropy", "gradient_norm"), values, strict=True))
        return found if self.model.has_router else {**found, "routing_entropy": None}

    def between_epochs(self, epoch: int, watchers: Sequence[Watcher]) -> None:
        """Validate the model and call the watchers; the time this takes is left out of the training time."""
        seconds, result = self.seconds(), self.result
        model = self.ema.module if self.ema else self.model
        if self.validation is not None and self.validation.due(epoch):
            point = {"step": result.steps, "epoch": epoch, "seconds": seconds, **self.validation(model)}
            result.validation.append(point)
            for watcher in watchers:
                watcher.validated(point)
        for watcher in watchers:
            watcher.epoch(model, epoch, result.steps)
        self._started = time.perf_counter() - seconds


def averaged(model: Planner, decay: float) -> AveragedModel:
    """The exponential moving average of a planner's weights: after each step, average <- d average + (1 - d) weights.

    d = min(decay, (1 + n) / (10 + n)) after n steps, so that the first weights are soon forgotten (as TensorFlow's
    ExponentialMovingAverage with num_updates).
    """

    def average(ours: list, theirs: list, _: torch.Tensor) -> None:
        count = int(found.n_averaged)  # not the copy on the device: it would be waited for
        get_ema_multi_avg_fn(min(decay, count / (9 + count)))(ours, theirs, count)

    found = AveragedModel(model, multi_avg_fn=average)
    found.n_averaged += 1  # the copy is the first average: with 0, the first update would overwrite it
    return found.requires_grad_(False)


def learning_rate(step: int, *, total_steps: int, peak: float, warmup_steps: int, from_zero: bool = False) -> float:
    """Learning rate of update `step` (0-based) of `total_steps`.

    Warm-up: `peak * (step + 1) / warmup_steps`, so its last step has the peak. After it, with
    `t = (step + 1 - warmup_steps) / (total_steps - warmup_steps)` in (0, 1], it is
    `peak * (0.1 + 0.9 * (1 + cos(pi t)) / 2)`, so the run's last step has exactly a tenth of the peak.

    from_zero: every step has the rate of the step before, as published: the first step of a warm-up has the rate 0.

    Examples:
        >>> learning_rate(0, total_steps=100, peak=1e-3, warmup_steps=10)
        0.0001
    """
    updates = step + (not from_zero)
    if warmup_steps and updates <= warmup_steps:
        return peak * updates / warmup_steps
    t = min(1.0, (updates - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (FINAL_FRACTION + (1 - FINAL_FRACTION) * 0.5 * (1 + math.cos(math.pi * t)))


def peak_reached(*, total_steps: int, peak: float, warmup_steps: int, from_zero: bool = False) -> float:
    """The highest learning rate of the run: below `peak` when the warm-up is longer than the run."""
    return peak * min(1.0, (total_steps - from_zero) / warmup_steps) if warmup_steps else peak


def warmup_warning(*, total_steps: int, peak: float, warmup_steps: int, from_zero: bool = False) -> str | None:
    """A sentence for the user when the warm-up never ends, else None."""
    if total_steps - from_zero >= warmup_steps:
        return None
    reached = peak_reached(total_steps=total_steps, peak=peak, warmup_steps=warmup_steps, from_zero=from_zero)
    return (
        f"the warm-up ({warmup_steps} steps) is longer than the run ({total_steps} steps): the learning rate only "
        f"rises, to {reached:.3g} instead of {peak:.3g}, and never decays"
    )
