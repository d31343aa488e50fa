"""What a training leaves behind as it goes: a log of JSON lines, and where it is asked for TensorBoard's events."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from poh_ext._files import write_atomically
from poh_ext.maze_drawing import MazeSample, maze_sheet
from poh_ext.mazes import MazeBatch
from poh_ext.models.base import Planner
from poh_ext.results import Row, plain
from poh_ext.tasks import MazeTasks
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.evaluate import evaluate, evaluation_options, shares
from poh_ext.training.loop import Watcher

__all__ = ["Board", "History"]

MAZES = 4
PICTURES = 10  # of rollouts, over the training


class History(Watcher):
    """The training log: a JSON object per step and validation, on disk at once, so that nothing is lost
    with the process. After an interruption the file goes on where the checkpoint was taken.

    Args:
        path: made with its folder.
        step: steps that the training goes on from; lines of later ones, and a line that was cut off, are removed.

    Examples:
        >>> history = History(Path("run/logs/poh-seed42.jsonl"), step=0)
        >>> history.step({"step": 1, "loss": 4.97})
        >>> history.close()
    """

    def __init__(self, path: Path, *, step: int) -> None:
        write_atomically(path, b"".join(_lines_until(path, step)))
        self.path = path
        self._file = path.open("ab", buffering=0)  # straight to the system, which outlives a killed process

    def step(self, record: dict[str, Any]) -> None:
        line = json.dumps(plain(record), allow_nan=False).encode() + b"\n"
        with _naming(self.path):
            while line:  # of a disk that is getting full, the system takes a part and says so when it gets the rest
                line = line[self._file.write(line) :]

    def validated(self, point: dict[str, Any]) -> None:
        """Append the validation as a line of its own, after that of the step."""
        when = {name: point[name] for name in ("step", "epoch", "seconds")}
        self.step({**when, "validation": {name: value for name, value in point.items() if name not in when}})

    def close(self) -> None:
        self._file.close()


def _lines_until(path: Path, step: int) -> list[bytes]:
    """The lines of the first `step` steps, or up to the first line that is cut off or damaged."""
    lines = []
    for line in path.read_bytes().splitlines(keepends=True) if step and path.exists() else ():
        try:
            wanted = line.endswith(b"\n") and json.loads(line)["step"] <= step
        except (ValueError, TypeError, KeyError, RecursionError):
            wanted = False
        if not wanted:
            break
        lines.append(line)
    return lines


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Of an OSError, which file or folder it is about."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


class Board(Watcher):
    """Writes TensorBoard events of one training into a folder of its own.

    Args:
        folder: of this training; `tensorboard --logdir` of the folder above it shows all.
        step: steps that the training goes on from: what was written of later ones is withdrawn.
        config: of the training.
        options: the planner's keyword arguments.
        tasks: test mazes, of which the first few are walked in the pictures.
        walls: drawn in the pictures: see Data.test_walls.
        precision: of the forward pass.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        config: BenchmarkConfig,
        options: dict[str, Any],
        tasks: MazeTasks,
        walls: MazeBatch,
        precision: str,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # loads tensorboard: only where it is asked for

        self.config, self.options, self.tasks, self.precision = config, options, tasks[:MAZES], precision
        self.walls = walls[:MAZES]
        self.folder = folder
        _sort_before_now(folder)
        with _naming(folder):
            self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None, flush_secs=10)

    def step(self, record: dict[str, Any]) -> None:
        with _naming(self.folder):
            for name, value in record.items():
                if name not in ("step", "epoch") and value is not None:
                    self._writer.add_scalar(f"training/{name}", value, record["step"])

    def validated(self, point: dict[str, Any]) -> None:
        with _naming(self.folder):
            for measure in (measure for measure in ("reached", "optimal", "exact") if measure in point):
                self._writer.add_scalar(f"validation/{measure} %", 100 * point[measure], point["step"])
            self._writer.add_scalar("validation/training seconds", point["seconds"], point["step"])

    def epoch(self, model: Planner, epoch: int, step: int) -> None:
        """Before the checkpoint of the epoch: so nothing up to it is missing when a killed training goes on."""
        every = max(1, self.config.epochs // PICTURES)
        with _naming(self.folder):
            if (epoch + 1) % every == 0 or epoch + 1 == self.config.epochs:
                self._writer.add_figure("rollouts on test mazes", self._picture(model), step)
            self._writer.flush()

    def _picture(self, model: Planner):
        tasks = self.tasks
        outcome = evaluate(model, tasks, **evaluation_options(model, self.config, self.precision))
        paths = pad_sequence([torch.tensor(path) for path in outcome.paths], batch_first=True, padding_value=-1)
        sample = MazeSample(
            self.walls.passages, tasks.start, tasks.goal, tasks.path, {"planner": paths}, self.walls.free()
        )
        return maze_sheet(sample, max_mazes=MAZES)

    def result(self, row: Row) -> None:
        """The hyper-parameters with what came out."""
        from torch.utils.tensorboard.summary import hparams

        shown = {**self.config.to_dict(), **self.options, "row": row.model, "seed": row.seed}
        shown = {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in shown.items()}
        metrics = {
            **{f"test/{name} %": 100 * share for name, share in shares(row).items()},
            "test/next move %": 100 * row.moves_correct / max(row.moves_total, 1),
        }
        with _naming(self.folder):
            for summary in hparams(shown, metrics):
                self._writer.file_writer.add_summary(summary)
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, row.steps)

    def close(self) -> None:
        with _naming(self.folder):
            self._writer.close()


def _sort_before_now(folder: Path) -> None:
    """TensorBoard reads files of events by the times in their names, which are to come if the clock was set back."""
    files = sorted(folder.glob("events.out.tfevents.*"))
    for before, path in enumerate(reversed(files), 1):
        *head, when, rest = path.name.split(".", 4)
        latest = int(time.time()) - before
        if when.isdecimal() and int(when) > latest:
            path.rename(path.with_name(".".join([*head, f"{latest:010d}", rest])))
