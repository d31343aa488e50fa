"""Small planners that solve mazes of any size.

    python -m poh_ext solve --size 60 --seed 1 --png maze.png    solve a maze with a planner of the package and draw it
    python -m poh_ext solve --gif maze.gif                       animate how the policy forms over the passes
    python -m poh_ext solve evaluate                             share of held-out mazes solved exactly, over passes

Both commands have their own --help. The benchmark program trains such planners:
`python experiments/run_12x12_8m_benchmark.py --preset solve`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from poh_ext._figures import save_png
from poh_ext._files import is_replaced
from poh_ext._optional import MissingPackage, require
from poh_ext._program import BAD_OPTIONS, Parser, run
from poh_ext.maze_drawing import maze_picture
from poh_ext.mazes import GENERATORS, generate_mazes
from poh_ext.models.inference import SETTLED
from poh_ext.rollout import greedy_rollout, solved_exactly
from poh_ext.solve.animation import animate, passes_shown, save_gif
from poh_ext.solve.evaluation import DEFAULT_SETS, MazeSet, Outcome, measure, save_json
from poh_ext.solve.evaluation_report import accuracy_over_passes, table_lines
from poh_ext.solve.pretrained import load
from poh_ext.tasks import STARTS, MazeTasks

__all__ = ["main"]

PROGRAM = "python -m poh_ext solve"
EVALUATE = """\
`python -m poh_ext solve evaluate`: the share of held-out mazes that a planner solves exactly, over passes.

    python -m poh_ext solve evaluate --weights my.safetensors --passes 0.5 1 2 5 10 --plot passes.png --json passes.json
    python -m poh_ext solve evaluate --mazes 20:30:200 --algorithm dfs wilson prim kruskal percolation
    python -m poh_ext solve evaluate --mazes 20:90:200 --start any dead-end corridor junction

A maze is solved exactly if the best move of each cell, followed from the start without a memory, reaches the goal in as
few moves as possible; this also holds for mazes with loops (percolation). "Could be known" is the share of mazes in
which, after that many passes, each cell of the path could have learned from its neighbours where the goal is, or that
all other ways end.
"""


def main(arguments: Sequence[str]) -> int:
    """Run a command. Exit code: 0 done (demo: solved exactly), 1 not solved or failed, 2 bad options, 130 stopped."""
    return run(_main, arguments)


def _main(arguments: Sequence[str]) -> int:
    name, command, about = "", _demo, __doc__
    if list(arguments[:1]) == ["evaluate"]:
        name, command, about = "evaluate", _evaluate, EVALUATE
    parser = Parser(
        prog=f"{PROGRAM} {name}".strip(), description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    try:
        return command(parser, arguments[1:] if name else arguments)
    except (ValueError, FileNotFoundError, MissingPackage) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_OPTIONS


def _add_planner(parser: Parser) -> None:
    """The options of both commands."""
    parser.add_argument(
        "--tolerance",
        type=_not_negative,
        default=SETTLED,
        metavar="T",
        help="largest change of a state that counts as none; a cell that changes by no more rests "
        "until a neighbour changes, which saves time in large mazes. 0: compute every cell in every "
        f"pass (default: {SETTLED:g})",
    )
    parser.add_argument(
        "--weights",
        default="baseline",
        metavar="baseline|poh|FILE",
        help="the planner: one of the package, or a file written by --save-weights of a benchmark (default: baseline)",
    )


def _not_negative(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 0 and finite, got {text}")
    return value


def _at_least(least: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return integer


# -- solve one maze ----------------------------------------------------------------------------------------------


def _demo(parser: Parser, arguments: Sequence[str]) -> int:
    parser.add_argument("--size", type=_at_least(2), default=30, help="side of the maze in cells (default: 30)")
    parser.add_argument("--seed", type=_at_least(0), default=1, help="seed of the maze (default: 1)")
    parser.add_argument(
        "--algorithm", choices=GENERATORS, default="dfs", help="generator of the maze; training used dfs (default: dfs)"
    )
    parser.add_output("--png", suffix=".png", help="draw the maze, its shortest path and the planner's path")
    parser.add_output("--gif", suffix=".gif", help="animate the policy over the passes, then the walk")
    parser.add_argument(
        "--passes",
        type=_at_least(1),
        help="passes of the planner; each carries information by one cell (default: as many as cells)",
    )
    _add_planner(parser)
    options = parser.parse_args(arguments)
    if options.png or options.gif:
        require("PIL.Image")
    model, recipe, _ = load(options.weights)
    task = _corner_to_corner(options.size, options.algorithm, options.seed)
    passes = options.passes or task.mazes.n_cells
    after = [passes]
    if options.gif:
        after = passes_shown(int(task.mazes.distances(task.goal).max()), passes)
    began = time.perf_counter()
    with torch.no_grad():
        states = model.hidden_passes(task.mazes, task.start, task.goal, after=after, tolerance=options.tolerance)
        scores = [model.head(state) for state in states]
    seconds = time.perf_counter() - began
    rollout = greedy_rollout(scores[-1], task, moves=True)
    moves, shortest = int(rollout.steps[0]), int(task.length[0]) - 1
    reached = bool(rollout.reached[0])
    exact = bool(solved_exactly(scores[-1], task)[0])
    print(
        f"{options.size}x{options.size} {options.algorithm} maze, seed {options.seed}, corner to corner: "
        f"the shortest path has {shortest} moves"
    )
    print(
        f"{recipe.planner} ({sum(p.numel() for p in model.parameters()):,} parameters, trained on mazes of "
        f"{recipe.sizes[0]}x{recipe.sizes[0]} to {recipe.sizes[1]}x{recipe.sizes[1]}), {passes} passes in "
        f"{seconds:.1f} s: {'reached' if reached else 'not reached'} in {moves} moves, "
        f"{'exactly' if exact else 'not'} a shortest path"
    )
    if options.png:
        print(f"wrote {save_png(maze_picture(task, rollout.path[0]), options.png)}")
    if options.gif:
        print(f"wrote {save_gif(options.gif, animate(task, after, scores, rollout))}")
    return 0 if exact else 1


def _corner_to_corner(size: int, algorithm: str, seed: int) -> MazeTasks:
    mazes = generate_mazes(1, size, algorithm=algorithm, seed=seed)
    start, goal = torch.tensor([0]), torch.tensor([size * size - 1])
    path = mazes.shortest_paths(start, goal)
    length = (path >= 0).sum(1)
    if not int(length[0]):
        raise ValueError(f"no way leads from corner to corner in this {algorithm} maze; choose another --seed")
    return MazeTasks(mazes, start, goal, path, length)


# -- evaluate ----------------------------------------------------------------------------------------------------


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
        type=float,
        nargs="+",
        default=[1.0, 1.5, 2.0, 5.0],
        metavar="F",
        help="passes for each move of a maze's shortest path (default: 1 1.5 2 5)",
    )
    parser.add_argument(
        "--algorithm",
        choices=GENERATORS,
        nargs="+",
        default=["dfs"],
        help="one or more generators; each makes every set (default: dfs)",
    )
    parser.add_argument(
        "--start",
        choices=STARTS,
        nargs="+",
        default=["any"],
        help="one or more kinds of cell to start from. "
        + "; ".join(f"{k}: {v}" for k, v in STARTS.items())
        + " (default: any)",
    )
    parser.add_output("--json", help="write the outcome on every maze, after each set")
    parser.add_output("--plot", suffix=".png", help="draw the shares over passes, with 95 %% bands (PNG)")
    _add_planner(parser)
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
    measured = measure(
        model,
        recipe,
        options.mazes,
        factors,
        algorithms=algorithms,
        starts=starts,
        tolerance=options.tolerance,
        watch=_watched,
    )

    def kept() -> Iterator[Outcome]:
        """Yield the outcomes, and write each to the JSON file as soon as it is known."""
        for outcome in measured:
            outcomes.append(outcome)
            complete = len(outcomes) == count
            if options.json and (complete or is_replaced(options.json)):  # a pipe gets the whole, once
                save_json(options.json, outcomes, {**about, "complete": complete})
            yield outcome

    for line in table_lines(kept(), factors):
        print(line, flush=True)
    if options.json:
        print(f"wrote {options.json}")
    if options.plot:
        title = f"{recipe.planner}, {sum(p.numel() for p in model.parameters()):,} parameters"
        print(f"wrote {save_png(accuracy_over_passes(outcomes, title), options.plot)}")
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
