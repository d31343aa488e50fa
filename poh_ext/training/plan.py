"""What a benchmark runs: its rows, in order, each with its planner and the options it is trained with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from poh_ext.models import PlannerConfig, match_width
from poh_ext.models.base import Planner
from poh_ext.models.config import POH_ONLY, PlannerOptions
from poh_ext.models.planners import build
from poh_ext.results import CONTROLS
from poh_ext.training.config import BenchmarkConfig, ConfigError
from poh_ext.training.presets import SOLVERS, protocol_of, solver_config

__all__ = ["FEATURES", "KINDS", "PlannedRow", "one_at_a_time", "planned_rows", "planner_config"]

KINDS = ("baseline", "looped_baseline", "poh", "poh_shallow", "poh_token")
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
        kind: one of CONTROLS or of KINDS.
        trained: False for the controls.
        scale: size of the planner; "" where the benchmark has one only, and for CONTROLS.
        config: the options it is trained with.
        planner: what is built; None for CONTROLS.
        run: options of the run, where those of the row are a recipe of its own: it is tested on the run's mazes.
    """

    model: str
    kind: str
    trained: bool
    scale: str
    config: BenchmarkConfig
    planner: PlannerConfig | None
    run: BenchmarkConfig | None = None

    @property
    def key(self) -> tuple[str, str, bool]:
        """The key of the row in results: see report.Row.key."""
        return self.scale, self.model, self.trained

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the planner's class, for results.json."""
        return {} if self.planner is None else self.planner.keywords()

    def precision(self, of_run: str) -> str:
        """In which it is trained: as its own options ask, else as the run is."""
        return of_run if self.config.precision == "auto" else self.config.precision

    def build(self, seed: int, device: torch.device) -> Planner:
        """A fresh planner; the same seed and options give the same weights, and the global generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build(self.planner, self.config.maze_size).to(device)


def planner_config(name: str, config: BenchmarkConfig, scale: str = "") -> PlannerConfig:
    """The planner of a row, for one of the benchmark's sizes.

    PoH gets the baseline's number of parameters as --parity says; poh_shallow keeps its width and drops layers,
    poh_token routes per token.
    """
    if name not in KINDS:
        raise ValueError(f"unknown planner {name!r}; known: {', '.join(KINDS)}")
    shape, changes = config.shapes[scale], {}
    if features := protocol_of(config).cell_features:
        changes["cell_features"] = features
    if not name.startswith("poh"):
        return config.planner("baseline", shape, **changes, **({} if name == "looped_baseline" else {"R": 1}))
    shared = {field.name for field in dataclasses.fields(PlannerOptions)} - {"R", *POH_ONLY}
    mode = "width" if name == "poh_shallow" else config.parity
    # To drop heads would change how many of them see all cells.
    rule = "scale" if config.valid_heads else config.parity_rule
    try:
        matched = match_width(
            config.maze_size,
            shape,
            mode=mode,
            rule=rule,
            **{option: getattr(config, option) for option in shared} | changes,
        )
        return config.planner("poh", matched, **changes, **({"routing": "token"} if name == "poh_token" else {}))
    except ValueError as error:
        size = f"--models {scale}" if scale else f"--d-model {shape.d_model}"
        hint = "; poh_shallow needs --depth 2 or more" if name == "poh_shallow" and shape.depth == 1 else ""
        raise ConfigError(f"{size}: {error}{hint}") from error


def one_at_a_time(config: BenchmarkConfig) -> list[tuple[str, dict[str, Any], bool]]:
    """(what is changed, the changed option, whether only for PoH): each feature that is on is switched off, each that
    is off is switched on, all else as chosen.

    Examples:
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
    rows = [PlannedRow(name, name, False, "", config, None) for name in config.row_names if name in CONTROLS]
    for scale in config.shapes:
        for name in config.row_names:
            kind = name.removeprefix("untrained_")
            if kind in SOLVERS:
                kind, own = SOLVERS[kind], solver_config(config)
                rows.append(PlannedRow(name, kind, True, scale, own, planner_config(kind, own), run=config))
            elif kind not in CONTROLS:
                rows.append(PlannedRow(kind, kind, kind == name, scale, config, planner_config(kind, config, scale)))
        if config.ablate:
            rows += _changed(rows, config, scale)
    return rows


def _changed(rows: list[PlannedRow], config: BenchmarkConfig, scale: str) -> list[PlannedRow]:
    changed = []
    for text, change, only_poh in one_at_a_time(config):
        for row in rows:
            if row.trained and row.scale == scale and (row.kind == "poh" or not only_poh):
                # The planner keeps the shape it has as chosen: with another width two things would change at once.
                planner = dataclasses.replace(row.planner, **change) if "maze_enc" in change else row.planner
                changed.append(
                    dataclasses.replace(
                        row, model=f"{row.kind}/{text}", planner=planner, config=dataclasses.replace(config, **change)
                    )
                )
    return changed
