"""From a config dataclass to a command line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from poh_ext.training.config import BenchmarkConfig, ConfigError
from poh_ext.training.validation import flag

__all__ = ["main", "parse", "split_lists"]


def parse(config_type: type[BenchmarkConfig], arguments: Sequence[str], *, program: str | None = None
          ) -> BenchmarkConfig:
    """Options from the command line; --quick changes the defaults, so flags given beside it win.

    Raises SystemExit with code 2 for flags that are unknown or not of their type, 0 after --help.
    """
    import tyro

    defaults = config_type()
    if "--quick" in arguments:
        defaults = dataclasses.replace(defaults, **config_type.quick_defaults())
    return tyro.cli(config_type, args=split_lists(config_type, arguments), default=defaults, prog=program,
                    description=config_type.__doc__)


def split_lists(config_type: type[BenchmarkConfig], arguments: Sequence[str]) -> list[str]:
    """Accept commas in options that take a list: --models tiny,small and --models=tiny,small as --models tiny small."""
    lists = {flag(f.name) for f in dataclasses.fields(config_type) if isinstance(f.default, tuple)}
    words, in_list = [], False
    for word in arguments:
        name, equals, value = word.partition("=")
        if word.startswith("-"):
            in_list = name in lists
            if in_list and equals:
                words.append(name)
                word = value
        words += [part for part in word.split(",") if part] if in_list else [word]
    return words


def main(config_type: type[BenchmarkConfig], arguments: Sequence[str] | None = None, *, program: str | None = None
         ) -> int:
    """Parse, check, run; return the exit code: 0 done, 2 bad options, 130 stopped by a signal, 1 failed."""
    try:
        config = parse(config_type, sys.argv[1:] if arguments is None else arguments, program=program)
        from poh_ext.training.benchmark import run_benchmark

        return run_benchmark(config)
    except ModuleNotFoundError as error:
        if error.name not in ("tyro", "tqdm", "matplotlib", "scipy"):
            raise
        print(f"error: {error.name} is not installed; pip install 'poh_ext[experiments]' brings it", file=sys.stderr)
        return 2
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # a second Ctrl-C, or one before the run began
        print("stopped", file=sys.stderr)
        return 130
