"""From a config dataclass to a command line."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
import typing
from collections.abc import Sequence
from typing import Any

from poh_ext._optional import MissingPackage, require
from poh_ext._program import BAD_OPTIONS, run
from poh_ext.training.checks import flag
from poh_ext.training.config import Benchmark12x12Config, BenchmarkConfig, ConfigError, ScalingBenchmarkConfig
from poh_ext.training.presets import with_presets

__all__ = ["PROGRAMS", "main", "parse", "split_lists"]

PROGRAMS = {"run_12x12_8m_benchmark.py": Benchmark12x12Config, "parameter_scaling_benchmark.py": ScalingBenchmarkConfig}


def parse(
    config_type: type[BenchmarkConfig], arguments: Sequence[str], *, program: str | None = None
) -> BenchmarkConfig:
    """Options from the command line; --quick and --preset change the defaults, so flags given beside them win.

    Raises SystemExit with code 2 for flags that are unknown or not of their type, 0 after --help.
    """
    tyro = require("tyro")
    defaults = with_presets(config_type(), quick=_quick(arguments), preset=_preset(arguments))
    return tyro.cli(
        config_type,
        args=split_lists(config_type, arguments),
        default=defaults,
        prog=program,
        description=config_type.__doc__,
    )


def _quick(arguments: Sequence[str]) -> bool:
    """Whether the last of --quick and --no-quick is --quick."""
    words = [word.replace("_", "-") for word in arguments]  # tyro takes either
    return next((word == "--quick" for word in reversed(words) if word in ("--quick", "--no-quick")), False)


def _preset(arguments: Sequence[str]) -> str:
    """The value of the last --preset; what it may be is checked with all other flags."""
    found = "none"
    for word, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        if word == "--preset":
            found = following
        elif word.startswith("--preset="):
            found = word.partition("=")[2]
    return found


def split_lists(config_type: type[BenchmarkConfig], arguments: Sequence[str]) -> list[str]:
    """Accept commas in options that take a list: --models tiny,small and --models=tiny,small as --models tiny small."""
    lists = {flag(name) for name, hint in typing.get_type_hints(config_type).items() if _takes_a_list(hint)}
    words, in_list = [], False
    for word in arguments:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            in_list = name.replace("_", "-") in lists
            if in_list and equals:
                words.append(name)
                word = value
        words += [part for part in word.split(",") if part] if in_list else [word]
    return words


def _takes_a_list(hint: Any) -> bool:
    """True for a tuple type, and for a tuple type or None."""
    return tuple in (typing.get_origin(hint), *map(typing.get_origin, typing.get_args(hint)))


def main(
    config_type: type[BenchmarkConfig], arguments: Sequence[str] | None = None, *, program: str | None = None
) -> int:
    """Parse, check, run; return the exit code: 0 done, 2 bad options, 130 stopped by a signal, 1 failed, and those of
    poh_ext._program.run."""
    return run(_main, config_type, arguments, program)


def _main(config_type: type[BenchmarkConfig], arguments: Sequence[str] | None, program: str | None) -> int:
    command = None  # what was typed; Results tells it from sys.argv, with torchrun before it
    if arguments is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
        script = next(name for name, known in PROGRAMS.items() if known is config_type)
        command = f"{program or f'python experiments/{script}'} {shlex.join(arguments)}".strip()
    try:
        config = parse(config_type, sys.argv[1:] if arguments is None else arguments, program=program)
        from poh_ext.training.benchmark import run_benchmark

        return run_benchmark(config, command)
    except (ConfigError, MissingPackage) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_OPTIONS
