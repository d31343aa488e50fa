"""Rejects options that cannot be run, before any work: the error names the flag, the value and what is accepted."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Any, Literal

from poh_ext.mazes import GENERATORS

__all__ = ["ConfigError", "flag", "validate"]

_COUNTS = ("test", "epochs", "steps_per_epoch", "R", "T", "multi_horizon", "seeds", "batch_size",
           "d_model", "n_heads", "d_ff", "depth")  # fmt: skip


class ConfigError(ValueError):
    """An option, or a combination of options, that cannot be run. The message names the flag."""


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def validate(config) -> None:
    """Raise ConfigError for the first option of a BenchmarkConfig that cannot be run."""
    names = [f.name for f in dataclasses.fields(config)]
    if config.train != "online":
        _require(config, "train", lambda v: isinstance(v, int) and v >= 1, "at least 1, or online")
    for name in _COUNTS:
        if name in names:
            _require(config, name, lambda v: v >= 1, "at least 1")
    _require(config, "maze_size", lambda v: 2 <= v <= 256, "from 2 to 256")
    _require(config, "lr", lambda v: 0 < v < math.inf, "a finite number above 0")
    _require(config, "label_smoothing", lambda v: 0 <= v <= 1, "from 0 to 1")
    _require(config, "dropout", lambda v: 0 <= v < 1, "at least 0 and below 1")
    _require(config, "warmup_steps", lambda v: v >= 0, "at least 0")
    _require(config, "route_ent_weight", lambda v: 0 <= v < math.inf, "a finite number, at least 0")
    _require(config, "min_path", lambda v: 0 <= v <= 1, "from 0 to 1")
    _require(config, "seed", lambda v: 0 <= v < 2**62, "from 0 to 2**62 - 1")
    for name in names:
        choices = _choices(type(config), name)
        value = getattr(config, name)
        for given in (value if isinstance(value, tuple) else (value,)) if choices else ():
            if given not in choices:
                raise ConfigError(f"{flag(name)} {given}: must be one of {', '.join(choices)}")
        if value == () and choices:
            raise ConfigError(f"{flag(name)}: name at least one of {', '.join(choices)}")
    for scale, shape in config.shapes.items():
        if shape.d_model % shape.n_heads:
            of = f" of {scale}" if scale else ""
            raise ConfigError(f"--n-heads {shape.n_heads}: must divide --d-model {shape.d_model}{of}")
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
    _check_experiments(config)


def _check_experiments(config) -> None:
    """--ablation and --ablate choose the rows themselves."""
    if config.ablation and config.ablate:
        raise ConfigError("--ablate contradicts --ablation: run one after the other, each with its own --output")
    chosen = "--ablation" if config.ablation else "--ablate" if config.ablate else None
    if chosen and config.rows != type(config).rows:
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
