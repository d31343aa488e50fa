"""Make mazes with tasks on them, convert files of them, and print or draw one.

    poh-ext maze make --size 30 --algorithm obstacles --density 0.3:0.5 --count 100 --min-path 50 --output test.csv
    poh-ext maze convert test.csv test.txt                 from one format to another
    poh-ext maze print test.csv --task 7 --png maze.png    one task as text, PNG or SVG
    poh-ext maze print --size 8x20 --seed 3                or one made for it

Each has its own --help.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from poh_ext import io
from poh_ext._figures import save_png
from poh_ext._files import write_atomically
from poh_ext._optional import require
from poh_ext._program import Parser, counted, did_you_mean, run_command, said_on, whole
from poh_ext.commands.source import add_file, add_size, check_way, make_tasks, read, the_maze
from poh_ext.maze_drawing import goals_of, maze_picture
from poh_ext.maze_svg import maze_svg
from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks

__all__ = ["main"]

MAKE = """Make tasks, each on a maze of its own, and write them to a file.

    poh-ext maze make --size 30 --algorithm obstacles --density 0.3:0.5 --count 100 --min-path 50 --output test.csv

A task is a maze, a start, a goal and a shortest path between them (poh_ext.sample_tasks). A seed gives the same tasks
on every machine.
"""
CONVERT = """Read the mazes or tasks of a file and write them in another format.

    poh-ext maze convert arena.map arena.txt
    poh-ext maze convert mazes.csv all.txt --from hrm

The suffixes tell the formats. What the other format cannot hold is an error that says so.
"""
PRINT = """Print a maze as text, or draw it as PNG or SVG.

    poh-ext maze print test.csv --task 7 --path            # of a file; the shortest path is marked
    poh-ext maze print --size 8x20 --seed 3 --svg maze.svg

'S' is the start, 'G' a goal, 'o' a cell of the path, '#' a blocked cell.
"""


def main(arguments: Sequence[str], *, program: str = "python -m poh_ext maze") -> int:
    """Exit code: 0 done, 1 a file could not be written, 2 bad options."""
    commands = {"make": (_make, MAKE), "convert": (_convert, CONVERT), "print": (_print, PRINT)}
    name, *others = arguments or ["--help"]
    if name in commands:
        command, about = commands[name]
        return run_command(command, f"{program} {name}", about, others)
    return run_command(lambda parser, words: _choose(parser, words, list(commands)), program, __doc__, [name])


def _choose(parser: Parser, arguments: Sequence[str], names: list[str]) -> int:
    """--help, or what is said of a name that is no command."""
    parser.usage = f"%(prog)s {'|'.join(names)} [OPTION ...]"
    if arguments[0] not in ("-h", "--help"):
        parser.error(did_you_mean(arguments[0], names))
    parser.print_help()
    return 0


def _make(parser: Parser, arguments: Sequence[str]) -> int:
    add_size(parser, least_path="2")
    parser.add_argument("--count", type=whole("tasks", 1), default=1, metavar="N", help="number of tasks (default: 1)")
    _add_output(parser)
    options = parser.parse_args(arguments)
    if options.output is None:
        parser.error("argument --output: name the file to write")
    _check_format(parser, "--output", options)
    return _write(options, make_tasks(parser, options, options.count))


def _convert(parser: Parser, arguments: Sequence[str]) -> int:
    parser.add_argument("file", metavar="IN", help="the file to read")
    parser.add_output("output", metavar="OUT", help="the file to write")
    parser.add_argument("--from", dest="read_as", choices=io.FORMATS, help="format of IN (default: by its suffix)")
    _add_format(parser, "OUT")
    options = parser.parse_args(arguments)
    _check_format(parser, "OUT", options)
    return _write(options, read(parser, options.file, options.read_as))


def _print(parser: Parser, arguments: Sequence[str]) -> int:
    add_size(parser, least_path="from corner to corner; of obstacles half of the sides' sum")
    add_file(parser)
    parser.add_argument("--path", action="store_true", help="mark a shortest path, too")
    parser.add_output("--png", suffix=".png", help="draw it in place of the text")
    parser.add_output("--svg", suffix=".svg", help="the same as SVG")
    options = parser.parse_args(arguments)
    if options.png:
        require("PIL.Image")
    maze, name = the_maze(parser, options)
    if options.path and not isinstance(maze, MazeTasks):
        parser.error(f"argument --path: {options.file} holds mazes without start and goal: give --start and --goal")
    if isinstance(maze, MazeTasks):
        if options.path:
            check_way(options, maze, name)
        if not (options.png or options.svg) and int(maze.start[0]) in goals_of(maze):
            parser.error(
                f"{name}: the start is a goal, and one character cannot be 'S' and 'G'; --png and --svg show both"
            )
    said = said_on(options.png, options.svg)
    if options.png:
        print(f"wrote {save_png(maze_picture(maze, shortest=options.path), options.png)}", file=said)
    if options.svg:
        print(f"wrote {write_atomically(options.svg, maze_svg(maze, shortest=options.path).encode())}", file=said)
    if not (options.png or options.svg):
        print(f"{name}{_length(maze)}", file=sys.stderr)  # standard output has the drawing alone, to be read again
        unmarked = torch.full((1, 1), -1) if isinstance(maze, MazeTasks) and not options.path else None
        print(io.text(maze, paths=unmarked), end="")
    return 0


def _length(maze: MazeTasks | MazeBatch) -> str:
    if not isinstance(maze, MazeTasks):
        return ""
    cells = int(maze.length[0])
    return f": the shortest path has {counted(cells - 1, 'move')}" if cells else ": no way leads to the goal"


def _add_output(parser: Parser) -> None:
    parser.add_output("--output", help="the file to write (required); its suffix tells the format")
    _add_format(parser, "--output")


def _add_format(parser: Parser, of: str) -> None:
    known = "; ".join(f"{name}: {about}" for name, about in io.FORMATS.items())
    parser.add_argument("--format", choices=io.FORMATS, help=f"format of {of} (default: by its suffix). {known}")


def _check_format(parser: Parser, name: str, options: argparse.Namespace) -> None:
    """Before any work: does --format or the suffix tell a format?"""
    try:
        io._format(options.output, options.format)
    except ValueError as error:
        parser.error(f"argument {name}: {error}")


def _write(options: argparse.Namespace, made: MazeTasks | MazeBatch) -> int:
    try:
        written = io.write(options.output, made, format=options.format)
    except TypeError as error:
        raise ValueError(
            f"{options.output}: the format has starts and goals, which these mazes have not; write a .txt, .map, "
            ".npz or .safetensors"
        ) from error
    what = "task" if isinstance(made, MazeTasks) else "maze"
    about = f"{counted(len(made), what)} of {made.size[0]}x{made.size[1]}"
    if isinstance(made, MazeTasks) and len(made):
        low, high = int(made.length.min()), int(made.length.max())
        about += f", paths of {low} to {high} cells" if low < high else f", paths of {low} cells"
    print(f"wrote {written}: {about}", file=said_on(written))
    return 0
