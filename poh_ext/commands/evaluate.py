"""The share of held-out mazes that a planner solves exactly, over passes.

    poh-ext evaluate --weights my.safetensors --passes 0.5 1 2 5 10 --plot passes.png --json passes.json
    poh-ext evaluate --mazes 20:30:200 --algorithm dfs wilson prim kruskal percolation obstacles
    poh-ext evaluate --mazes 20:90:200 --start any dead-end corridor junction
    poh-ext evaluate --mazes 20:40:200 --braid 0.1

A maze is solved exactly if the best move of each cell, followed from the start without a memory, reaches the goal in as
few moves as possible; this also holds for mazes with loops (percolation, obstacles, --braid). "Could be known" is the
share of mazes in which, after that many passes, each cell of the path could have learned from its neighbours where the
goal is, or that all other ways end. "The only path" is for mazes with loops: of those that have one shortest path, the
share in which the planner walks it, which is what HRM and TRM count.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from poh_ext._figures import save_png
from poh_ext._files import is_replaced
from poh_ext._optional import require
from poh_ext._program import Parser, number, run_command, said_on
from poh_ext.commands.planner import add_planner, device_of, planner_name
from poh_ext.commands.source import add_generator, generator_of
from poh_ext.solve.evaluation import DEFAULT_SETS, MOST_FACTOR, MazeSet, Outcome, measure, save_json
from poh_ext.solve.evaluation_report import accuracy_over_passes, table_lines
from poh_ext.solve.pretrained import load
from poh_ext.tasks import STARTS

__all__ = ["main"]


def main(arguments: Sequence[str], *, program: str = "python -m poh_ext solve evaluate") -> int:
    return run_command(_evaluate, program, __doc__, arguments)


def _evaluate(parser: Parser, arguments: Sequence[str]) -> int:
    parser.add_argument(
        "--mazes",
        type=_maze_set,
        nargs="+",
        default=list(DEFAULT_SETS),
        metavar="SIZE:PATH:COUNT",
        help="sets of test mazes: side, fewest cells on the shortest path, number of mazes "
        f"(default: {' '.join(map(str, DEFAULT_SETS))})",
    )
    parser.add_argument(
        "--passes",
        type=number("passes for each move", most=MOST_FACTOR, what="factors"),
        nargs="+",
        default=[1.0, 1.5, 2.0, 5.0],
        metavar="F",
        help="passes for each move of a maze's shortest path (default: 1 1.5 2 5)",
    )
    add_generator(parser, several=True)
    parser.add_argument(
        "--start",
        choices=STARTS,
        nargs="+",
        default=["any"],
        metavar="KIND",
        help="one or more kinds of cell to start from. "
        + "; ".join(f"{k}: {v}" for k, v in STARTS.items())
        + " (default: any)",
    )
    parser.add_output("--json", help="write the outcome on every maze, after each set")
    parser.add_output("--plot", suffix=".png", help="draw the shares over passes, with 95 %% bands (PNG)")
    add_planner(parser)
    options = parser.parse_args(arguments)
    algorithms, starts = list(dict.fromkeys(options.algorithm or ["dfs"])), list(dict.fromkeys(options.start))
    generator_of(parser, options, algorithms)
    device = device_of(parser, options)
    require("scipy.stats")
    require("tqdm")
    if options.plot:
        require("matplotlib.figure")
    model, recipe, notes = load(options.weights)
    factors, outcomes = list(dict.fromkeys(options.passes)), []
    count = len(options.mazes) * len(algorithms) * len(starts)
    about = {"weights": options.weights, "notes": notes, "tolerance": max(options.tolerance, model.rest)}
    try:
        measured = measure(
            model.to(device),
            recipe,
            options.mazes,
            factors,
            algorithms=algorithms,
            starts=starts,
            density=options.density,
            braid=options.braid or 0.0,
            tolerance=options.tolerance,
            watch=_watched,
        )
    except ValueError as error:
        parser.error(f"argument --mazes{'' if starts == ['any'] else ' or --start'}: {error}")

    def kept() -> Iterator[Outcome]:
        """Yield the outcomes, and write each to the JSON file as soon as it is known."""
        for outcome in measured:
            outcomes.append(outcome)
            complete = len(outcomes) == count
            if options.json and (complete or is_replaced(options.json)):  # a pipe gets the whole, once
                save_json(options.json, outcomes, {**about, "complete": complete})
            yield outcome

    said = said_on(options.json, options.plot)
    for line in table_lines(kept(), factors):
        print(line, file=said, flush=True)
    if options.json:
        print(f"wrote {options.json}", file=said)
    if options.plot:
        title = f"{planner_name(options.weights, recipe)}, {sum(p.numel() for p in model.parameters()):,} parameters"
        print(f"wrote {save_png(accuracy_over_passes(outcomes, title), options.plot)}", file=said)
    return 0


def _maze_set(text: str) -> MazeSet:
    try:
        return MazeSet.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@contextmanager
def _watched(label: str, mazes: int) -> Iterator[Callable[[int], None]]:
    """Show the number of mazes done, as a progress bar or as a line at intervals."""
    from poh_ext.training.progress import Progress  # needs tqdm

    with Progress(label, total=mazes, unit="maze", ends=False) as progress:
        yield progress.step
