"""From a config dataclass to a command line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from poh_ext.training.config import BenchmarkConfig, ConfigError

__all__ = ["main", "parse"]


def parse(config_type: type[BenchmarkConfig], arguments: Sequence[str], *, program: str | None = None
          ) -> BenchmarkConfig:
    """Options from the command line; --quick changes the defaults, so flags given beside it win.

    Raises SystemExit with code 2 for flags that are unknown or not of their type, 0 after --help.
    """
    import tyro

    defaults = config_type()
    if "--quick" in arguments:
        defaults = dataclasses.replace(defaults, **config_type.quick_defaults())
    return tyro.cli(config_type, args=list(arguments), default=defaults, prog=program,
                    description=config_type.__doc__)


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
