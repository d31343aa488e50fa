"""Run a benchmark: print the plan, evaluate and train each row, save after each, write the report."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from poh_ext._optional import require
from poh_ext.environment import describe_environment
from poh_ext.maze_drawing import MazeSample
from poh_ext.mazes import MazeBatch
from poh_ext.report import FILES, ablation_table, headline, results_table, verdicts, write_report
from poh_ext.results import DIVERGED, Results, Row, label
from poh_ext.tasks import MazeTasks
from poh_ext.training.checks import require_package
from poh_ext.training.config import BenchmarkConfig, ConfigError
from poh_ext.training.data import Data, make_data
from poh_ext.training.estimate import describe_seconds, print_estimate, warnings_of, without_misfits
from poh_ext.training.evaluate import shares
from poh_ext.training.loop import Diverged
from poh_ext.training.plan import PlannedRow, planned_rows
from poh_ext.training.progress import Interrupted, StopSignals
from poh_ext.training.run_folder import (
    FolderLost,
    FolderTaken,
    Hold,
    check_usable,
    find_interrupted,
    holding,
    output_folder,
    own_folders,
    prepare_output,
    remove_own,
)
from poh_ext.training.sweep import sweep
from poh_ext.training.trial import (
    MAZES_SHOWN,
    Outcome,
    Place,
    assist,
    data_of,
    run_trial,
    trial_checkpoints,
    trial_name,
)
from poh_ext.training.workers import Workers, WorkersLost, choose_device, choose_precision, ending_with_torchrun, joined

__all__ = ["run_benchmark"]


class _Run:
    """One run: its options, where it computes, and the results so far."""

    def __init__(
        self, config: BenchmarkConfig, stop: StopSignals, rows: list[PlannedRow], workers: Workers, command: str | None
    ) -> None:
        self.config, self.stop, self.rows, self.workers = config, stop, rows, workers
        self.device = workers.device or choose_device(config)
        self.precision = choose_precision(config, self.device)
        self.data: dict[int, Data] = {}
        self.folder: Path | None = None
        self.hold: Hold | None = None
        self.begun = not config.overwrite  # until then an earlier run's files stay
        self.environment = environment = describe_environment(self.device)
        environment.update(device=self.device.type, precision=self.precision)
        if workers.count > 1:
            environment["processes"] = workers.count
        self.results = Results(
            experiment=config.title,
            protocol=config.protocol,
            config=config.to_dict(),
            environment=environment,
            status="interrupted",
            **({} if command is None else {"command": command}),
        )

    def open_output(self) -> None:
        """Go on in the folder of an interrupted run of the same options, else take one that holds nothing. Of a dry run
        nothing is written."""
        config = self.config
        folder = earlier = None
        why = ""
        if not config.overwrite:
            folder, earlier, why = find_interrupted(config, self.results.environment)
        if earlier is None:
            self.folder = prepare_output(config.output, overwrite=config.overwrite, dry=config.dry_run)
            if self.folder != output_folder(config.output):
                print(
                    f"{config.output} holds files: writing to {self.folder} (--overwrite replaces an earlier run's "
                    f"files)" + (f"; {why}" if why else "")
                )
            return
        check_usable(folder)
        self.folder = folder
        earlier.warnings = []  # said anew below
        self.results = earlier
        done = len(earlier.rows)
        print(
            f"going on with the interrupted run in {folder}: {done} {'row is' if done == 1 else 'rows are'} finished"
            " (--overwrite starts anew)"
            if earlier.status == "interrupted"
            else f"the run in {folder} is complete"
        )

    @property
    def place(self) -> Place:
        return Place(self.folder.resolve(), self.device, self.precision, self.environment, self.workers)

    def prepare(self) -> None:
        """Draw all mazes and look at the memory first: what can't be run is known before any training."""
        for seed in self.config.run_seeds:
            self.stop.check()
            data = self.data[seed] = make_data(self.config, seed)
            drawn = {"n": len(data.test), "path_lengths": data.test.length.tolist(), "n_train": data.n_train}
            if self.results.test_sets.setdefault(seed, drawn) != drawn:
                raise ConfigError(
                    f"--output {self.folder}: its run met other mazes of seed {seed}, though its options "
                    "are the same; --overwrite starts anew"
                )
        kept, skipped = without_misfits(self.rows, self.device, self.precision, due=self.seeds_left)
        for scale, reason in skipped.items():
            if self.has_trained(scale):
                raise ConfigError(
                    f"--output {self.folder}: its run trained {scale or 'the planners'} before; to go on it needs more "
                    f"memory than there is now: {reason}"
                )
            self.results.warnings.append(f"skipped {scale or 'the planners'}: {reason}")
        if not any(row.trained for row in kept) and any(row.trained for row in self.rows):
            raise ConfigError("no planner fits the memory: " + "; ".join(self.results.warnings))
        self.rows = kept
        self.results.warnings += warnings_of(self.config, self.data[self.config.run_seeds[0]].n_train)
        self.results.warnings += self.left_out()

    def left_out(self) -> list[str]:
        """What is asked for now, and was not when rows were finished that this run has already."""
        found = []
        for asked, what, path in (
            (self.config.save_weights, "weights", "weights/{}.safetensors"),
            (self.config.tensorboard, "files for TensorBoard", "tensorboard/{}"),
        ):
            trained = [trial_name(row, row.seed) for row in self.results.rows if row.trained and asked]
            if lacking := sum(not (self.folder / path.format(name)).exists() for name in trained):
                rows = "row that was" if lacking == 1 else "rows that were"
                found.append(f"no {what} for {lacking} {rows} finished before; --overwrite trains them anew")
        return found

    def print_plan(self) -> None:
        config = self.config
        presets = ["--quick"] * config.quick + [f"--preset {config.preset}"] * (config.preset != "none")
        print(f"{self.results.experiment}" + (f"  ({' '.join(presets)})" if presets else ""))
        threads = f"{torch.get_num_threads()} threads"
        if self.workers.count > 1:
            threads += f" in each of {self.workers.count} processes"
        print(
            f"device {self.device.type}, {threads}, {self.precision}; protocol {config.protocol}, "
            f"decode {config.decode_used}; seeds {', '.join(map(str, config.run_seeds))}; output "
            f"{self.folder or config.output}"
        )
        first = self.data[config.run_seeds[0]]
        low, high = config.size_range
        several = f" (training: {low}x{low} to {high}x{high})" if config.train_sizes else ""
        anywhere = config.supervision == "all" and config.train == "online"
        paths = "shortest paths" + " in the test" * bool(several or anywhere)
        print(
            f"{first.n_train} training and {len(first.test)} test mazes of {config.maze_size}x{config.maze_size}"
            f"{several}, {paths} of {config.min_path_words}; {config.epochs} epochs = "
            f"{config.total_steps(first.n_train)} steps of {config.batch_size}"
            + (", new mazes in each" if config.train == "online" else "")
            + (
                f"; validation of {len(first.validation)} mazes every {config.validate_every} epochs, and at the end"
                if first.validation
                else ""
            ),
            flush=True,
        )
        for warning in self.results.warnings:
            print(f"note: {warning}")
        seconds = print_estimate(
            self.rows,
            lambda row: data_of(row, config.run_seeds[0], first),
            self.device,
            self.precision,
            check=self.stop.check,
            runs=self.seeds_left,
        )
        if seconds:
            count = self.workers.count
            print(
                f"about {describe_seconds(seconds / count)} in all, from a few timed steps of each planner (as busy "
                "as the machine is now)" + (f", if {count} processes are {count} times as fast" if count > 1 else "")
            )
        print(flush=True)

    def begin(self) -> None:
        """This run can be made: what it replaces goes."""
        if not self.begun:
            remove_own(self.folder)
        self.begun = True
        self.save()

    def finished(self) -> set:
        return {(row.key, row.seed) for row in self.results.rows}

    def seeds_left(self, row: PlannedRow) -> int:
        """The number of seeds that a row is not finished for."""
        finished = self.finished()
        return sum((row.key, seed) not in finished for seed in self.config.run_seeds)

    def has_trained(self, scale: str) -> bool:
        """Whether the run that this one goes on with left a finished planner or a checkpoint of this size."""
        rows = any(row.trained and row.scale == scale for row in self.results.rows)
        trials = ((row, seed) for row, seed in self.trials() if row.trained and row.scale == scale)
        return rows or (self.begun and any(trial_checkpoints(*trial, self.place).paths() for trial in trials))

    def run_rows(self) -> None:
        """Everything that is not finished yet, size by size and seed by seed, or with --ray side by side."""
        finished = self.finished()
        waiting = []
        for planned, seed in self.trials():
            if (planned.key, seed) in finished:
                self.forget(planned, seed)  # of a run that was killed after it saved the row
            else:
                waiting.append((planned, seed))
        run = (
            self.one_by_one(waiting)
            if self.config.ray == "off"
            else sweep(waiting, self.config, self.place, self.check)
        )
        for planned, seed, outcome in run:
            if isinstance(outcome, Diverged):
                print(f"error: {outcome}", file=sys.stderr, flush=True)
                self.results.warnings.append(str(outcome))
            else:
                self.record(planned, seed, outcome)

    def one_by_one(self, trials: list[tuple[PlannedRow, int]]) -> Iterator[tuple[PlannedRow, int, Outcome | Diverged]]:
        for planned, seed in trials:
            self.stop.check()
            data = data_of(planned, seed, self.data[seed])
            try:
                yield planned, seed, run_trial(planned, seed, data, self.place, self.stop.check, self.hold.check)
            except Diverged as error:
                yield planned, seed, error

    def trials(self) -> Iterator[tuple[PlannedRow, int]]:
        """Every row for every seed, in the order of the table."""
        for scale in dict.fromkeys(row.scale for row in self.rows):
            for seed in self.config.run_seeds:
                yield from ((row, seed) for row in self.rows if row.scale == scale)

    def record(self, planned: PlannedRow, seed: int, outcome: Outcome) -> None:
        row = outcome.row
        self.results.rows.append(row)
        if outcome.routing is not None:
            self.results.routing.append(outcome.routing)
        place = {(row.scale, row.model, row.trained, seed): i for i, (row, seed) in enumerate(self.trials())}
        self.results.rows.sort(key=lambda r: place.get((*r.key, r.seed), -1))  # they come in any order from a sweep
        self.results.routing.sort(key=lambda r: place.get((r["scale"], r["model"], True, r["seed"]), -1))
        self.save()
        self.forget(planned, seed)
        print_row(row)

    def forget(self, planned: PlannedRow, seed: int) -> None:
        """The row is in results.json: its checkpoints are of no more use."""
        if planned.trained:
            trial_checkpoints(planned, seed, self.place).remove()

    def report(self) -> None:
        seed = self.config.run_seeds[0]
        data = self.data[seed]
        summarize(self.results, self.folder, maze_sample(self.results, seed, data.test, data.test_walls))

    def check(self) -> None:
        self.stop.check()
        self.hold.check()

    def save(self) -> None:
        """FolderLost after it, if the folder was removed meanwhile: see Hold.check."""
        lost = None
        try:
            self.hold.check()
        except FolderLost as reason:
            lost = reason
        self.results.save(self.folder / "results.json")
        if lost is not None:
            raise lost


def run_benchmark(config: BenchmarkConfig, command: str | None = None) -> int:
    """Run all rows for all sizes and seeds; return the exit code: 0, 130 when stopped by Ctrl-C or SIGTERM, or 1 when
    a training diverged, the folder could not be written to the end, or other processes died.

    Each finished row is in results.json at once; when stopped, its status stays "interrupted", and the next run of
    the same options goes on from there.

    Args:
        config: the options.
        command: the command line that the report names; None: the one that this program was started with.

    Raises:
        ConfigError: before any work, for options that cannot be run. ImportError, too: what they need is missing.
    """
    config.check()
    choose_device(config)
    if config.tensorboard:
        require_package("tensorboard", "tensorboard", "tensorboard")
    if config.ray != "off":
        require_package("ray", "ray", "sweep")
    reported = [] if config.dry_run else ["scipy.stats", "matplotlib.figure"]
    for module in reported + ["safetensors.torch"] * config.save_weights:
        require(module)
    rows = planned_rows(config)  # raises where no PoH of the baseline's size exists
    started = time.perf_counter()
    run = None
    try:
        with StopSignals() as stop, ending_with_torchrun(stop.request), joined(config) as workers:
            if workers.count > 1 and config.ray != "off":
                raise ConfigError("--ray contradicts torchrun: start the program with python")
            if not workers.first:
                assist(workers, stop.check)
                return 0
            run = _Run(config, stop, rows, workers, command)
            run.open_output()
            if config.dry_run:
                try:
                    run.prepare()
                    run.print_plan()
                except Interrupted as reason:
                    print(f"stopped by {reason}", file=sys.stderr)
                    return 130
                return 0
            with holding(run.folder) as run.hold, _rescuing(run):
                code = _finish(run)
    except (_NotWritten, WorkersLost) as error:
        kept = f"; {_kept(run.folder, config)}" if run is not None and run.folder is not None else ""
        print(f"error: {error}{kept}", file=sys.stderr)
        return 1
    print(f"\n{describe_seconds(time.perf_counter() - started)} in all")
    return code


def _finish(run: _Run) -> int:
    code = 0
    try:
        run.prepare()
        run.print_plan()
        run.begin()
        run.run_rows()
        if any(DIVERGED in warning for warning in run.results.warnings):
            print(f"error: {_finished(run.results)}, all but those that diverged", file=sys.stderr)
            code = 1
        else:
            run.results.status = "complete"
    except FolderLost as reason:
        print(
            f"error: {reason}; {_finished(run.results)} and written anew; {_again(run.config)} goes on from there",
            file=sys.stderr,
        )
        code = 1
    except Interrupted as reason:
        left = f"{_finished(run.results)}; {_again(run.config)} goes on from there"
        print(f"stopped by {reason}; {left if run.begun else f'{run.folder} is as it was before'}", file=sys.stderr)
        code = 130
    if run.results.test_sets and run.begun:
        try:
            run.save()
        except FolderLost as reason:
            print(f"error: {reason}; the results are written anew", file=sys.stderr)
            code = 1
        run.report()
    return code


class _NotWritten(RuntimeError):
    """The folder of the run could not be written."""


@contextlib.contextmanager
def _rescuing(run: _Run) -> Iterator[None]:
    """_NotWritten where the folder cannot be written any more, with the finished rows in another one if it is another
    run's by now."""
    try:
        yield
    except FolderTaken as error:
        run.folder = prepare_output(run.config.output, overwrite=False)
        with holding(run.folder):
            run.results.save(run.folder / "results.json")
        raise _NotWritten(error) from error
    except OSError as error:
        name = error.filename
        if not isinstance(name, str) or not Path(os.path.realpath(name)).is_relative_to(os.path.realpath(run.folder)):
            raise  # of standard output, say
        raise _NotWritten(f"{name}: {error.strerror}") from error


def _finished(results: Results, adjective: str = "") -> str:
    """ "1 row is finished", "2 rows are finished"; with an adjective "2 finished rows"."""
    n = len(results.rows)
    rows = f"{n} {adjective}row{'' if n == 1 else 's'}"
    return rows if adjective else f"{rows} {'is' if n == 1 else 'are'} finished"


def _again(config: BenchmarkConfig, flag: str = "") -> str:
    """The command that goes on with this run: --overwrite would remove what it left."""
    changes = [f"with {flag}"] * bool(flag) + ["without --overwrite"] * config.overwrite
    return " ".join(["the same command", " and ".join(changes)]).strip()


def _kept(folder: Path, config: BenchmarkConfig) -> str:
    """What a run left that ended with an error, and how to go on."""
    try:
        left = Results.load(folder / "results.json")
    except (OSError, ValueError):
        return f"{folder} holds no results any more"
    if left.status == "complete":
        return f"the results in {folder} are complete; {_again(config, '--resume')} writes the report"
    checkpoint = " and the last checkpoint" if any(folder.glob("checkpoints/*/step-*.pt")) else ""
    return f"{folder} keeps {_finished(left, 'finished ')}{checkpoint}; {_again(config)} goes on from there"


def print_row(row: Row) -> None:
    took = f"  trained in {describe_seconds(row.train_seconds)}" if row.trained else ""
    note = f"; {row.note}" if row.note else ""
    found = "  ".join(f"{name} {100 * share:5.1f} %" for name, share in shares(row).items())
    print(
        f"{label(row.model, row.trained, row.scale):24} seed {row.seed}: {found}  next move "
        f"{100 * row.moves_correct / row.moves_total:5.1f} %  ({len(row.reached)} mazes){took}{note}",
        flush=True,
    )


def summarize(results: Results, folder: Path, sample: MazeSample | None) -> None:
    """Print the table and the verdicts, write report.md and the plots, and say where the files lie."""
    print(f"\n{results_table(results).text()}\n")
    if table := ablation_table(results):
        print(f"{table}\n")
    for line in verdicts(results):
        print(f"- {line}")
    print(f"\n{textwrap.fill(headline(results), 100)}")
    written = write_report(results, folder, sample)
    print("\nfiles:")
    for path in (folder / "results.json", *written):
        print(f"  {path}  {FILES[path.name]}")
    for path, about in own_folders(folder):
        print(f"  {path}/  {about}")


def maze_sample(results: Results, seed: int, test: MazeTasks, walls: MazeBatch) -> MazeSample | None:
    """The first test mazes of a seed with the path of each trained planner (or of what there is), among `walls`, the
    mazes as they were drawn."""
    walked = [row for row in results.rows if row.seed == seed and row.paths and "/" not in row.model]
    walked = [row for row in walked if row.trained] or walked
    if not walked:
        return None
    tasks = test[:MAZES_SHOWN]
    paths = {
        label(row.model, row.trained, row.scale): pad_sequence(
            [torch.tensor(path) for path in row.paths], batch_first=True, padding_value=-1
        )
        for row in walked
    }
    shown = walls[:MAZES_SHOWN]
    return MazeSample(shown.passages, tasks.start, tasks.goal, tasks.path, paths, shown.free())
