"""Solve a maze with a small trained planner, which takes mazes of any size.

    poh-ext solve --size 60 --seed 1 --png maze.png        solve a maze with a planner of the package and draw it
    poh-ext solve --size 20x40 --gif maze.gif              animate how the policy forms over the passes
    poh-ext solve map.txt --start 0,0 --goal 9,9           solve the maze of a file

`poh-ext evaluate` gives the share of many mazes solved exactly, and `poh-ext benchmark --preset solve` trains such
planners. Exit code: 0 if the planner's path is a shortest one, 1 if not, 2 for bad options.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from poh_ext._figures import save_png
from poh_ext._optional import require
from poh_ext._program import Parser, counted, run_command, said_on, whole
from poh_ext.commands.planner import add_planner, device_of, planner_name
from poh_ext.commands.source import add_file, add_size, the_task
from poh_ext.maze_drawing import maze_picture
from poh_ext.rollout import greedy_rollout
from poh_ext.solve.animation import animate, passes_shown, save_gif
from poh_ext.solve.pretrained import load
from poh_ext.tasks import MazeTasks

__all__ = ["main"]

LARGE = 50_000_000  # passes x cells, from which on progress is shown


def main(arguments: Sequence[str], *, program: str = "python -m poh_ext solve") -> int:
    if list(arguments[:1]) == ["evaluate"]:  # the former name of `poh-ext evaluate`
        from poh_ext.commands import evaluate

        return evaluate.main(arguments[1:], program=f"{program} evaluate")
    return run_command(_solve, program, __doc__, arguments)


def _solve(parser: Parser, arguments: Sequence[str]) -> int:
    add_size(parser, least_path="from corner to corner; of obstacles half of the sides' sum")
    add_file(parser)
    parser.add_output("--png", suffix=".png", help="draw the maze, its shortest path and the planner's path")
    parser.add_output("--gif", suffix=".gif", help="animate the policy over the passes, then the walk")
    parser.add_argument(
        "--passes",
        type=whole("passes", 1),
        metavar="N",
        help="passes of the planner; each carries information by one cell (default: as many as cells)",
    )
    add_planner(parser)
    options = parser.parse_args(arguments)
    device = device_of(parser, options)
    if options.png or options.gif:
        require("PIL.Image")
    model, recipe, _ = load(options.weights)
    task, name = the_task(parser, options)
    passes = options.passes or task.mazes.n_cells
    after = [passes]
    if options.gif:
        after = passes_shown(int(task.mazes.distances(task.goal).max()), passes)
    began = time.perf_counter()
    scores = _scores(model.to(device), task.to(device), after, options.tolerance)
    seconds = time.perf_counter() - began
    rollout = greedy_rollout(scores[-1], task, moves=True)
    moves, shortest = int(rollout.steps[0]), int(task.length[0]) - 1
    reached = bool(rollout.reached[0])
    exact = reached and moves == shortest  # the walk that is shown, which has a memory; `evaluate` counts without
    said = said_on(options.png, options.gif)
    print(f"{name}: the shortest path has {counted(shortest, 'move')}", file=said)
    low, high = recipe.sizes
    print(
        f"{planner_name(options.weights, recipe)} ({sum(p.numel() for p in model.parameters()):,} parameters, trained "
        f"on mazes of {low}x{low} to {high}x{high}), {counted(passes, 'pass')} in {seconds:.1f} s: "
        f"{'reached' if reached else 'not reached'} in {counted(moves, 'move')}, {'exactly' if exact else 'not'} a "
        "shortest path",
        file=said,
    )
    if options.png:
        print(f"wrote {save_png(maze_picture(task, rollout.path[0]), options.png)}", file=said)
    if options.gif:
        print(f"wrote {save_gif(options.gif, animate(task, after, scores, rollout))}", file=said)
    return 0 if exact else 1


def _scores(model: torch.nn.Module, task: MazeTasks, after: list[int], tolerance: float) -> list[Tensor]:
    """Scores of the moves [1, N, 4] after each number of passes, on the CPU."""
    with torch.no_grad(), _progress(after[-1], task.mazes.n_cells) as done:
        states = model.hidden_passes(task.mazes, task.start, task.goal, after=after, tolerance=tolerance, done=done)
        return [model.move_scores(state).cpu() for state in states]


@contextmanager
def _progress(passes: int, cells: int) -> Iterator[Callable[[int], None] | None]:
    if passes * cells < LARGE:
        yield None
        return
    require("tqdm")
    from poh_ext.training.progress import Progress

    with Progress(
        "solving, faster once cells rest", total=passes, unit="pass", ends=False, log_seconds=5.0
    ) as progress:
        yield lambda made: progress.step(made - progress.done)
