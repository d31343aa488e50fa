"""The options of a run, before any work: what cannot be run is refused, by flag, value and what is accepted; what does
nothing is told."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Any, Literal

from poh_ext.mazes import GENERATORS
from poh_ext.models.config import OptionError
from poh_ext.results import CONTROLS
from poh_ext.training.presets import SOLVERS, with_presets

__all__ = ["ConfigError", "check", "flag", "ineffective"]

_COUNTS = ("test", "epochs", "steps_per_epoch", "multi_horizon", "seeds", "batch_size", "deep_supervision",
           "validation")
# What the published planners and their training do not have.
_NOT_PUBLISHED = ("valid_heads", "norm", "head", "positions", "cell_features", "reinject", "residual", "route_scale",
                  "routing", "supervision", "train_R", "grad_passes", "test_R", "deep_supervision", "ema",
                  "tolerance", "state_noise")  # fmt: skip


class ConfigError(ValueError):
    """An option, or a combination of options, that cannot be run. The message names the flag."""


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check(config) -> None:
    """Raise ConfigError for the first option of a BenchmarkConfig that cannot be run."""
    names = [f.name for f in dataclasses.fields(config)]
    if config.train != "online":
        _require(config, "train", lambda v: isinstance(v, int) and v >= 1, "at least 1, or online")
    for name in _COUNTS:
        _require(config, name, lambda v: v >= 1, "at least 1")
    _require(config, "maze_size", lambda v: 2 <= v <= 256, "from 2 to 256")
    _require(config, "lr", lambda v: 0 < v < math.inf, "a finite number above 0")
    _require(config, "label_smoothing", lambda v: 0 <= v <= 1, "from 0 to 1")
    _require(config, "warmup_steps", lambda v: v >= 0, "at least 0")
    _require(config, "route_ent_weight", lambda v: 0 <= v < math.inf, "a finite number, at least 0")
    _require(config, "min_path", lambda v: 0 <= v <= 1, "from 0 to 1")
    _require(config, "seed", lambda v: 0 <= v < 2**62, "from 0 to 2**62 - 1")
    for name in names:
        choices = _choices(type(config), name)
        value = getattr(config, name)
        for given in (value if isinstance(value, tuple) else (value,)) if choices else ():
            if given not in choices:
                raise ConfigError(f"{flag(name)} {given}: must be one of {', '.join(map(str, choices))}")
        if value == () and choices:
            raise ConfigError(f"{flag(name)}: name at least one of {', '.join(choices)}")
    _check_planners(config)
    if config.seeds > 10_000:
        raise ConfigError(f"--seeds {config.seeds}: at most 10000, or training and test seeds would meet")
    if config.cpu and config.device not in ("auto", "cpu"):
        raise ConfigError(f"--cpu contradicts --device {config.device}: give one of them")
    if config.protocol == "as-published" and config.algorithm != "dfs":
        raise ConfigError(f"--algorithm {config.algorithm} contradicts --protocol as-published: it has dfs mazes")
    if config.protocol == "as-published" and config.train == "online":
        raise ConfigError("--train online contradicts --protocol as-published: it has a small fixed set")
    if config.algorithm not in GENERATORS:
        raise ConfigError(f"--algorithm {config.algorithm}: must be one of {', '.join(GENERATORS)}")
    _require(config, "ray", lambda v: v in ("off", "auto", "local") or ":" in v, "off, auto, local or HOST:PORT")
    _check_rows(config)
    _check_training(config)
    _check_experiments(config)


def _check_planners(config) -> None:
    """What no planner can be, by the planners' own checks."""
    for scale, shape in config.shapes.items():
        try:
            config.planner("poh", shape)
        except OptionError as error:
            value = getattr(config if hasattr(config, error.name) else shape, error.name)
            of = f" of {scale}" if scale and error.of_shape else ""
            raise ConfigError(f"{flag(error.name)} {value}: {error.flag_words}{of}") from error


def _check_rows(config) -> None:
    """What contradicts a head, a row, or the published form."""
    if config.head == "moves" and config.multi_horizon > 1:
        raise ConfigError(f"--multi-horizon {config.multi_horizon} contradicts --head moves: it scores the next move")
    if config.routing == "token" and "poh_token" in config.row_names:
        raise ConfigError("--routing token contradicts --rows poh_token: it would be the row poh again")
    solvers = [name for name in config.row_names if name in SOLVERS]
    if solvers and config.preset == "solve":
        raise ConfigError(f"--rows {solvers[0]} contradicts --preset solve: it would be the row {SOLVERS[solvers[0]]} "
                          "again")
    if solvers and "" not in config.shapes:
        raise ConfigError(f"--rows {solvers[0]}: only in run_12x12_8m_benchmark.py, whose planners have one size")
    if config.protocol == "as-published":
        for name in _NOT_PUBLISHED:
            value = getattr(config, name)
            if value != next(f.default for f in dataclasses.fields(config) if f.name == name):
                raise ConfigError(f"{flag(name)} {_words(value)} contradicts --protocol as-published: nothing of the "
                                  "kind was published")


def _check_training(config) -> None:
    """The levers of the training."""
    counts = "at least 1, or "
    _require(config, "grad_passes", lambda v: v == "all" or (isinstance(v, int) and v >= 1), counts + "all")
    _require(config, "test_R", lambda v: v == "R" or (isinstance(v, int) and v >= 1), counts + "R")
    _require(config, "tolerance", lambda v: 0 <= v < math.inf, "a finite number, at least 0")
    _require(config, "ema", lambda v: 0 <= v < 1, "at least 0 and below 1")
    _require(config, "validate_every", lambda v: v >= 0, "at least 0")
    _require(config, "state_noise", lambda v: 0 <= v < math.inf, "a finite number, at least 0")
    _require(config, "weight_decay", lambda v: 0 <= v < math.inf, "a finite number, at least 0")
    for name, least, most in (("train_R", 1, 10_000), ("train_sizes", 2, 256)):
        value = getattr(config, name)
        if value is not None and not (len(value) == 2 and least <= value[0] <= value[1] <= most):
            raise ConfigError(f"{flag(name)} {_words(value)}: must be the lowest and the highest, from {least} to "
                              f"{most}")
        growth, to = f"{name}_growth", getattr(config, f"{name}_growth")
        if to is not None and value is None:
            raise ConfigError(f"{flag(growth)} {to}: needs {flag(name)}, whose upper end grows")
        if to is not None and not value[1] <= to <= most:
            raise ConfigError(f"{flag(growth)} {to}: must be from the upper end of {flag(name)}, {value[1]}, to {most}")
    for name in ("train_R", "test_R"):
        if config.R == 1 and getattr(config, name) not in (None, "R"):
            raise ConfigError(f"--R 1 contradicts {flag(name)}: planners of one pass never run another number")
    if config.supervision == "all" and config.head != "moves":
        raise ConfigError("--supervision all: needs --head moves")
    if config.train_sizes is not None:
        for name, value in (("train", "online"), ("head", "moves"), ("positions", "none")):
            if getattr(config, name) != value:
                raise ConfigError(f"--train-sizes {_words(config.train_sizes)}: needs {flag(name)} {value}")


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check_experiments(config) -> None:
    """--ablation and --ablate choose the rows themselves."""
    if config.ablation and config.ablate:
        raise ConfigError("--ablate contradicts --ablation: run one after the other, each with its own --output")
    chosen = "--ablation" if config.ablation else "--ablate" if config.ablate else None
    presets = with_presets(type(config)(), quick=config.quick, preset=config.preset)
    if chosen and config.rows not in (type(config).rows, presets.rows):
        raise ConfigError(f"--rows contradicts {chosen}, which has rows of its own: give one of them")
    if chosen and config.parity != "depth":
        raise ConfigError(f"--parity {config.parity} contradicts {chosen}, whose PoH is matched with its depth kept")
    if config.ablate and config.looped_baseline:
        raise ConfigError("--looped-baseline contradicts --ablate: it is a row of --ablation")
    if config.resume and config.overwrite:
        raise ConfigError("--resume contradicts --overwrite: the one keeps what is finished, the other removes it")


def _require(config, name: str, holds: Callable[[Any], bool], accepted: str) -> None:
    value = getattr(config, name)
    if not holds(value):  # written so that NaN, which compares false, is refused
        raise ConfigError(f"{flag(name)} {value}: must be {accepted}")


def _choices(config_type: type, name: str) -> tuple[str, ...]:
    """The literal values a field accepts, () if it isn't a choice (tyro checks these too, for the command line)."""
    hint = typing.get_type_hints(config_type)[name]
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def ineffective(config) -> list[str]:
    """Sentences about options of a BenchmarkConfig that are legal but do nothing, and what a reader of its table must
    know."""
    rows = set(config.row_names) - set(SOLVERS)  # which follow options of their own
    trained = {name for name in rows if name not in CONTROLS and not name.startswith("untrained_")}
    poh, looped = {name for name in trained if name.startswith("poh")}, trained - {"baseline"}
    found = []
    if set(config.rows) & (set(SOLVERS) - set(config.row_names)) and not config.quick:
        why = "--protocol as-published" if config.protocol == "as-published" else "--ablation or --ablate"
        found.append(f"the rows {' and '.join(SOLVERS)} are left out with {why}")
    if config.ent_anneal and config.route_ent_weight == 0:
        found.append("--ent-anneal does nothing while --route-ent-weight is 0")
    if config.route_ent_weight > 0 and not poh:
        found.append("--route-ent-weight does nothing: no PoH row is trained")
    if config.train != "online" and _chosen(config, "steps_per_epoch"):
        found.append("--steps-per-epoch does nothing without --train online")
    if config.validate_every and not trained and not set(config.row_names) & set(SOLVERS):
        found.append("--validate-every does nothing: no planner is trained")
    elif config.validate_every > config.epochs:
        found.append(f"--validate-every {config.validate_every}: there are {config.epochs} epochs, so that only the "
                     "end of the training is validated")
    if not config.validate_every and _chosen(config, "validation"):
        found.append("--validation does nothing without --validate-every")
    if config.parity == "none" and "poh" in rows:
        found.append("--parity none: PoH has the baseline's shape and more parameters than it")
    if config.parity == "width" and "poh" in rows:
        found.append("--parity width: PoH keeps the baseline's width and has fewer layers than it")
    return found + _ineffective_training(config, rows, poh, looped)


def _ineffective_training(config, rows: set[str], poh: set[str], looped: set[str]) -> list[str]:
    found = []
    if not poh and "untrained_poh" not in rows:
        found += [f"{flag(name)} does nothing: there is no PoH row"
                  for name in ("residual", "route_scale", "routing") if _chosen(config, name)]
    elif config.routing == "token" and not {"poh", "untrained_poh", "poh_shallow"} & rows:
        found.append("--routing does nothing: the row poh_token has it anyway")
    if config.supervision == "path" and _chosen(config, "reach"):
        found.append("--reach does nothing without --supervision all")
    passes = [name for name in ("train_R", "grad_passes", "test_R", "deep_supervision", "tolerance", "state_noise", "R")
              if _chosen(config, name)]
    if passes and not looped:
        found += [f"{flag(name)} does nothing: all trained planners run one pass" for name in passes]
        return found
    most = config.most_passes()
    if config.grad_passes != "all" and config.grad_passes >= most:
        found.append(f"--grad-passes {config.grad_passes} does nothing: no step runs more than {most} passes")
    if config.state_noise and (config.grad_passes == "all" or config.grad_passes >= most):
        found.append("--state-noise does nothing: all passes have gradients, and it comes before them")
    graded = config.graded(most)
    if config.deep_supervision > graded:
        found.append(f"--deep-supervision {config.deep_supervision}: no more than {graded} passes have gradients, and "
                     "no more states are supervised")
    if config.train_R is not None and config.test_R != "R" and _chosen(config, "R"):
        found.append("--R does nothing beside --train-R and --test-R")
    if set(passes) - {"R"} and "baseline" in rows:
        found.append("the baseline runs one pass whatever the options of passes say: on the same mazes and targets, it "
                     "is the control without a loop; the looped baseline is the recurrent one")
    if config.tolerance and config.R == 1:
        found.append("--tolerance does nothing with --R 1: planners of one pass compute every cell")
    elif config.tolerance:
        planners = [config.planner("poh", shape) for shape in config.shapes.values()]
        found.append(f"--tolerance {config.tolerance:g}: " + (
            "GFLOP per maze counts every cell in every pass, also those at rest"
            if all(p.valid_heads == p.n_heads and p.depth == 1 for p in planners) else
            "it saves time only in planners of one layer whose heads all see neighbours"))
    if config.supervision == "all" and config.train == "online" and _chosen(config, "min_path"):
        found.append("--min-path holds for the test mazes: with --supervision all and --train online the training's "
                     "start and goal are any cells")
    return found


def _chosen(config, name: str) -> bool:
    """Whether the option has another value than the program's default."""
    return getattr(config, name) != next(f.default for f in dataclasses.fields(config) if f.name == name)
