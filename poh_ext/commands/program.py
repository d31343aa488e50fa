"""`poh-ext COMMAND`: what the commands are called, and what is said of a name that is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import poh_ext
from poh_ext._program import BAD_OPTIONS, did_you_mean, run

__all__ = ["COMMANDS", "main"]


def _info(arguments: Sequence[str], program: str) -> int:
    from poh_ext.commands import info

    return info.main(arguments, program=program)


def _maze(arguments: Sequence[str], program: str) -> int:
    from poh_ext.commands import maze

    return maze.main(arguments, program=program)


def _solve(arguments: Sequence[str], program: str) -> int:
    from poh_ext.commands import solve

    return solve.main(arguments, program=program)


def _evaluate(arguments: Sequence[str], program: str) -> int:
    from poh_ext.commands import evaluate

    return evaluate.main(arguments, program=program)


def _bench(arguments: Sequence[str], program: str) -> int:
    from poh_ext.bench.__main__ import main as bench

    return run(lambda: bench(arguments, program=program))


def _benchmark(arguments: Sequence[str], program: str) -> int:
    from poh_ext.training import cli, config

    return cli.main(config.Benchmark12x12Config, arguments, program=program)


def _scaling(arguments: Sequence[str], program: str) -> int:
    from poh_ext.training import cli, config

    return cli.main(config.ScalingBenchmarkConfig, arguments, program=program)


COMMANDS: dict[str, tuple[Callable[[Sequence[str], str], int], str]] = {
    "info": (_info, "print which kernels were built, which are used, and why others are not"),
    "maze": (_maze, "make mazes, convert files of them, print them as text or draw them (PNG, SVG)"),
    "solve": (_solve, "solve a maze with a trained planner; draw it (PNG) or animate it (GIF)"),
    "evaluate": (_evaluate, "share of held-out mazes that a planner solves exactly, over passes"),
    "bench": (_bench, "time the kernels beside what PyTorch and other packages offer"),
    "benchmark": (_benchmark, "train a plain transformer and PoH on 12x12 mazes and compare them"),
    "scaling": (_scaling, "the same at five sizes, from 0.5 to 100 million parameters, on 16x16 mazes"),
}


def main(arguments: Sequence[str] | None = None, *, program: str = "poh-ext") -> int:
    """Run a command and return its exit code: 2 for bad options; the others each command says."""
    name, *others = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        return COMMANDS[name][0](others, f"{program} {name}")
    if name in ("-h", "--help"):
        return run(_say, _help(program))
    if name == "--version":
        return run(_say, f"poh_ext {poh_ext.__version__}")
    print(f"{program}: error: {did_you_mean(name, COMMANDS)}", file=sys.stderr)
    return BAD_OPTIONS


def _say(text: str) -> int:
    print(text)
    return 0


def _help(program: str) -> str:
    lines = [f"  {name:10} {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {program} COMMAND [OPTION ...]",
            "",
            poh_ext.__doc__ or "",
            "",
            "commands:",
            *lines,
            "",
            f"`{program} COMMAND --help` describes a command, `{program} --version` prints the version.",
            "`python -m poh_ext` is the same program; without a command it does what info does.",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
