"""The options that say which mazes a command works on, declared and checked once for all commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from poh_ext import io
from poh_ext._checks import MAX_CELLS
from poh_ext._program import Parser, number, whole
from poh_ext.mazes import DENSITY, GENERATORS, MazeBatch, generate_mazes
from poh_ext.tasks import MazeTasks, sample_tasks
from poh_ext.training.config import path_cells

__all__ = [
    "add_file",
    "add_generator",
    "add_size",
    "check_way",
    "generator_of",
    "make_tasks",
    "read",
    "the_maze",
    "the_task",
]

PERFECT = [name for name in GENERATORS if name not in DENSITY]
SIZE, SEED = 30, 1  # of a single maze that nothing else is said of
Size = int | tuple[int, int]


# -- what is written on the command line -------------------------------------------------------------------------


def size(text: str) -> Size:
    """The type of --size."""
    try:
        sides = tuple(int(side) for side in text.lower().replace("×", "x").split("x"))
        if not 1 <= len(sides) <= 2:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a side in cells, or HEIGHTxWIDTH, got {text!r}") from None
    least = 2 if len(sides) == 1 else 1
    if min(sides) < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {min(sides)} (cells of a side)")
    if sides == (1, 1):
        raise argparse.ArgumentTypeError(f"must have at least 2 cells in all, got {text}")
    if sides[0] * sides[-1] > MAX_CELLS:
        raise argparse.ArgumentTypeError(f"must have at most {MAX_CELLS} cells in all, got {text}")
    return sides[0] if len(sides) == 1 else sides


def shares(text: str) -> float | tuple[float, float]:
    """The type of --density and --braid: a share, or LOW:HIGH."""
    try:
        found = tuple(float(part) for part in text.split(":"))
    except ValueError:
        found = ()
    if len(found) not in (1, 2) or not all(0 <= share <= 1 for share in found) or found[0] > found[-1]:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, or LOW:HIGH, got {text!r}")
    return found[0] if len(found) == 1 else found


def cell(text: str) -> tuple[int, int]:
    """The type of --start and --goal."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"must be ROW,COLUMN, two whole numbers that count cells from 0, got {text!r}")
    row, column = map(int, parts)
    return row, column


def _path(text: str) -> float:
    value = number("cells, or a share of all cells", least=0, most=MAX_CELLS)(text)
    if value > 1 and value != int(value):
        raise argparse.ArgumentTypeError(
            f"must be a whole number of cells, or a share of all cells from 0 to 1, got {text}"
        )
    return value


# -- the options -------------------------------------------------------------------------------------------------


def add_generator(parser: Parser, *, several: bool = False) -> None:
    """--algorithm, --density and --braid; `several`: of one or more generators."""
    more: dict[str, Any] = {"nargs": "+"} if several else {}
    parser.add_argument(
        "--algorithm",
        choices=GENERATORS,
        metavar="NAME",
        help=f"{'one or more generators' if several else 'generator'}: {', '.join(GENERATORS)} (default: dfs)",
        **more,
    )
    parser.add_argument(
        "--density",
        type=shares,
        metavar="SHARE",
        help="of percolation the share of walls that stand (default: 0.5), of obstacles the share of cells that are "
        "blocked (default: 0.3:0.5). LOW:HIGH: each maze draws its own",
    )
    parser.add_argument(
        "--braid",
        type=shares,
        metavar="SHARE",
        help=f"of {', '.join(PERFECT)} the share of the remaining walls that are opened, which makes loops; or "
        "LOW:HIGH (default: 0)",
    )


def add_size(parser: Parser, *, least_path: str) -> None:
    """The generator with --size, --seed and --min-path, whose default is described as `least_path`."""
    parser.add_argument(
        "--size", type=size, help=f"side of the maze in cells, or HEIGHTxWIDTH (default: {SIZE})", metavar="SIZE"
    )
    add_generator(parser)
    parser.add_argument("--seed", type=whole("seed", 0), metavar="N", help=f"seed of the maze (default: {SEED})")
    parser.add_argument(
        "--min-path",
        type=_path,
        metavar="CELLS",
        help="draw start and goal such that the shortest path has at least so many cells, or, up to 1, that share of "
        f"all cells (default: {least_path})",
    )


def add_file(parser: Parser) -> None:
    """A file in place of --size and what belongs to it: FILE, --from, --task, --start, --goal."""
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help=f"a file of mazes or tasks ({', '.join(io.FORMATS)}) in place of a generated maze",
    )
    parser.add_argument(
        "--from", dest="read_as", choices=io.FORMATS, metavar="FORMAT", help="format of FILE (default: found by itself)"
    )
    parser.add_argument(
        "--task", type=whole("task, counted from 0", 0), metavar="N", help="which task or maze of FILE (default: 0)"
    )
    parser.add_argument("--start", type=cell, metavar="R,C", help="row and column of the start, counted from 0")
    parser.add_argument("--goal", type=cell, metavar="R,C", help="row and column of the goal")


def generator_of(parser: Parser, options: argparse.Namespace, algorithms: Sequence[str]) -> dict[str, Any]:
    """density and braid as `generate_mazes` takes them. --density or --braid that none of the algorithms has is an
    error of the options."""
    named = ", ".join(algorithms)
    if options.density is not None and not set(DENSITY) & set(algorithms):
        parser.error(f"argument --density: for {' and '.join(DENSITY)}, not for {named}, whose walls --braid opens")
    if options.braid is not None and not set(PERFECT) & set(algorithms):
        parser.error(f"argument --braid: for {', '.join(PERFECT)}, not for {named}, which have --density")
    return {"density": options.density, "braid": options.braid or 0.0}


# -- what they mean ----------------------------------------------------------------------------------------------


def make_tasks(parser: Parser, options: argparse.Namespace, count: int, *, least: int = 2) -> MazeTasks:
    """`count` tasks of the generator, whose paths have --min-path cells or more, or `least` where it is not given."""
    shape, seed = options.size or SIZE, SEED if options.seed is None else options.seed
    (height, width), algorithm = _sides(shape), options.algorithm or "dfs"
    flag = "" if options.min_path is None else "argument --min-path: "
    least = least if options.min_path is None else path_cells(options.min_path, height * width)
    loops = generator_of(parser, options, [algorithm])
    if least > height * width:
        parser.error(f"{flag}{least} cells, but a maze of {height}x{width} has only {height * width}")
    try:
        return sample_tasks(count, shape, min_path=least, seed=seed, algorithm=algorithm, **loops)
    except ValueError as error:
        default = "" if flag else f"; {least} cells are the default of --min-path"
        parser.error(flag + str(error).replace("min_path = ", "") + default)


def read(parser: Parser, path: str, read_as: str | None = None) -> MazeTasks | MazeBatch:
    """What a file holds. A file that cannot be read is an error of the options."""
    try:
        return io.read(path, format=read_as)
    except OSError as error:
        parser.error(f"{path}: {error.strerror or error}")


def the_maze(parser: Parser, options: argparse.Namespace) -> tuple[MazeTasks | MazeBatch, str]:
    """One task, or one maze where nothing says start and goal, of --size or FILE, and its name for a reader."""
    if options.file is None:
        for flag, value in (("--from", options.read_as), ("--task", options.task)):
            if value is not None:
                parser.error(f"argument {flag}: there is no FILE that it could be of")
        return _generated(parser, options)
    for name in ("size", "algorithm", "density", "braid", "seed", "min_path"):
        if getattr(options, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"argument {flag}: {options.file} has its own mazes; leave out one of the two")
    found = read(parser, options.file, options.read_as)
    number = options.task or 0
    if not len(found):
        parser.error(f"{options.file} holds no maze")
    if number >= len(found):
        parser.error(f"argument --task: {options.file} has the tasks 0 to {len(found) - 1}, not {number}")
    one = found[number]
    if isinstance(one, MazeTasks):  # the path in the file may be a detour: what is shown and compared is the shortest
        one = MazeTasks(one.mazes, one.start, one.goal)
    name = f"{options.file}: a maze of {_shape(one)}" + (f", task {number} of {len(found)}" if len(found) > 1 else "")
    ends = _ends(parser, options, one)
    if not ends:
        return one, name
    if len(ends) == 1 and not isinstance(one, MazeTasks):
        missing = "--goal" if "start" in ends else "--start"
        parser.error(f"{options.file} holds mazes without start and goal: give {missing} ROW,COLUMN, too")
    mazes = one.mazes if isinstance(one, MazeTasks) else one
    known = {"start": one.start, "goal": one.goal} if isinstance(one, MazeTasks) else {}
    return MazeTasks(mazes, **{**known, **ends}), name


def the_task(parser: Parser, options: argparse.Namespace) -> tuple[MazeTasks, str]:
    """The same where a start and a goal are needed, with a path between them."""
    one, name = the_maze(parser, options)
    if not isinstance(one, MazeTasks):
        parser.error(
            f"{options.file} holds mazes without start and goal: give --start ROW,COLUMN and --goal ROW,COLUMN"
        )
    check_way(options, one, name)
    return one, name


def check_way(options: argparse.Namespace, task: MazeTasks, name: str) -> None:
    """ValueError if no way leads from start to goal of the task of that name."""
    if int(task.length[0]):
        return
    ends = _between(task)
    if options.file:
        raise ValueError(f"{name}: no way leads {ends} in this maze; give another --start or --goal")
    if not (options.start or options.goal):
        ends = "from corner to corner"
    raise ValueError(
        f"no way leads {ends} in this {options.algorithm or 'dfs'} maze; choose another --seed, or let --min-path "
        "draw start and goal"
    )


def _generated(parser: Parser, options: argparse.Namespace) -> tuple[MazeTasks, str]:
    algorithm, seed = options.algorithm or "dfs", SEED if options.seed is None else options.seed
    placed = options.start is not None or options.goal is not None
    if placed and options.min_path is not None:
        parser.error("argument --min-path: it draws start and goal; leave out --start and --goal")
    drawn = not placed and algorithm == "obstacles"  # where few corners are free
    if drawn or options.min_path is not None:
        task = make_tasks(parser, options, 1, least=max(2, sum(_sides(options.size or SIZE)) // 2))
        return task, f"{_shape(task)} {algorithm} maze, seed {seed}, {_between(task)}"
    loops = generator_of(parser, options, [algorithm])
    mazes = generate_mazes(1, options.size or SIZE, seed=seed, algorithm=algorithm, **loops)
    ends = _ends(parser, options, mazes)
    corners = {"start": torch.tensor([0]), "goal": torch.tensor([mazes.n_cells - 1])}
    for name, corner in corners.items():
        if name not in ends and not bool(mazes.free().flatten()[corner]):
            parser.error(f"the corner that --{name} is by default is blocked; give --{name} ROW,COLUMN")
    task = MazeTasks(mazes, **{**corners, **ends})
    between = _between(task) if ends else "corner to corner"
    return task, f"{_shape(task)} {algorithm} maze, seed {seed}, {between}"


def _ends(parser: Parser, options: argparse.Namespace, maze: MazeTasks | MazeBatch) -> dict[str, torch.Tensor]:
    """What --start and --goal say, as cells of the maze."""
    mazes = maze.mazes if isinstance(maze, MazeTasks) else maze
    ends = {}
    for name in ("start", "goal"):
        at = getattr(options, name)
        if at is None:
            continue
        row, column = at
        if row >= mazes.height or column >= mazes.width:
            parser.error(
                f"argument --{name}: {row},{column} is outside the maze, whose rows are 0 to {mazes.height - 1} and "
                f"columns 0 to {mazes.width - 1}"
            )
        if not bool(mazes.free()[0, row, column]):
            parser.error(f"argument --{name}: the cell {row},{column} is blocked")
        ends[name] = torch.tensor([row * mazes.width + column])
    return ends


def _sides(shape: Size) -> tuple[int, int]:
    return (shape, shape) if isinstance(shape, int) else shape


def _shape(maze: MazeTasks | MazeBatch) -> str:
    return "{}x{}".format(*maze.size)


def _between(task: MazeTasks) -> str:
    """From where to where the first task leads: "from 3,4 to 0,7"; several goals are joined by "or"."""

    def named(cells: torch.Tensor) -> str:
        return " or ".join("{},{}".format(*divmod(c, task.size[1])) for c in cells.reshape(-1).tolist() if c >= 0)

    return f"from {named(task.start[0])} to {named(task.goal[0])}"
