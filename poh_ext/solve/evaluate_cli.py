"""`python -m poh_ext solve evaluate`: the share of held-out mazes that a planner solves exactly, over passes.

    python -m poh_ext solve evaluate --weights my.safetensors --passes 0.5 1 2 5 10 --plot passes.png --json passes.json
    python -m poh_ext solve evaluate --mazes 20:30:200 --algorithm dfs wilson prim kruskal percolation
    python -m poh_ext solve evaluate --mazes 20:90:200 --start any dead-end corridor junction

A maze is solved exactly if the best move of each cell, followed from the start without a memory, reaches the goal in as
few moves as possible; this also holds for mazes with loops (percolation). "Could be known" is the share of mazes in
which, after that many passes, each cell of the path could have learned from its neighbours where the goal is, or that
all other ways end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from poh_ext._files import is_replaced
from poh_ext._optional import require
from poh_ext._program import Parser
from poh_ext.mazes import GENERATORS
from poh_ext.solve._options import tolerance, weights
from poh_ext.solve.outcomes import DEFAULT_SETS, MazeSet, Outcome, measure, save_json
from poh_ext.solve.table import lines
from poh_ext.solve.weights import load
from poh_ext.tasks import STARTS

__all__ = ["evaluate"]


def _maze_set(text: str) -> MazeSet:
    try:
        return MazeSet.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@contextmanager
def _watched(label: str, mazes: int) -> Iterator[Callable[[int], None]]:
    """Show the number of mazes done, as a progress bar or as a line at intervals."""
    from poh_ext.training.progress import Progress

    with Progress(label, total=mazes, unit="maze", ends=False) as progress:
        yield progress.step


def evaluate(parser: Parser, arguments: Sequence[str]) -> int:
    """Add the options to the parser, parse, run, and return the exit code."""
    parser.description = __doc__
    parser.add_argument("--mazes", type=_maze_set, nargs="+", default=list(DEFAULT_SETS), metavar="SIZE:PATH:COUNT",
                        help="sets of test mazes: side, fewest cells on the shortest path, number of mazes "
                        f"(default: {' '.join(map(str, DEFAULT_SETS))})")
    parser.add_argument("--passes", type=float, nargs="+", default=[1.0, 1.5, 2.0, 5.0], metavar="F",
                        help="passes for each move of a maze's shortest path (default: 1 1.5 2 5)")
    parser.add_argument("--algorithm", choices=GENERATORS, nargs="+", default=["dfs"],
                        help="one or more generators; each makes every set (default: dfs)")
    parser.add_argument("--start", choices=STARTS, nargs="+", default=["any"],
                        help="one or more kinds of cell to start from. "
                        + "; ".join(f"{k}: {v}" for k, v in STARTS.items()) + " (default: any)")
    parser.add_output("--json", help="write the outcome on every maze, after each set")
    parser.add_output("--plot", suffix=".png", help="draw the shares over passes, with 95 %% bands (PNG)")
    tolerance(parser)
    weights(parser)
    options = parser.parse_args(arguments)
    require("scipy.stats")
    require("tqdm")
    if options.plot:
        require("matplotlib.figure")
    model, recipe, notes = load(options.weights)
    factors, outcomes = list(dict.fromkeys(options.passes)), []

    algorithms, starts = list(dict.fromkeys(options.algorithm)), list(dict.fromkeys(options.start))
    count = len(options.mazes) * len(algorithms) * len(starts)
    about = {"weights": options.weights, "notes": notes, "tolerance": options.tolerance}
    measured = measure(model, recipe, options.mazes, factors, algorithms=algorithms, starts=starts,
                       tolerance=options.tolerance, watch=_watched)

    def kept() -> Iterator[Outcome]:
        """Yield the outcomes, and write each to the JSON file as soon as it is known."""
        for outcome in measured:
            outcomes.append(outcome)
            complete = len(outcomes) == count
            if options.json and (complete or is_replaced(options.json)):  # a pipe gets the whole, once
                save_json(options.json, outcomes, {**about, "complete": complete})
            yield outcome

    for line in lines(kept(), factors):
        print(line, flush=True)
    if options.json:
        print(f"wrote {options.json}")
    if options.plot:
        from poh_ext._figures import save_png
        from poh_ext.solve.plot import accuracy_over_passes

        title = f"{recipe.planner}, {sum(p.numel() for p in model.parameters()):,} parameters"
        print(f"wrote {save_png(accuracy_over_passes(outcomes, title), options.plot)}")
    return 0
