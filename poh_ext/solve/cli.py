"""Small planners that solve mazes of any size.

    python -m poh_ext solve --size 60 --seed 1 --png maze.png    solve a maze with a planner of the package and draw it
    python -m poh_ext solve --gif maze.gif                       animate how the policy forms over the passes
    python -m poh_ext solve evaluate                             share of held-out mazes solved exactly, over passes

Both commands have their own --help. The benchmark program trains such planners:
`python experiments/run_12x12_8m_benchmark.py --preset solve`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from poh_ext._figures import save_png
from poh_ext._optional import MissingPackage, require
from poh_ext._program import BAD_OPTIONS, Parser, run
from poh_ext.maze_drawing import maze_picture
from poh_ext.mazes import GENERATORS, generate_mazes
from poh_ext.rollout import greedy_rollout, solved_exactly
from poh_ext.solve._options import at_least, tolerance, weights
from poh_ext.solve.animation import animate, passes_shown, save_gif
from poh_ext.solve.evaluate import states_after
from poh_ext.solve.evaluate_cli import evaluate
from poh_ext.solve.weights import load
from poh_ext.tasks import MazeTasks

__all__ = ["main"]

PROGRAM = "python -m poh_ext solve"


def main(arguments: Sequence[str]) -> int:
    """Run a command. Exit code: 0 done (demo: solved exactly), 1 not solved or failed, 2 bad options, 130 stopped."""
    return run(_main, arguments)


def _main(arguments: Sequence[str]) -> int:
    commands = {"evaluate": evaluate}
    name, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in commands else ("", arguments)
    parser = Parser(prog=f"{PROGRAM} {name}".strip(), description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    try:
        return commands.get(name, _demo)(parser, rest)
    except (ValueError, FileNotFoundError, MissingPackage) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_OPTIONS


def _demo(parser: Parser, arguments: Sequence[str]) -> int:
    parser.add_argument("--size", type=at_least(2), default=30, help="side of the maze in cells (default: 30)")
    parser.add_argument("--seed", type=at_least(0), default=1, help="seed of the maze (default: 1)")
    parser.add_argument("--algorithm", choices=GENERATORS, default="dfs",
                        help="generator of the maze; training used dfs (default: dfs)")
    parser.add_output("--png", suffix=".png", help="draw the maze, its shortest path and the planner's path")
    parser.add_output("--gif", suffix=".gif", help="animate the policy over the passes, then the walk")
    parser.add_argument("--passes", type=at_least(1),
                        help="passes of the planner; each carries information by one cell (default: as many as cells)")
    tolerance(parser)
    weights(parser)
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
        scores = [model.head(state) for state in states_after(model, task, after, tolerance=options.tolerance)]
    seconds = time.perf_counter() - began
    rollout = greedy_rollout(scores[-1], task, moves=True)
    moves, shortest = int(rollout.steps[0]), int(task.length[0]) - 1
    reached = bool(rollout.reached[0])
    exact = bool(solved_exactly(scores[-1], task)[0])
    print(f"{options.size}x{options.size} {options.algorithm} maze, seed {options.seed}, corner to corner: "
          f"the shortest path has {shortest} moves")
    print(f"{recipe.planner} ({sum(p.numel() for p in model.parameters()):,} parameters, trained on mazes of "
          f"{recipe.sizes[0]}x{recipe.sizes[0]} to {recipe.sizes[1]}x{recipe.sizes[1]}), {passes} passes in "
          f"{seconds:.1f} s: {'reached' if reached else 'not reached'} in {moves} moves, "
          f"{'exactly' if exact else 'not'} a shortest path")
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
