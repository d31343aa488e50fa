"""The plan of a benchmark, before any work: models, sizes, memory, estimated time, and what does not fit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from poh_ext.models import gflop_per_maze, parameter_count
from poh_ext.models.planners import build
from poh_ext.results import CONTROLS
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.memory import available_memory, describe_bytes, misfit, training_memory
from poh_ext.training.on_the_way import validations
from poh_ext.training.passes import passes_at_test
from poh_ext.training.plan import PlannedRow
from poh_ext.training.presets import SOLVERS
from poh_ext.training.protocol import Data, protocol_of
from poh_ext.training.routing_study import interventions
from poh_ext.training.schedule import warmup_warning
from poh_ext.training.timing import describe_seconds, seconds_per_maze

__all__ = ["print_estimate", "warnings_of", "without_misfits"]


def without_misfits(rows: list[PlannedRow], config: BenchmarkConfig, device: torch.device, precision: str, *,
                    available: int | None = None) -> tuple[list[PlannedRow], dict[str, str]]:
    """The rows whose size fits the memory, and for each size that does not: which planner, its estimate, what is free.

    A size goes as a whole: a baseline without the PoH it is to be compared with would tell nothing.
    """
    available = available_memory(device) if available is None else available
    skipped: dict[str, str] = {}
    for row in rows:
        if row.trained and row.scale not in skipped:
            reason = misfit(_memory(row, config, device, precision), available)
            if reason is not None:
                skipped[row.scale] = f"{row.model}: {reason} (batches of {config.batch_size}; --batch-size lowers it)"
    return [row for row in rows if row.scale not in skipped or row.kind in CONTROLS], skipped


def print_estimate(rows: list[PlannedRow], data_of: Callable[[PlannedRow], Data], device: torch.device,
                   precision: str, *, runs: Callable[[PlannedRow], int], check: Callable[[], None]) -> float:
    """Print a line for each planner, timing a few steps of those still to be trained, and what each size costs where
    there are several; return the seconds of it all.

    Args:
        rows: what is to be run.
        data_of: what a row is trained and tested on; steps are timed on it.
        runs: how many seeds of a row are still to be trained.
        check: called between steps; may raise to stop.
    """
    print(f"  {'size':6} {'model':34} {'params':>11} {'GFLOP/maze':>10} {'memory':>8} {'steps':>6} {'s/step':>7}"
          "  time per seed")
    costs: dict[str, _Cost] = {}
    for row in filter(lambda row: row.trained, rows):
        cost = costs.setdefault(row.scale, _Cost())
        with torch.device("meta"):
            model = build(row.planner, row.config.maze_size)
        config, data = row.config, data_of(row)
        gflop = gflop_per_maze(model, passes_at_test(model, config))
        steps = config.total_steps(data.n_train)
        time = f"{'-':>7}  finished"
        if runs(row):
            each = seconds_per_maze(row, data.train, device=device, precision=row.precision(precision),
                                    check=check)
            # To recondition is a forward pass for each cell of a path.
            forwards = 1 if config.decode_used == "table" else float(data.test.length.double().mean())
            validated = forwards * validations(config) * (len(data.validation) if data.validation else 0)
            forwards += interventions(row, len(data.test))
            tested = (forwards * len(data.test) + validated) * _forward_share(row, data)
            seconds = each * (config.epochs * data.batches.mazes_per_epoch + tested)
            cost.seconds += runs(row) * seconds
            time = f"{each * min(config.batch_size, data.n_train):>7.2g}  {describe_seconds(seconds)}"
        memory = _memory(row, config, device, precision)
        cost.memory = max(cost.memory, memory)
        print(f"  {row.scale or '-':6} {row.model:34} {parameter_count(model):>11,} {gflop:>10.3g} "
              f"{describe_bytes(memory):>8} {steps:>6} {time}")
        print(f"  {'':6}   " + ", ".join(f"{key} {value}" for key, value in row.options.items()), flush=True)
    if len(costs) > 1:
        print("each size, all its planners and seeds:")
        for scale, cost in costs.items():
            print(f"  {scale:6} {describe_seconds(cost.seconds) if cost.seconds else 'finished':>12}, "
                  f"{describe_bytes(cost.memory)} of memory at most")
    return sum(cost.seconds for cost in costs.values())


@dataclass
class _Cost:
    """Of a size: the time of what is not finished, and the memory of the planner that needs most."""

    seconds: float = 0.0
    memory: int = 0


def _forward_share(row: PlannedRow, data: Data) -> float:
    """What a test maze costs, in mazes of the training: a forward pass is a third of a step, per pass and cell."""
    config = row.config
    cells = data.test.mazes.n_cells / data.train.mazes.n_cells
    if row.kind == "baseline":
        return cells / 3
    run = config.mean_passes()
    return cells * config.test_passes / (run + 2 * config.graded(run))


def warnings_of(config: BenchmarkConfig, mazes: int) -> list[str]:
    """What a user must know before, and a reader after, a run on so many training mazes."""
    warnings = config.notes()
    if config.quick:
        warnings.append("--quick preset: small planners and few steps, far below the full benchmark; its figures "
                        "show that everything works, not how good the planners get"
                        + (", but for the solvers, which are those of docs/solve.md after a part of their training"
                           if set(config.row_names) & set(SOLVERS) else ""))
    warmup = warmup_warning(total_steps=config.total_steps(mazes), peak=config.lr, warmup_steps=config.warmup_steps,
                            from_zero=protocol_of(config).rate_from_zero)
    return [*warnings, warmup] if warmup else warnings


def _memory(row: PlannedRow, config: BenchmarkConfig, device: torch.device, precision: str) -> int:
    batch = config.batch_size if config.train == "online" else min(config.batch_size, config.train)
    passes = None
    if row.kind != "baseline" and config.R > 1:
        passes = config.graded(config.most_passes())
    return _traced_memory(row.planner, config.size_range[1], batch, device, row.precision(precision), passes)


@functools.lru_cache(maxsize=256)  # a second or more each, and asked for twice
def _traced_memory(planner, size, batch, device, precision, passes) -> int:
    return training_memory(planner, size, batch, device=device, precision=precision, passes=passes)
