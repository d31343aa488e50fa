"""What goes by a name: the defaults that --quick and --preset solve bring, over which flags given on the command line
win, and the rules of --protocol."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "OF_SOLVERS",
    "QUICK_12X12",
    "QUICK_SCALING",
    "SOLVE",
    "SOLVERS",
    "ProtocolRules",
    "protocol_of",
    "solver_config",
    "solver_identity",
    "with_presets",
]

# Sized for float32 on 2 cores without bfloat16 instructions: about 3 minutes there, with the solvers.
QUICK_12X12: dict[str, Any] = {
    "d_model": 128,
    "n_heads": 4,
    "d_ff": 512,
    "depth": 2,
    "train": 1000,
    "epochs": 2,
    "lr": 2e-3,
    "warmup_steps": 10,
    "validity_mask": True,
    "routing_intervention": False,
    "output": Path("experiments/results/benchmark_12x12_quick"),
    "rows": ("random", "untrained_baseline", "untrained_poh", "baseline", "poh", "looped_solver", "poh_solver"),
}
QUICK_SCALING: dict[str, Any] = {
    "models": ("tiny",),
    "maze_size": 8,
    "epochs": 6,
    "lr": 2e-3,
    "warmup_steps": 30,
    "validity_mask": True,
    "output": Path("experiments/results/parameter_scaling_quick"),
}

# Why each of these is needed: docs/solve.md. Two passes for each cell of the longest path at 12x12, 110 cells.
SOLVE: dict[str, Any] = {
    "train": "online",
    "train_sizes": (5, 12),
    "maze_size": 12,
    "min_path": 50 / 144,
    "test": 1000,
    "epochs": 60,
    "steps_per_epoch": 100,
    "batch_size": 32,
    "supervision": "all",
    "R": 220,
    "train_R": (4, 40),
    "train_R_growth": 120,
    "train_R_draw": "log",
    "grad_passes": 12,
    "deep_supervision": 3,
    "state_noise": 0.1,
    "rest": 0.1,
    "algorithm": "dfs,obstacles,braid,few-loops,percolation,open",
    "precision": "float32",
    "lr": 2e-3,
    "warmup_steps": 50,
    "ema": 0.999,
    "label_smoothing": 0.0,
    "dropout": 0.0,
    "multi_horizon": 1,
    "validity_mask": False,
    "maze_enc": False,
    "route_ent_weight": 0.0,
    "cell_features": 6,
    "valid_heads": "all",
    "norm": "post",
    "head": "moves",
    "positions": "none",
    "reinject": "on",
    "residual": "none",
    "route_scale": "heads",
    "rows": ("random", "untrained_baseline", "untrained_poh", "baseline", "poh", "looped_baseline"),
    "output": Path("experiments/results/solve"),
}
# The planners that the recipe was found for, where the program has one size: 19,992 parameters, and 30,728 of PoH,
# which keeps the width: what each can do is compared, and the table has the parameters.
SOLVE_SHAPE: dict[str, Any] = {"d_model": 48, "n_heads": 4, "d_ff": 96, "depth": 1, "parity": "none"}
# 1,200 steps without the growth of passes.
SOLVE_QUICK: dict[str, Any] = {
    "epochs": 12,
    "train_R_growth": None,
    "test": 200,
    "output": Path("experiments/results/solve_quick"),
}


def with_presets(config: Any, *, quick: bool, preset: str) -> Any:
    """The options with the defaults that --quick and --preset bring."""
    known = {field.name for field in dataclasses.fields(config)}
    changes: dict[str, Any] = dict(config.quick_defaults) if quick else {}
    if preset == "solve":
        changes |= SOLVE | (SOLVE_SHAPE if "d_model" in known else {}) | (SOLVE_QUICK if quick else {})
    return dataclasses.replace(config, **{name: value for name, value in changes.items() if name in known})


# Rows of the planners of --preset solve in a run of other planners, and which planner each is.
SOLVERS = {"looped_solver": "looped_baseline", "poh_solver": "poh"}
# With --quick: small batches of mazes that are smaller than those of the test, and few steps. Both planners solve 12x12
# nevertheless, as a pass goes the same way in mazes of all sizes.
SOLVERS_QUICK: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 16,
    "train_sizes": (4, 9),
    "grad_passes": 8,
    "train_R_growth": None,
}
# What they share with the run.
_OF_THE_RUN = ("test", "maze_size", "min_path", "algorithm", "decode", "seed", "seeds", "cpu", "device", "precision",
               "quick", "validate_every", "validation", "tensorboard", "save_weights", "output")  # fmt: skip

# What acts on a run of SOLVERS alone. The training mazes of the run are left out of its test.
OF_SOLVERS = (*_OF_THE_RUN, "train", "rows", "preset", "overwrite", "resume", "dry_run", "ray")


def solver_config(config: Any) -> Any:
    """The options of SOLVERS in a run: those of --preset solve, but for the mazes of the test, --decode and where it
    computes.

    In larger mazes than the recipe's they are tested with more passes, in proportion to the cells. Unless a precision
    is asked for they are trained in float32: so narrow, they gain no time by bfloat16 and lose accuracy.
    """
    recipe = with_presets(type(config)(), quick=False, preset="solve")
    passes = max(recipe.R, math.ceil(recipe.R * config.cells / recipe.cells))
    shared = {name: getattr(config, name) for name in _OF_THE_RUN}
    changes = shared | solver_changes(config.quick, config.precision)
    return dataclasses.replace(recipe, preset="solve", R=passes, **changes)


def solver_changes(quick: bool | None, precision: str | None) -> dict[str, Any]:
    """What --quick and --precision of a run change in the recipe of its SOLVERS."""
    return (SOLVERS_QUICK if quick else {}) | {"precision": "float32" if precision == "auto" else precision}


def solver_identity(config: dict[str, Any]) -> dict[str, Any]:
    """The options of the SOLVERS in a run that may differ where the run's own are the same; {} without such rows.

    Args:
        config: of the run, as plain values.
    """
    rows = config.get("rows")
    left_out = config.get("protocol") == "as-published" or config.get("ablation") or config.get("ablate")
    if left_out or not isinstance(rows, list) or not any(name in rows for name in SOLVERS):
        return {}
    recipe = SOLVE | solver_changes(config.get("quick"), config.get("precision"))
    return {f"{name} of the solver rows": recipe[name] for name in (*SOLVERS_QUICK, "precision")}


@dataclass(frozen=True)
class ProtocolRules:
    """What a protocol decides beside the mazes. The defaults are those of the default protocol.

    Attributes:
        cell_features: of a cell that the planners see; None: --cell-features.
        reduction: of the loss.
        clamp: scores are clamped to +/- this before the softmax of the loss; None: they are not.
        smooth_masked: label smoothing also where --validity-mask restricts the moves, over the allowed ones.
        rate_from_zero: the learning rate is 0 at the first step, and each later one has the rate of the step before.
        count_start: optimal compares cells, the start included, instead of moves.
        true_mazes: the mazes are those that the paths are shortest in. False: planners, validity mask and rollout get
            grids without walls (`MazeBatch.open`), and whether a maze is solved exactly cannot be said.
    """

    cell_features: int | None = None
    reduction: str = "mean"
    clamp: float | None = None
    smooth_masked: bool = True
    rate_from_zero: bool = False
    count_start: bool = False
    true_mazes: bool = True


PROTOCOLS = {
    "default": ProtocolRules(),
    "as-published": ProtocolRules(
        cell_features=1,
        reduction="position_mean",
        clamp=20.0,
        smooth_masked=False,
        rate_from_zero=True,
        count_start=True,
        true_mazes=False,
    ),
}


def protocol_of(config: Any) -> ProtocolRules:
    """What --protocol decides."""
    return PROTOCOLS[config.protocol]
