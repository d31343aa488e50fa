"""What a benchmark runs: its rows, in order, each with the options it is trained with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from poh_ext.results import CONTROLS
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.planners import planner_options
from poh_ext.training.presets import SOLVERS, solver_config

__all__ = ["FEATURES", "PlannedRow", "one_at_a_time", "planned_rows"]

# Name, option, its value without the feature and with it (None: the benchmark's default), whether only PoH has it.
FEATURES = (
    ("multi-horizon", "multi_horizon", 1, 3, False),
    ("label smoothing", "label_smoothing", 0.0, None, False),
    ("warm-up", "warmup_steps", 0, None, False),
    ("maze encoder", "maze_enc", False, True, False),
    ("validity mask", "validity_mask", False, True, False),
    ("routing entropy weight", "route_ent_weight", 0.0, 5e-4, True),
)


@dataclass(frozen=True)
class PlannedRow:
    """One row of the table, for every seed.

    Attributes:
        model: its name in results.json: the kind, and after a slash what was changed ("poh/without warm-up").
        kind: one of CONTROLS, or the planner to build.
        trained: False for the controls.
        scale: size of the planner; "" where the benchmark has one only, and for CONTROLS.
        config: the options it is trained with.
        options: keyword arguments of the planner's class.
        run: options of the run, where those of the row are a recipe of its own: it is tested on the run's mazes.
    """

    model: str
    kind: str
    trained: bool
    scale: str
    config: BenchmarkConfig
    options: dict[str, Any]
    run: BenchmarkConfig | None = None

    @property
    def key(self) -> tuple[str, str, bool]:
        """The key of the row in results: see report.Row.key."""
        return self.scale, self.model, self.trained

    def precision(self, of_run: str) -> str:
        """In which it is trained: as its own options ask, else as the run is."""
        return of_run if self.config.precision == "auto" else self.config.precision


def one_at_a_time(config: BenchmarkConfig) -> list[tuple[str, dict[str, Any], bool]]:
    """(what is changed, the changed option, whether only for PoH): each feature that is on is switched off, each that
    is off is switched on, all else as chosen.

    Example:
        >>> one_at_a_time(ScalingBenchmarkConfig())[0]
        ('without multi-horizon', {'multi_horizon': 1}, False)
    """
    changes = []
    for name, option, off, on, only_poh in FEATURES:
        is_on = getattr(config, option) != off
        default = next(f.default for f in dataclasses.fields(config) if f.name == option) if on is None else on
        change = {option: off if is_on else default}
        changes.append((f"{'without' if is_on else 'with'} {name}", change, only_poh))
    return changes


def planned_rows(config: BenchmarkConfig) -> list[PlannedRow]:
    """All rows of a benchmark, size by size; the controls without a planner, which have no size, come first.

    Raises:
        ConfigError: no PoH of the baseline's size exists.
    """
    rows = []
    rows += [PlannedRow(name, name, False, "", config, {}) for name in config.row_names if name in CONTROLS]
    for scale in config.shapes:
        for name in config.row_names:
            kind = name.removeprefix("untrained_")
            if kind in SOLVERS:
                kind, own = SOLVERS[kind], solver_config(config)
                rows.append(PlannedRow(name, kind, True, scale, own, planner_options(kind, own), run=config))
            elif kind not in CONTROLS:
                rows.append(PlannedRow(kind, kind, kind == name, scale, config, planner_options(kind, config, scale)))
        if config.ablate:
            rows += _changed(rows, config, scale)
    return rows


def _changed(rows: list[PlannedRow], config: BenchmarkConfig, scale: str) -> list[PlannedRow]:
    changed = []
    for text, change, only_poh in one_at_a_time(config):
        for row in rows:
            if row.trained and row.scale == scale and (row.kind == "poh" or not only_poh):
                # The planner keeps the shape it has as chosen: with another width two things would change at once.
                options = {**row.options, **{k: v for k, v in change.items() if k in row.options}}
                changed.append(dataclasses.replace(row, model=f"{row.kind}/{text}", options=options,
                                                   config=dataclasses.replace(config, **change)))
    return changed
