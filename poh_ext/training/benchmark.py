"""Run a benchmark: print the plan, evaluate and train each row, save after each, write the report."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from poh_ext.models import gflop_per_maze, parameter_count
from poh_ext.report import (
    FILES,
    MazeSample,
    Results,
    Row,
    describe_environment,
    results_table,
    routing_record,
    verdicts,
    write_report,
)
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.device import choose_device, choose_precision
from poh_ext.training.evaluate import Evaluation, evaluate, evaluate_random, first_maze_routing
from poh_ext.training.interrupt import Interrupted, StopSignals
from poh_ext.training.loop import Diverged, Training, total_steps, train_planner
from poh_ext.training.output import prepare_output
from poh_ext.training.planners import PLANNERS, build_planner, planner_options
from poh_ext.training.protocol import Data, make_data, planner_view
from poh_ext.training.schedule import warmup_warning

__all__ = ["run_benchmark"]

MAZES_SHOWN = 6  # in the picture


class _Run:
    """One run: its options, where it computes, and the results so far."""

    def __init__(self, config: BenchmarkConfig, stop: StopSignals, folder: Path) -> None:
        self.config, self.stop, self.folder = config, stop, folder
        self.device = choose_device(config)
        self.precision = choose_precision(config, self.device)
        self.data: dict[int, Data] = {}
        self.paths: dict[tuple[str, int], list[list[int]]] = {}
        environment = describe_environment()
        environment.update(device=str(self.device), precision=self.precision)
        self.results = Results(experiment=config.title, protocol=config.protocol,
                               config=config.to_dict(), environment=environment, status="interrupted")

    def print_plan(self) -> None:
        config = self.config
        print(f"{self.results.experiment}" + ("  (--quick preset)" if config.quick else ""))
        print(f"device {self.device}, {torch.get_num_threads()} threads, {self.precision}; protocol {config.protocol}, "
              f"decode {config.decode_used}; seeds {', '.join(map(str, config.run_seeds))}; output {self.folder}")
        first = self.data[config.run_seeds[0]]
        steps = total_steps(config, len(first.train))
        print(f"{len(first.train)} training and {len(first.test)} test mazes of {config.maze_size}x{config.maze_size}, "
              f"shortest paths of {config.min_path_cells} cells or more; {config.epochs} epochs = {steps} steps of "
              f"{config.batch_size}")
        for name in config.rows:
            if name in PLANNERS:
                options = planner_options(name, config)
                model = build_planner(name, config, seed=config.seed)
                shown = ", ".join(f"{key} {value}" for key, value in options.items())
                print(f"  {name:16} {parameter_count(model):>11,} parameters, {gflop_per_maze(model):.3g} GFLOP per "
                      f"maze ({shown})")
        for warning in self.results.warnings:
            print(f"note: {warning}")
        print(flush=True)

    def collect_warnings(self) -> None:
        config, warnings = self.config, self.results.warnings
        warnings.extend(config.notes())
        if config.quick:
            warnings.append(f"--quick preset: planners of {config.d_model} features and {config.depth} layers and few "
                            "steps, far below the full benchmark; its figures show that everything works, not how good "
                            "the planners get")
        first = self.data[config.run_seeds[0]]
        warning = warmup_warning(total_steps=total_steps(config, len(first.train)), peak=config.lr,
                                 warmup_steps=config.warmup_steps)
        if warning:
            warnings.append(warning)

    def prepare(self) -> None:
        """Draw all mazes first: what can't be run is known before any training."""
        for seed in self.config.run_seeds:
            self.stop.check()
            data = self.data[seed] = make_data(self.config, seed)
            self.results.test_sets[seed] = {"n": len(data.test), "path_lengths": data.test.length.tolist(),
                                            "n_train": len(data.train)}
        self.collect_warnings()

    def run_row(self, name: str, seed: int) -> None:
        """Evaluate, after training where the row asks for it, record and save."""
        self.stop.check()
        data, config = self.data[seed], self.config
        label = f"{name} (seed {seed})"
        if name == "random":
            self.record(name, seed, evaluate_random(data.test, seed), Training(), None)
            return
        kind = name.removeprefix("untrained_")
        model = build_planner(kind, config, seed=seed).to(self.device)
        training = Training()
        if kind == name:
            training = train_planner(model, data.train, config, seed=seed, label=label, precision=self.precision,
                                     check=self.stop.check)
        outcome = evaluate(model, data.test, decode=config.decode_used, precision=self.precision,
                           view=lambda mazes: planner_view(mazes, config), check=self.stop.check,
                           label=f"evaluating {label}")
        if training.steps and hasattr(model, "routing_weights"):
            routing = first_maze_routing(model, data.test, precision=self.precision,
                                         view=lambda mazes: planner_view(mazes, config))
            self.results.routing.append(routing_record(kind, seed, *routing))
        self.record(name, seed, outcome, training, model)

    def record(self, name: str, seed: int, outcome: Evaluation, training: Training, model) -> None:
        kind = name.removeprefix("untrained_")
        trained = training.steps > 0
        row = Row(
            model=kind, trained=trained, seed=seed,
            params=parameter_count(model) if model is not None else 0,
            gflop_per_maze=gflop_per_maze(model) if model is not None else 0.0,
            steps=training.steps, train_seconds=training.seconds if trained else None,
            train_mazes_per_second=training.mazes_per_second if trained else None,
            eval_mazes_per_second=outcome.mazes_per_second,
            reached=outcome.reached.tolist(), optimal=outcome.optimal.tolist(),
            moves_correct=outcome.moves_correct, moves_total=outcome.moves_total, curve=training.curve,
            config=planner_options(kind, self.config) if model is not None else {},
        )
        self.results.rows.append(row)
        self.paths[name, seed] = outcome.paths
        self.save()
        took = f"  trained in {training.seconds:.0f} s" if trained else ""
        n = len(row.reached)
        print(f"{name:20} seed {seed}: reached {100 * sum(row.reached) / n:5.1f} %  optimal "
              f"{100 * sum(row.optimal) / n:5.1f} %  next move {100 * row.moves_correct / row.moves_total:5.1f} %"
              f"  ({n} mazes){took}", flush=True)

    def report(self) -> None:
        """Print the table and the verdicts, write report.md and the plots, and say where the files lie."""
        print(f"\n{results_table(self.results).text()}\n")
        for line in verdicts(self.results):
            print(f"- {line}")
        written = write_report(self.results, self.folder, self.maze_sample())
        print("\nfiles:")
        for path in (self.folder / "results.json", *written):
            print(f"  {path}  {FILES[path.name]}")

    def maze_sample(self) -> MazeSample | None:
        """The first test mazes of the first seed, with the path of each trained planner (or of what there is)."""
        seed = self.config.run_seeds[0]
        names = [name for name, s in self.paths if s == seed]
        names = [name for name in names if name in PLANNERS] or names
        if not names:
            return None
        tasks = self.data[seed].test[:MAZES_SHOWN]
        paths = {name: pad_sequence([torch.tensor(path) for path in self.paths[name, seed][:MAZES_SHOWN]],
                                    batch_first=True, padding_value=-1) for name in names}
        return MazeSample(tasks.mazes.passages, tasks.start, tasks.goal, tasks.path, paths)

    def save(self) -> None:
        self.results.save(self.folder / "results.json")


def run_benchmark(config: BenchmarkConfig) -> int:
    """Run all rows for all seeds; return the exit code: 0, or 130 when stopped by Ctrl-C or SIGTERM.

    Each finished row is in results.json at once; when stopped, its status stays "interrupted".

    Raises:
        ConfigError: before any work, for options that cannot be run.
    """
    config.validate()
    choose_device(config)
    for name in PLANNERS:
        if name in config.rows or f"untrained_{name}" in config.rows:
            planner_options(name, config)  # raises where no PoH of the baseline's size exists
    started = time.perf_counter()
    code = 0
    with StopSignals() as stop:
        asked = config.output
        run = _Run(config, stop, prepare_output(asked, overwrite=config.overwrite))
        if run.folder != asked.expanduser():
            print(f"{asked} holds files: writing to {run.folder} (--overwrite replaces an earlier run's files)")
        try:
            run.prepare()
            run.print_plan()
            run.save()
            for seed in config.run_seeds:
                for name in config.rows:
                    run.run_row(name, seed)
            run.results.status = "complete"
        except Interrupted as reason:
            print(f"stopped by {reason}; {len(run.results.rows)} rows are finished", file=sys.stderr)
            code = 130
        except Diverged as error:
            print(f"error: {error}; {len(run.results.rows)} rows are finished", file=sys.stderr)
            code = 1
        if run.results.test_sets:
            run.save()
            run.report()
    print(f"\n{time.perf_counter() - started:.0f} s in all")
    return code
