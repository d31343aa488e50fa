"""The options of a run, before any work: what cannot be run is refused, by flag, value and what is accepted; what does
nothing is told."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import typing
from collections.abc import Callable
from typing import Any, Literal

from poh_ext.mazes import KINDS
from poh_ext.models.config import OptionError
from poh_ext.results import CONTROLS
from poh_ext.training.presets import OF_SOLVERS, SOLVERS, with_presets

__all__ = ["ConfigError", "check", "flag", "ineffective", "require_package", "trained_by_the_run"]


class ConfigError(ValueError):
    """An option, or a combination of options, that cannot be run. The message names the flag."""


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _at_least(least: int, word: str) -> tuple[Callable[[Any], bool], str]:
    return lambda v: v == word or (isinstance(v, int) and v >= least), f"at least {least}, or {word}"


_COUNT = (lambda v: v >= 1, "at least 1")
_NOT_NEGATIVE = (lambda v: 0 <= v < math.inf, "a finite number, at least 0")
# What an option may be, written so that NaN, which compares false, is refused. The planners' options: models/config.py.
_ACCEPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "train": _at_least(1, "online"),
    "test": _COUNT,
    "epochs": _COUNT,
    "steps_per_epoch": _COUNT,
    "multi_horizon": _COUNT,
    "seeds": _COUNT,
    "batch_size": _COUNT,
    "deep_supervision": _COUNT,
    "validation": _COUNT,
    "maze_size": (lambda v: 2 <= v <= 256, "from 2 to 256"),
    "lr": (lambda v: 0 < v < math.inf, "a finite number above 0"),
    "label_smoothing": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "warmup_steps": (lambda v: v >= 0, "at least 0"),
    "route_ent_weight": _NOT_NEGATIVE,
    "min_path": (
        lambda v: 0 <= v <= 1 or (v < math.inf and v == int(v)),
        "from 0 to 1, a share of the maze's cells, or a whole number of cells",
    ),
    "seed": (lambda v: 0 <= v < 2**62, "from 0 to 2**62 - 1"),
    "ray": (lambda v: v in ("off", "auto", "local") or ":" in v, "off, auto, local or HOST:PORT"),
    "grad_passes": _at_least(1, "all"),
    "test_R": _at_least(1, "R"),
    "tolerance": _NOT_NEGATIVE,
    "state_noise": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "ema": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "validate_every": (lambda v: v >= 0, "at least 0"),
}
# What the published planners and their training do not have.
_NOT_PUBLISHED = ("valid_heads", "norm", "head", "positions", "cell_features", "reinject", "residual", "route_scale",
                  "routing", "supervision", "train_R", "grad_passes", "test_R", "deep_supervision", "ema",
                  "tolerance", "state_noise", "rest")  # fmt: skip

# The PoH rows whose shape --parity decides.
_MATCHED = {"poh", "untrained_poh", "poh_token"}
# What does nothing in planners of one pass: in their training alone, and at test, too.
_PASSES_TRAINED = ("train_R", "grad_passes", "deep_supervision", "state_noise")
_PASSES = ("test_R", "tolerance", "R", "reinject")


def require_package(name: str, package: str, extra: str) -> None:
    """ConfigError, with what to install, where the option cannot be honoured."""
    _refuse(
        importlib.util.find_spec(package) is None,
        f"{flag(name)}: {package} is not installed; pip install 'poh_ext[{extra}]' brings it",
    )


def _refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise ConfigError(message)


def check(config) -> None:
    """Raise ConfigError for the first option of a BenchmarkConfig that cannot be run."""
    for name, (holds, accepted) in _ACCEPTED.items():
        value = getattr(config, name)
        _refuse(not holds(value), f"{flag(name)} {value}: must be {accepted}")
    for field in dataclasses.fields(config):
        value, choices = getattr(config, field.name), _choices(type(config), field.name)
        named = ", ".join(map(str, choices))
        for given in (value if isinstance(value, tuple) else (value,)) if choices else ():
            _refuse(given not in choices, f"{flag(field.name)} {given}: must be one of {named}")
        _refuse(value == () and bool(choices), f"{flag(field.name)}: name at least one of {named}")
    _check_planners(config)
    _refuse(config.seeds > 10_000, f"--seeds {config.seeds}: at most 10000, or training and test seeds would meet")
    _refuse(
        config.min_path_cells > config.cells,
        f"--min-path {config.min_path:g}: a maze of {config.maze_size}x{config.maze_size} has {config.cells} cells",
    )
    _refuse(
        config.cpu and config.device not in ("auto", "cpu"),
        f"--cpu contradicts --device {config.device}: give one of them",
    )
    published = config.protocol == "as-published"
    _refuse(
        published and config.algorithm != "dfs",
        f"--algorithm {config.algorithm} contradicts --protocol as-published: it has dfs mazes",
    )
    _refuse(
        published and config.train == "online",
        "--train online contradicts --protocol as-published: it has a small fixed set",
    )
    for kind in config.kinds:
        _refuse(kind not in KINDS, f"--algorithm {kind}: must be one or more of {', '.join(KINDS)}")
    _check_rows(config)
    _check_training(config)
    _check_experiments(config)


def _check_planners(config) -> None:
    """What no planner can be, by the planners' own checks."""
    for scale, shape in config.shapes.items():
        try:
            config.planner("poh", shape)
        except OptionError as error:
            of = f" of {scale}" if scale and error.of_shape else ""
            raise ConfigError(f"{flag(error.name)} {getattr(config, error.name)}: {error.flag_words}{of}") from error


def _check_rows(config) -> None:
    """What contradicts a head, a row, or the published form."""
    _refuse(
        not config.row_names,
        f"--rows {_words(config.rows)} contradicts --protocol as-published, which has none of these rows",
    )
    _refuse(
        config.head == "moves" and config.multi_horizon > 1,
        f"--multi-horizon {config.multi_horizon} contradicts --head moves: it scores the next move",
    )
    _refuse(
        config.routing == "token" and "poh_token" in config.row_names,
        "--routing token contradicts --rows poh_token: it would be the row poh again",
    )
    for name in [name for name in config.row_names if name in SOLVERS][:1]:
        _refuse(
            config.preset == "solve",
            f"--rows {name} contradicts --preset solve: it would be the row {SOLVERS[name]} again",
        )
        _refuse(
            "" not in config.shapes,
            f"--rows {name}: only in run_12x12_8m_benchmark.py (`poh-ext benchmark`), whose planners have one size",
        )
    for name in _NOT_PUBLISHED if config.protocol == "as-published" else ():
        _refuse(
            _chosen(config, name),
            f"{flag(name)} {_words(getattr(config, name))} contradicts --protocol "
            "as-published: nothing of the kind was published",
        )


def _check_training(config) -> None:
    for name, least, most in (("train_R", 1, 10_000), ("train_sizes", 2, 256)):
        value, growth, to = getattr(config, name), flag(f"{name}_growth"), getattr(config, f"{name}_growth")
        if value is None:
            _refuse(to is not None, f"{growth} {to}: needs {flag(name)}, whose upper end grows")
            continue
        _refuse(
            not (len(value) == 2 and least <= value[0] <= value[1] <= most),
            f"{flag(name)} {_words(value)}: must be the lowest and the highest, from {least} to {most}",
        )
        _refuse(
            to is not None and not value[1] <= to <= most,
            f"{growth} {to}: must be from the upper end of {flag(name)}, {value[1]}, to {most}",
        )
    _refuse(
        config.train_R_draw != "uniform" and config.train_R is None,
        f"--train-R-draw {config.train_R_draw}: needs --train-R, the range that it draws from",
    )
    for name in ("train_R", "test_R"):
        _refuse(
            config.R == 1 and getattr(config, name) not in (None, "R"),
            f"--R 1 contradicts {flag(name)}: planners of one pass never run another number",
        )
    _refuse(config.supervision == "all" and config.head != "moves", "--supervision all: needs --head moves")
    for name, value in (("train", "online"), ("head", "moves"), ("positions", "none")):
        _refuse(
            config.train_sizes is not None and getattr(config, name) != value,
            f"--train-sizes {_words(config.train_sizes)}: needs {flag(name)} {value}",
        )


def _check_experiments(config) -> None:
    """--ablation and --ablate choose the rows themselves."""
    _refuse(
        config.ablation and config.ablate,
        "--ablate contradicts --ablation: run one after the other, each with its own --output",
    )
    chosen = "--ablation" if config.ablation else "--ablate" if config.ablate else ""
    presets = with_presets(type(config)(), quick=config.quick, preset=config.preset)
    _refuse(
        bool(chosen) and config.rows not in (type(config).rows, presets.rows),
        f"--rows contradicts {chosen}, which has rows of its own: give one of them",
    )
    _refuse(
        bool(chosen) and config.parity != "depth",
        f"--parity {config.parity} contradicts {chosen}, whose PoH is matched with its depth kept",
    )
    _refuse(
        config.ablate and config.looped_baseline, "--looped-baseline contradicts --ablate: it is a row of --ablation"
    )
    _refuse(
        config.resume and config.overwrite,
        "--resume contradicts --overwrite: the one keeps what is finished, the other removes it",
    )


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _choices(config_type: type, name: str) -> tuple[str, ...]:
    """The literal values a field accepts, () if it isn't a choice (tyro checks these too, for the command line)."""
    hint = typing.get_type_hints(config_type)[name]
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _chosen(config, name: str) -> bool:
    """Whether the option has another value than the program's default."""
    return getattr(config, name) != next(f.default for f in dataclasses.fields(config) if f.name == name)


def _given(config, name: str) -> bool:
    """Whether the option has another value than the preset's default: then someone asked for it."""
    preset = with_presets(type(config)(), quick=config.quick, preset=config.preset)
    return getattr(config, name) != getattr(preset, name)


def trained_by_the_run(config) -> set[str]:
    """The rows that are trained by the run's own options, unlike SOLVERS."""
    return {
        name for name in config.row_names if name not in (*CONTROLS, *SOLVERS) and not name.startswith("untrained_")
    }


def ineffective(config) -> list[str]:
    """Sentences about options of a BenchmarkConfig that are legal but do nothing, and what a reader of its table must
    know."""
    own = [name for name in SOLVERS if name in config.row_names]  # which follow options of their own
    rows = set(config.row_names) - set(own)
    trained = trained_by_the_run(config)
    poh = {name for name in trained if name.startswith("poh")}
    dropped = [name for name in SOLVERS if name in config.rows and name not in config.row_names]
    why = "--protocol as-published" if config.protocol == "as-published" else "--ablation or --ablate"
    found = [
        sentence
        for holds, sentence in (
            (
                dropped and _given(config, "rows"),  # those of a preset were not asked for
                f"the row{'s' * (len(dropped) > 1)} {' and '.join(dropped)} "
                f"{'are' if len(dropped) > 1 else 'is'} left out with {why}",
            ),
            (
                not config.validate_every and _given(config, "validation"),
                "--validation does nothing without --validate-every",
            ),
        )
        if holds
    ]
    if own and rows <= set(CONTROLS):
        names = [field.name for field in dataclasses.fields(config) if field.name not in OF_SOLVERS]
        if ignored := [flag(name) for name in names if _given(config, name)]:
            does = "do" if len(ignored) > 1 else "does"
            found.append(f"{', '.join(ignored)} {does} nothing: {_have_own(own)}")
        return found
    found += [
        sentence
        for holds, sentence in (
            (
                config.ent_anneal and config.route_ent_weight == 0,
                "--ent-anneal does nothing while --route-ent-weight is 0",
            ),
            (
                config.route_ent_weight > 0 and not poh,
                "--route-ent-weight does nothing: no PoH row is trained"
                + _but([name for name in own if name == "poh_solver"]),
            ),
            (
                config.train != "online" and _given(config, "steps_per_epoch"),
                "--steps-per-epoch does nothing without --train online",
            ),
            (config.validate_every and not trained and not own, "--validate-every does nothing: no planner is trained"),
            (
                config.validate_every > config.epochs and trained,
                f"--validate-every {config.validate_every}: there are {config.epochs} epochs, so that only the end of "
                "the training is validated",
            ),
            (
                config.parity == "none" and rows & _MATCHED,
                "--parity none: PoH has the baseline's shape and more parameters than it",
            ),
            (
                config.parity == "width" and rows & _MATCHED,
                "--parity width: PoH keeps the baseline's width and has fewer layers than it",
            ),
        )
        if holds
    ]
    if not poh and "untrained_poh" not in rows:
        found += [
            f"{flag(name)} does nothing: there is no PoH row" + _but([name for name in own if name == "poh_solver"])
            for name in ("T", "residual", "route_scale", "routing", "parity")
            if _given(config, name)
        ]
    elif not rows & _MATCHED and _given(config, "parity"):
        found.append("--parity does nothing: the row poh_shallow keeps the baseline's width anyway")
    elif config.routing == "token" and not {"poh", "untrained_poh", "poh_shallow"} & rows:
        found.append("--routing does nothing: the row poh_token has it anyway")
    if config.supervision == "path" and _given(config, "reach"):
        found.append("--reach does nothing without --supervision all")
    if config.supervision == "all" and config.train == "online" and _given(config, "min_path") and trained:
        found.append(
            "--min-path holds for the test mazes: with --supervision all and --train online the training's start and "
            "goal are any cells"
        )
    looped, tested = trained - {"baseline"}, rows & {"untrained_poh"}
    idle = [
        name
        for names, run in ((_PASSES_TRAINED, looped), (_PASSES, looped | tested))
        for name in names
        if _given(config, name) and not run
    ]
    passes = ("all trained planners run one pass" if trained else "no planner is trained") + _but(own)
    found += [f"{flag(name)} does nothing: {passes}" for name in idle]
    return found + (_ineffective_passes(config, rows) if looped else [])


def _but(own: list[str]) -> str:
    return f" ({_have_own(own)})" if own else ""


def _have_own(own: list[str]) -> str:
    """What the rows in SOLVERS do instead of what the options say."""
    return f"{' and '.join(own)} {'has options of its own' if len(own) == 1 else 'have options of their own'}"


def _ineffective_passes(config, rows: set[str]) -> list[str]:
    chosen = [name for name in (*_PASSES_TRAINED, "test_R", "tolerance") if _chosen(config, name)]
    most = config.most_passes()
    graded, all_graded = config.graded(most), config.grad_passes == "all" or config.grad_passes >= most
    planners = [config.planner("poh", shape) for shape in config.shapes.values()]
    fast = all(planner.valid_heads == planner.n_heads and planner.depth == 1 for planner in planners)
    return [
        sentence
        for holds, sentence in (
            (
                config.grad_passes != "all" and all_graded,
                f"--grad-passes {config.grad_passes} does nothing: no step runs more than {most} passes",
            ),
            (
                config.state_noise and all_graded,
                "--state-noise does nothing: all passes have gradients, and it comes before them",
            ),
            (
                config.deep_supervision > graded,
                f"--deep-supervision {config.deep_supervision}: no more than {graded} passes have gradients, and no "
                "more states are supervised",
            ),
            (
                config.train_R is not None and config.test_R != "R" and _given(config, "R"),
                "--R does nothing beside --train-R and --test-R",
            ),
            (
                chosen and "baseline" in rows,
                "the baseline runs one pass whatever the options of passes say: on the same mazes and targets, it is "
                "the control without a loop; the looped baseline is the recurrent one",
            ),
            (
                config.tolerance and config.tolerance <= config.rest,
                f"--tolerance {config.tolerance:g} does nothing: --rest {config.rest:g} is no less",
            ),
            (
                config.tolerance and config.R == 1,
                "--tolerance does nothing with --R 1: planners of one pass compute every cell",
            ),
            (
                config.tolerance and config.R > 1,
                f"--tolerance {config.tolerance:g}: "
                + (
                    "GFLOP per maze counts every cell in every pass, also those at rest"
                    if fast
                    else "it saves time only in planners of one layer whose heads all see neighbours"
                ),
            ),
        )
        if holds
    ]
