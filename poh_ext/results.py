"""The measurements of one run of a benchmark: the data model of results.json, its checks, and its safe saving.

A report is computed from this file alone, so it holds raw outcomes (one bool per test maze), not percentages. A `Row`
is one model, trained or untrained, on one seed. `Results` is the whole run.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shlex
import sys
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from poh_ext._files import write_atomically
from poh_ext.routing_records import check_outcomes, check_routing

__all__ = [
    "CONTROLS",
    "DIVERGED",
    "SCHEMA_VERSION",
    "Results",
    "Row",
    "check_validation",
    "label",
    "plain",
    "solved_measure",
]

SCHEMA_VERSION = 1
PROTOCOLS = ("default", "as-published")
STATUSES = ("complete", "interrupted")
DIVERGED = " diverged: "
"""Stands in a warning of `Results` between the planner with its seed and what happened to its training."""
CONTROLS = ("random", "random_table", "beeline")
"""Rows without a planner; the first is what chance is taken for."""
_NAMES = {
    "poh": "PoH",
    "poh_shallow": "shallow PoH",
    "poh_token": "PoH per token",
    "random": "random policy",
    "beeline": "beeline policy",
    "poh_solver": "PoH solver",
}
# Fields of a row that are texts, and those that are whole numbers from 0 on.
_TEXTS, _COUNTS = ("model", "scale", "note"), ("seed", "params", "steps", "moves_correct", "moves_total")
_SECONDS = ("train_seconds", "train_mazes_per_second", "eval_mazes_per_second", "gflop_per_maze")
# Steps and epochs (from 0) that were taken, seconds of training alone so far, validation mazes, shares of them.
VALIDATION_FIELDS = ("step", "epoch", "seconds", "mazes", "reached", "optimal")


def label(model: str, trained: bool = True, scale: str = "") -> str:
    """The name that a reader sees: ("poh", False, "tiny") -> "tiny PoH, untrained".

    Text after a slash in the name is a change to the model: ("poh/without warm-up",) -> "PoH, without warm-up".
    """
    untrained = "" if trained or model in CONTROLS else ", untrained"
    kind, _, change = model.partition("/")
    change = f", {change}" if change else ""
    return f"{scale} {_NAMES.get(kind, kind.replace('_', ' '))}{change}{untrained}".strip()


def solved_measure(points: list[dict]) -> str:
    """The share by which mazes are called solved: the strictest one that all points have."""
    return "exact" if all("exact" in point for point in points) else "optimal"


@dataclass
class Row:
    """One model, trained or untrained, evaluated on the test mazes of one seed.

    Attributes:
        model: "baseline", "poh", "looped_baseline", one of CONTROLS or any other name.
        trained: False for control rows (fresh weights, and CONTROLS).
        seed: seed of the test set in `Results.test_sets` that it was evaluated on.
        params: number of trainable parameters; 0 for CONTROLS.
        gflop_per_maze: arithmetic of evaluating one maze, in 10^9 operations; None if not known.
        steps: number of optimiser steps.
        train_seconds, train_mazes_per_second: time and speed of the training alone; None if nothing was trained.
        eval_mazes_per_second: test mazes planned and rolled out per second.
        reached, optimal: one outcome of the rollout per test maze, in the order of the seed's test set.
        moves_correct: number of cells of the true paths whose next move was predicted.
        moves_total: number of these cells in all.
        curve: one dict per logged step: step, epoch, loss, cross_entropy, routing_entropy, lr. Values that are not
            finite (a diverged loss) are stored as null, because JSON has no NaN.
        config: hyper-parameters of the model.
        note: text shown below the table, e.g. "stopped at the time limit".
        scale: size class in a scaling benchmark ("tiny"); "" if there is only one size.
        paths: cells walked on the first few test mazes, start first, for a picture of them.
        validation: accuracy during the training, one dict per validation with VALIDATION_FIELDS and, where it
            is known, the share "exact"; may be empty.
        exact: one bool per test maze, True if the best move of each cell alone gives a shortest path
            (`rollout.solved_exactly`). Empty if no single table of moves is followed, and in older files.
    """

    model: str
    trained: bool
    seed: int
    params: int
    gflop_per_maze: float | None
    steps: int
    train_seconds: float | None
    train_mazes_per_second: float | None
    eval_mazes_per_second: float | None
    reached: list[bool]
    optimal: list[bool]
    moves_correct: int
    moves_total: int
    curve: list[dict] = field(default_factory=list)
    config: dict = field(default_factory=dict)
    note: str = ""
    scale: str = ""
    paths: list[list[int]] = field(default_factory=list)
    validation: list[dict] = field(default_factory=list)
    exact: list[bool] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, bool]:
        """(scale, model, trained): rows with the same key differ only in the seed and are pooled in the table."""
        return self.scale, self.model, self.trained

    def describe(self) -> str:
        name = f"{self.scale} {self.model}".strip()
        return f"row {name!r} ({'trained' if self.trained else 'untrained'}, seed {self.seed})"


_KINDS = {("experiment", "command", "created"): str, ("config", "environment"): dict, ("warnings",): list}


def _command_line() -> str:
    """What a user typed, of sys.argv."""
    path, words = Path(sys.argv[0]), sys.argv[1:]
    if path.stem == "ipykernel_launcher":
        return "(in a notebook)"
    start = ["python"]
    if "TORCHELASTIC_RUN_ID" in os.environ and (count := int(os.environ["WORLD_SIZE"])) > 1:
        each = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = ["--nnodes", str(count // each)] if count > each else []
        start = ["torchrun", *nodes, "--nproc-per-node", str(each)]
    elif path.stem == "poh-ext":
        return shlex.join(["poh-ext", *words])
    if path.name == "__main__.py":
        return shlex.join([*start, "-m", path.parent.name, *words])
    return shlex.join([*start, sys.argv[0], *words])


@dataclass
class Results:
    """A whole run: its options, its machine and its results.

    Attributes:
        experiment: name of the benchmark.
        protocol: "default" or "as-published".
        config: every option of the command line.
        environment: `describe_environment()`.
        command: the command line that reproduces the run.
        created: ISO 8601, UTC.
        rows: one per model, trained or untrained, and seed.
        test_sets: seed -> {"n": test mazes, "path_lengths": cells on the shortest path of each, "n_train": mazes
            trained on}.
        status: "complete", or "interrupted" if it was stopped early; the rows are those finished by then.
        warnings: sentences that the reader of the report must see.
        routing: head weights of trained PoH planners, and outcomes with other weights (routing_records.py); optional.

    Examples:
        >>> results = Results("12x12", "default", {"epochs": 30}, describe_environment())
        >>> results.test_sets[0] = {"n": 2, "path_lengths": [51, 60], "n_train": 400}
        >>> results.rows.append(Row("random", False, 0, 0, None, 0, None, None, None, [True, False],
        ...                         [False, False], moves_correct=40, moves_total=109))
        >>> results.save("results.json")
    """

    experiment: str
    protocol: str
    config: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    command: str = field(default_factory=_command_line)
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    rows: list[Row] = field(default_factory=list)
    test_sets: dict[int, dict] = field(default_factory=dict)
    status: str = "complete"
    warnings: list[str] = field(default_factory=list)
    routing: list[dict] = field(default_factory=list)

    def validate(self) -> None:
        """Raise ValueError that names the first row or field that contradicts another."""
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {self.protocol!r}; accepted: {', '.join(PROTOCOLS)}")
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}; accepted: {', '.join(STATUSES)}")
        for names, kind in _KINDS.items():
            for name in names:
                if not isinstance(getattr(self, name), kind):
                    raise ValueError(f"{name} is {getattr(self, name)!r}, not a {kind.__name__}")
        if not all(isinstance(warning, str) for warning in self.warnings):
            raise ValueError(f"warnings must be sentences, not {self.warnings!r}")
        for seed, test_set in self.test_sets.items():
            if missing := {"n", "path_lengths", "n_train"} - set(test_set):
                raise ValueError(f"test_sets[{seed}] lacks {', '.join(sorted(missing))}")
            if len(test_set["path_lengths"]) != test_set["n"]:
                given = len(test_set["path_lengths"])
                raise ValueError(f"test_sets[{seed}]: {given} path_lengths for n={test_set['n']}")
        seen = set()
        for row in self.rows:
            _check_types(row)
            if row.seed not in self.test_sets:
                known = sorted(self.test_sets) or "no seed"
                raise ValueError(f"{row.describe()} has no test set; test_sets has {known}")
            n = self.test_sets[row.seed]["n"]
            check_outcomes(row.describe(), row.reached, row.optimal, n)
            if row.exact and len(row.exact) != n:
                raise ValueError(f"{row.describe()} has {len(row.exact)} exact outcomes for {n} test mazes")
            if any(exact and not best for best, exact in zip(row.optimal, row.exact, strict=False)):
                raise ValueError(f"{row.describe()} counts a maze as exact that is not optimal")
            if not 0 <= row.moves_correct <= row.moves_total:
                raise ValueError(f"{row.describe()}: moves_correct={row.moves_correct} of {row.moves_total}")
            check_validation(row.describe(), row.validation)
            if (row.key, row.seed) in seen:
                raise ValueError(f"{row.describe()} occurs twice")
            seen.add((row.key, row.seed))
        check_routing(self.routing, self.test_sets)

    def save(self, path: str | os.PathLike) -> Path:
        """Check, then write atomically. If there is a contradiction, ValueError names it and nothing is written."""
        self.validate()
        record = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        text = json.dumps(plain(record), indent=1, allow_nan=False) + "\n"
        # Flat lists and objects go on one line: outcomes by the thousand are unreadable below each other. A line
        # break is never part of a JSON string, so no string is changed.
        for flat in (r"\[\n[^\[\]{}]*\]", r"\{\n[^\[\]{}]*\}"):
            text = re.sub(flat, lambda match: re.sub(r"\n *", " ", match[0]), text)
        return write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Results:
        """Read and check a file that `save` wrote. ValueError names the file and the error in it."""
        path = Path(path)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError, lists in lists in lists
            raise ValueError(f"{path} is damaged or not a results file: {error}") from error
        if not isinstance(record, dict) or "schema_version" not in record:
            raise ValueError(f"{path} is not a results file: it has no schema_version")
        version = record.pop("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path} has schema_version {version!r}; this poh_ext reads {SCHEMA_VERSION}")
        try:
            _check_fields(cls, record, "results")
            for row in record["rows"]:
                _check_fields(Row, row, "row")
            record["rows"] = [Row(**row) for row in record["rows"]]
            record["test_sets"] = {int(seed): value for seed, value in record["test_sets"].items()}
            results = cls(**record)
            results.validate()
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return results


def _check_types(row: Row) -> None:
    """Raise ValueError that names a field which the report could not read."""

    def number(value: object) -> bool:
        return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and 0 <= value < math.inf

    values = vars(row)
    wrong = [name for name in _TEXTS if not isinstance(values[name], str)]
    wrong += [name for name in _COUNTS if not number(values[name]) or isinstance(values[name], float)]
    wrong += [name for name in _SECONDS if values[name] is not None and not number(values[name])]
    wrong += ["trained"] if not isinstance(row.trained, bool) else []
    if wrong:
        raise ValueError(f"{row.describe()}: {wrong[0]} is {values[wrong[0]]!r}")


def check_validation(name: str, points: list) -> None:
    """Raise ValueError that names the first point that is invalid or contradicts the one before it."""
    for i, point in enumerate(points):
        if not isinstance(point, dict) or set(point) - {"exact"} != set(VALIDATION_FIELDS):
            given = ", ".join(map(str, point)) if isinstance(point, dict) else type(point).__name__
            needed = ", ".join(VALIDATION_FIELDS)
            raise ValueError(f"{name}: validation[{i}] must have the fields {needed}, not {given}")
        if not all(isinstance(value, int | float) and abs(value) < 2**63 for value in point.values()):
            raise ValueError(f"{name}: validation[{i}] must be finite numbers, not {list(point.values())}")
        shares = [point[measure] for measure in ("exact", "optimal", "reached") if measure in point]
        if not (point["mazes"] >= 1 and all(a <= b for a, b in itertools.pairwise([0, *shares, 1]))):
            raise ValueError(
                f"{name}: validation[{i}] must have shares of 1 maze or more with 0 <= exact <= optimal "
                f"<= reached <= 1, not {' and '.join(map(str, shares))} of {point['mazes']}"
            )
    for before, after in itertools.pairwise(points):
        if after["step"] <= before["step"] or after["seconds"] < before["seconds"]:
            raise ValueError(
                f"{name}: validation goes back, from step {before['step']} at {before['seconds']} s to "
                f"step {after['step']} at {after['seconds']} s"
            )


def _check_fields(cls, record, what: str) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"{what} is a {type(record).__name__}, not an object")
    if unknown := set(record) - {f.name for f in fields(cls)}:
        raise ValueError(f"{what} has unknown fields {', '.join(sorted(unknown))}")
    # A saved file has every field; one left to its default would make up a date or a command. (The first files had
    # no routing.)
    needed = {f.name for f in fields(cls) if cls is Results or (f.default is MISSING and f.default_factory is MISSING)}
    if missing := needed - set(record) - {"routing"}:
        raise ValueError(f"{what} lacks {', '.join(sorted(missing))}")


def plain(value):
    """A copy that JSON can hold: tensors and numpy values become numbers and lists, values that are not finite None."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return plain(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    return str(value)  # Path, torch.dtype, torch.device, Enum
