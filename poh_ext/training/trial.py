"""One row of the table for one seed: build the planner, train it where the row asks for it, evaluate it.

It depends on what it is given alone, so that it may run in another process or be run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poh_ext.models import gflop_per_maze, parameter_count
from poh_ext.models.base import Planner
from poh_ext.models.weights import save
from poh_ext.results import CONTROLS, Row, label, plain
from poh_ext.training.checkpoint import Checkpoints, identity
from poh_ext.training.data import Data, make_data
from poh_ext.training.evaluate import (
    Evaluation,
    Validation,
    counting_options,
    evaluate,
    evaluate_control,
    evaluation_options,
    evaluation_passes,
    shares,
)
from poh_ext.training.logs import Board, History
from poh_ext.training.loop import Diverged, Training, Watcher, train_planner
from poh_ext.training.plan import PlannedRow
from poh_ext.training.progress import Interrupted
from poh_ext.training.routing_study import RoutingStudy
from poh_ext.training.workers import ALONE, Workers

__all__ = ["Outcome", "Place", "assist", "data_of", "run_trial", "trial_checkpoints", "trial_name"]

MAZES_SHOWN = 6  # whose walked paths are kept for pictures


@dataclass(frozen=True)
class Place:
    """Where a run computes and writes, and with which other processes."""

    folder: Path
    device: torch.device
    precision: str
    environment: dict[str, Any]
    workers: Workers = ALONE


@dataclass
class Outcome:
    """A finished row, and how PoH weighed its heads (None for other rows)."""

    row: Row
    routing: dict | None


def trial_name(planned: PlannedRow | Row, seed: int) -> str:
    """The name of the files of a trained row: "tiny-poh-without-warm-up-seed42"."""
    words = f"{planned.scale} {planned.model} seed{seed}"
    return re.sub(r"[^A-Za-z0-9_]+", "-", words.strip())


def trial_checkpoints(planned: PlannedRow, seed: int, place: Place) -> Checkpoints:
    parts = {"size": planned.scale, "row": planned.model, "seed of the row": seed}
    environment = {**place.environment, "precision": planned.precision(place.precision)}  # solvers have their own
    this = identity(planned.config.title, planned.config.to_dict(), environment, **parts)
    return Checkpoints(place.folder / "checkpoints" / trial_name(planned, seed), this)


def data_of(planned: PlannedRow, seed: int, run: Data | None = None) -> Data:
    """What a row is trained and tested on.

    Args:
        run: the data of the run, if they are there already: what they are follows from the row and the seed.
    """
    if run is None:
        run = make_data(planned.run or planned.config, seed)
    return run if planned.run is None else make_data(planned.config, seed, test=run.test)


def run_trial(
    planned: PlannedRow,
    seed: int,
    data: Data,
    place: Place,
    check: Callable[[], None],
    held: Callable[[], None] = lambda: None,
) -> Outcome:
    """The row of a planner, or of a control without one.

    Args:
        check: called before each step and batch; may raise Interrupted to stop.
        held: called before each training step alone, where a checkpoint is written; may raise Interrupted, too.

    Raises:
        Interrupted: by `check`; what was trained is in the checkpoints.
        Diverged: the loss is not finite.
    """
    if planned.kind in CONTROLS:
        control = evaluate_control(planned.kind, data.test, seed, **counting_options(planned.config))
        return Outcome(_row(planned, seed, control, Training(), None), None)
    place = dataclasses.replace(place, precision=planned.precision(place.precision))
    name = f"{label(planned.model, planned.trained, planned.scale)} (seed {seed})"
    model, training, watchers = planned.build(seed, place.device), Training(), []

    def check_both() -> None:
        check()
        held()

    def watch(step: int) -> list[Watcher]:
        """The training log and, where it is asked for, TensorBoard."""
        file = trial_name(planned, seed)
        watchers.append(History(place.folder / "logs" / f"{file}.jsonl", step=step))
        if planned.config.tensorboard:
            watchers.append(
                Board(
                    place.folder / "tensorboard" / file,
                    step=step,
                    config=planned.config,
                    options=planned.options,
                    tasks=data.test,
                    walls=data.test_walls,
                    precision=place.precision,
                )
            )
        return watchers

    try:
        if planned.trained:
            place.workers.share((planned, seed, place.precision))  # to `assist`
            validation = data.validation and Validation(planned.config, data.validation, place.precision)
            training = train_planner(
                model,
                data.batches,
                planned.config,
                seed=seed,
                label=name,
                precision=place.precision,
                check=check_both,
                watch=watch,
                workers=place.workers,
                checkpoints=trial_checkpoints(planned, seed, place),
                validation=validation,
            )
        outcome = _evaluate(model, planned, seed, data, place, check, name, training)
        for watcher in watchers:
            watcher.result(outcome.row)
    finally:
        for watcher in watchers:
            watcher.close()
    if planned.trained and planned.config.save_weights:
        _save_weights(model, planned, outcome, place)
    return outcome


def assist(workers: Workers, check: Callable[[], None]) -> None:
    """Do the part of a process that is not the first in each training, until it is dismissed."""
    while (job := workers.share(None)) is not None:
        planned, seed, precision = job
        model = planned.build(seed, workers.device)
        # The training ends alike in all processes; the first one says what it means.
        with contextlib.suppress(Interrupted, Diverged):
            train_planner(
                model,
                data_of(planned, seed).batches,
                planned.config,
                seed=seed,
                label=trial_name(planned, seed),
                precision=precision,
                check=check,
                workers=workers,
            )


def _evaluate(
    model: Planner,
    planned: PlannedRow,
    seed: int,
    data: Data,
    place: Place,
    check: Callable[[], None],
    name: str,
    training: Training,
) -> Outcome:
    how = {**evaluation_options(model, planned.config, place.precision), "check": check, "label": f"evaluating {name}"}
    study = RoutingStudy(model, data.test, how) if planned.trained and model.has_router else None
    evaluation = evaluate(model, data.test, decode=planned.config.decode_used, observe=study or (lambda: None), **how)
    routing = study.record(planned, seed, evaluation) if study else None
    return Outcome(_row(planned, seed, evaluation, training, model), routing)


def _save_weights(model: Planner, planned: PlannedRow, outcome: Outcome, place: Place) -> None:
    row, environment = outcome.row, place.environment
    notes = {
        "row": planned.model,
        "scale": planned.scale,
        "seed": row.seed,
        "config": planned.config.to_dict(),
        "steps": row.steps,
        "seconds": row.train_seconds,
        **shares(row),
        "precision": place.precision,
        "threads": torch.get_num_threads(),
        "versions": plain(environment.get("versions", {})),
    }
    save(place.folder / "weights" / f"{trial_name(planned, row.seed)}.safetensors", model, notes=notes)


def _row(planned: PlannedRow, seed: int, outcome: Evaluation, training: Training, model) -> Row:
    trained = planned.trained
    kinds = "test or validation mazes" if planned.config.validate_every else "test mazes"
    online = f"{training.rejected} of the training mazes drawn were {kinds} and were rejected"
    notes = [online] if trained and planned.config.train == "online" else []
    if trained and planned.run is not None and planned.config.precision != planned.run.precision:
        notes.append(f"trained in {planned.config.precision}")
    return Row(
        model=planned.model,
        trained=trained,
        seed=seed,
        scale=planned.scale,
        params=parameter_count(model) if model is not None else 0,
        gflop_per_maze=gflop_per_maze(model, evaluation_passes(model, planned.config)) if model is not None else 0.0,
        steps=training.steps,
        train_seconds=training.seconds if trained else None,
        train_mazes_per_second=training.mazes_per_second if trained else None,
        eval_mazes_per_second=outcome.mazes_per_second,
        reached=outcome.reached.tolist(),
        optimal=outcome.optimal.tolist(),
        exact=[] if outcome.exact is None else outcome.exact.tolist(),
        moves_correct=outcome.moves_correct,
        moves_total=outcome.moves_total,
        curve=training.curve,
        validation=training.validation,
        config=planned.options,
        paths=outcome.paths[:MAZES_SHOWN],
        note="; ".join(notes),
    )
