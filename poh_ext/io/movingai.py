"""The benchmarks of MovingAI (https://movingai.com/benchmarks/formats.html): maps, and scenarios of tasks on a map."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from errno import EEXIST
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from poh_ext._checks import MAX_CELLS
from poh_ext._files import write_atomically
from poh_ext._sharing import is_shared
from poh_ext.io._cells import check_blocked_only, solve
from poh_ext.io._octile import octile_length
from poh_ext.io._source import FormatError, Source, read_source
from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks

__all__ = ["Scenarios", "read_map", "read_scenarios", "write_map", "write_scenarios"]

PASSABLE, BLOCKED = ".GS", "@OTW"
_FIELDS = "bucket, map, map width, map height, start x, start y, goal x, goal y, optimal length"
_NUMBER = re.compile(r"[0-9]{1,18}")


class Scenarios(NamedTuple):
    """A file of scenarios.

    Attributes:
        tasks: n tasks, all on the one map. Their paths make no diagonal moves.
        octile: float64 [n], the optimal lengths with diagonal moves, as given.
        bucket: int64 [n], as given.
        line: int64 [n], the line of each in the file, from 1.
        map: the file of the map.
    """

    tasks: MazeTasks
    octile: Tensor
    bucket: Tensor
    line: Tensor
    map: Path


def read_map(path: str | os.PathLike[str]) -> MazeBatch:
    """Read a map of MovingAI as a batch of one maze, whose free cells are the characters '.', 'G' and 'S'.

    '@', 'O', 'T' and 'W' are blocked: water is not passable from terrain. Diagonal moves are not made.

    Raises:
        OSError: the file cannot be read.
        FormatError: another header, a size that is too large or differs from the rows, or an unknown character.

    Examples:
        >>> mazes = poh_ext.io.read_map("dao-map/arena.map")
    """
    return parse_map(read_source(path))


def parse_map(source: Source) -> MazeBatch:
    size: dict[str, int] = {}
    if not source.lines or source.lines[0].split() != ["type", "octile"]:
        found = source.lines[0][:40] if source.lines else ""
        raise source.error(f"the map begins with {found!r}; accepted: 'type octile'", 0)
    for number in (1, 2):
        words = source.lines[number].split() if number < len(source.lines) else []
        if (
            len(words) != 2
            or words[0] not in ("height", "width")
            or words[0] in size
            or not _NUMBER.fullmatch(words[1])
        ):
            wanted = " or ".join(f"'{name} N'" for name in ("height", "width") if name not in size)
            found = source.lines[number][:40] if number < len(source.lines) else "the end of the file"
            raise source.error(f"the header has {found!r}; accepted: {wanted}", number)
        size[words[0]] = int(words[1])
    height, width = size["height"], size["width"]
    if not 1 <= height * width <= MAX_CELLS:
        raise source.error(f"a map of {height} x {width} cells; 1 to {MAX_CELLS} cells are accepted", 1)
    if len(source.lines) < 4 or source.lines[3].split() != ["map"]:
        raise source.error(f"the header has {''.join(source.lines[3:4])[:40]!r}; accepted: 'map'", 3)
    rows = source.lines[4:]
    while len(rows) > height and not rows[-1]:
        rows.pop()
    if len(rows) != height:
        raise source.error(f"{len(rows)} rows follow; the header says height {height}", min(len(rows), height) + 4)
    if len(rows[0]) != width:
        raise source.error(f"the row has {len(rows[0])} characters; the header says width {width}", 4)
    cells = source.grid(rows, 4, PASSABLE + BLOCKED)
    return MazeBatch.from_free(torch.from_numpy(np.isin(cells, list(PASSABLE.encode())))[None])


def read_scenarios(
    path: str | os.PathLike[str], *, map: str | os.PathLike[str] | None = None, skip_unreachable: bool = False
) -> Scenarios:
    """Read the tasks of a file of scenarios, version 1, and the map that they are on.

    The map is held once, however many tasks there are.

    Args:
        map: the file of the map, or the folder it lies in. None: it lies beside the scenarios, under the name that
            they give or under their own name without `.scen`.
        skip_unreachable: leave out the tasks whose start or goal is blocked or that no way joins, instead of an error.
            `line` says which ones are left.

    Raises:
        OSError: a file cannot be read.
        FormatError: another version or number of fields, a number out of range, several maps, a map of another size
            (scaled maps are not supported), a start or goal that is blocked, or a goal out of reach. Where a diagonal
            move needs both cells beside it, as in these benchmarks, what can be reached with diagonal moves can be
            reached without.

    Examples:
        >>> tasks, octile, *_ = poh_ext.io.read_scenarios("arena.map.scen", map="dao-map")
    """
    return parse_scenarios(read_source(path), map=map, skip_unreachable=skip_unreachable)


def parse_scenarios(
    source: Source, *, map: str | os.PathLike[str] | None = None, skip_unreachable: bool = False
) -> Scenarios:
    first = source.lines[0].split() if source.lines else []
    if len(first) != 2 or first[0] != "version" or not re.fullmatch(r"1(\.0*)?", first[1]):
        raise source.error(f"the scenarios begin with {' '.join(first)[:40]!r}; accepted: 'version 1'", 0)
    numbers, octiles, lines, name = [], [], [], None
    for line, text in enumerate(source.lines[1:], 1):
        if not text.strip():
            continue
        fields = text.rstrip().split("\t") if "\t" in text else text.split()
        if len(fields) != 9:
            raise source.error(f"{len(fields)} fields; accepted: 9, between tabs ({_FIELDS})", line)
        if name is None:
            name = fields[1]
        elif fields[1] != name:
            raise source.error(f"the map is {fields[1]!r}, but above it is {name!r}: one map is accepted", line)
        whole = [fields[0], *fields[2:8]]
        for field, what in zip(whole, (_FIELDS.split(", ")[place] for place in (0, 2, 3, 4, 5, 6, 7)), strict=True):
            if not _NUMBER.fullmatch(field):
                raise source.error(f"{what} is {field[:40]!r}; a whole number of up to 18 digits is accepted", line)
        numbers.append([int(field) for field in whole])
        octiles.append(_length(source, fields[8], line))
        lines.append(line)
    if name is None:
        raise source.error("there is no scenario below the version")
    file = _find_map(source, name, map)
    mazes = read_map(file)
    table, octile, places = np.array(numbers), np.array(octiles), np.array(lines)
    for which in ((table[:, 1] != mazes.width) | (table[:, 2] != mazes.height)).nonzero()[0][:1].tolist():
        raise source.error(
            f"map width and height are {table[which, 1]} and {table[which, 2]}, but {file} has {mazes.width} and "
            f"{mazes.height}: scaled maps are not supported",
            lines[which],
        )
    free = mazes.free()[0].numpy()
    good = np.ones(len(table), dtype=bool)
    cells = []
    for end, (x, y) in (("start", table[:, 3:5].T), ("goal", table[:, 5:7].T)):
        for which in ((x >= mazes.width) | (y >= mazes.height)).nonzero()[0][:1].tolist():
            raise source.error(
                f"the {end} is x {x[which]}, y {y[which]}; accepted: x < {mazes.width}, y < {mazes.height}",
                lines[which],
            )
        for which in (~free[y, x]).nonzero()[0][: 0 if skip_unreachable else 1].tolist():
            raise source.error(f"the {end}, x {x[which]}, y {y[which]}, is blocked in {file}", lines[which])
        good &= free[y, x]
        cells.append(torch.from_numpy(y * mazes.width + x))
    start, goal = cells
    path = solve(mazes.expand(len(table)), start, goal)
    good &= (path[:, 0] >= 0).numpy()
    for which in (~good).nonzero()[0][: 0 if skip_unreachable else 1].tolist():
        raise source.error(f"no way without diagonal moves leads from start to goal in {file}", lines[which])
    kept = torch.from_numpy(good)
    tasks = MazeTasks(mazes.expand(int(good.sum())), start[kept], goal[kept], path[kept], check=False)
    return Scenarios(
        tasks,
        torch.from_numpy(octile[good]),
        torch.from_numpy(table[good, 0]),
        torch.from_numpy(places[good] + 1),
        file,
    )


def _length(source: Source, field: str, line: int) -> float:
    if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,2})?", field):
        raise source.error(f"optimal length is {field[:40]!r}; a number of at least 0 is accepted", line)
    return float(field)


def _find_map(source: Source, name: str, given: str | os.PathLike[str] | None) -> Path:
    """The file of the map `name`; nothing outside the folder of the scenarios, or the given one, is looked at."""
    relative = PurePosixPath(name.replace("\\", "/"))
    names = [relative.name]
    if not relative.is_absolute() and ".." not in relative.parts:
        names.insert(0, str(relative))
    folder = Path(source.name).parent if given is None else Path(given)
    if given is not None and not folder.is_dir():
        return folder
    if given is None and source.name.endswith(".scen"):
        own = Path(source.name).name.removesuffix(".scen")
        names += [own if own.endswith(".map") else f"{own}.map"]
    places = [folder / each for each in dict.fromkeys(names) if each]
    for place in places:
        try:
            if place.is_file():
                return place
        except (OSError, ValueError):  # a name that is too long, or with a NUL
            continue
    looked = ", ".join(str(place)[:200] for place in places)
    raise source.error(
        f"the map {name[:200]!r} is not there; looked for {looked}. Put it there (in Python also: pass `map`)", 1
    )


def write_map(path: str | os.PathLike[str], mazes: MazeBatch) -> Path:
    """Write the one map of a batch: '.' where it is free, '@' where it is blocked.

    Raises:
        OSError: the file cannot be written.
        TypeError: mazes is no MazeBatch.
        FormatError: the mazes are several, or have walls between free cells.
    """
    if isinstance(mazes, MazeBatch) and len(mazes) != 1:
        raise FormatError(f"{path}: there are {len(mazes)} mazes; a map is one maze")
    return write_atomically(path, _map(path, mazes))


def _map(path: str | os.PathLike[str], mazes: MazeBatch) -> bytes:
    if not isinstance(mazes, MazeBatch):
        raise TypeError(f"mazes must be a MazeBatch, got {type(mazes).__name__}")
    if not len(mazes) or not (is_shared(mazes.passages) or (mazes.passages == mazes.passages[:1]).all()):
        raise FormatError(f"{path}: there are {len(mazes)} mazes; a map is one maze, the same for all tasks")
    check_blocked_only(path, mazes[:1], "movingai")
    free = mazes.free()[0].cpu().numpy()
    rows = np.where(free, ord("."), ord("@")).astype(np.uint8)
    ends = np.full((mazes.height, 1), ord("\n"), dtype=np.uint8)
    header = f"type octile\nheight {mazes.height}\nwidth {mazes.width}\nmap\n"
    return header.encode() + np.concatenate([rows, ends], 1).tobytes()


def write_scenarios(
    path: str | os.PathLike[str], tasks: MazeTasks, *, octile: Tensor | Sequence[float] | None = None
) -> Path:
    """Write tasks that are all on one map, and beside them the map: `arena.map` for `arena.map.scen` or `arena.scen`.

    Args:
        octile: n optimal lengths with diagonal moves. None: they are computed, in Python: up to a second for each on
            a map of 512 x 512.

    Raises:
        OSError: a file cannot be written; FileExistsError: another map is there under that name. One with the same
            free cells stays as it is.
        TypeError: tasks is no MazeTasks.
        ValueError: octile has another length, or a number below 0 or not finite.
        FormatError: the mazes are several, or have walls between free cells; a task has several goals, or no path; or
            `path` is the name of a map.
    """
    if not isinstance(tasks, MazeTasks):
        raise TypeError(f"tasks must be MazeTasks, as scenarios have starts and goals, got {type(tasks).__name__}")
    path = Path(path)
    own = path.name.removesuffix(".scen")
    place = path.with_name(own if own.endswith(".map") else f"{own}.map")
    if place == path:
        raise FormatError(f"{path}: a .map is the name of the map, which lies beside the scenarios; accepted: a .scen")
    drawn = _map(path, tasks.mazes)
    there = place.is_file()  # a FIFO is written through
    if there and not _holds(place, tasks.mazes):
        raise FileExistsError(EEXIST, "another map is there already; choose another name for the scenarios", str(place))
    goal = tasks.goal if tasks.goal.dim() == 2 else tasks.goal[:, None]
    for task in (goal[:, 1:] >= 0).any(1).nonzero()[:1, 0].tolist():
        raise FormatError(f"{path}: task {task} has several goals; the format movingai has one")
    for task in (tasks.length == 0).nonzero()[:1, 0].tolist():
        raise FormatError(f"{path}: task {task} has no path; scenarios have an optimal length")
    ends = torch.stack([tasks.start, goal[:, 0]], 1).tolist()
    if octile is None:
        free = tasks.mazes.free()[0].cpu().numpy()
        lengths = [octile_length(free, start, target) for start, target in ends]
    else:
        lengths = [float(length) for length in octile]
        if any(not 0 <= length < math.inf for length in lengths):
            raise ValueError(f"octile must be finite numbers of at least 0, got {lengths}"[:200])
        if len(lengths) != len(ends):
            raise ValueError(f"octile must have {len(ends)} items, one for each task, got {len(lengths)}")
    height, width = tasks.size
    lines = ["version 1"]
    for (start, target), length in zip(ends, lengths, strict=True):
        x, y, to_x, to_y = start % width, start // width, target % width, target // width
        fields = (int(length / 4), place.name, width, height, x, y, to_x, to_y, f"{abs(length):.8f}")
        lines.append("\t".join(map(str, fields)))
    if not there:
        write_atomically(place, drawn)
    return write_atomically(path, ("\n".join(lines) + "\n").encode())


def _holds(place: Path, mazes: MazeBatch) -> bool:
    """Whether a file is a map with the free cells of the first maze; terrain has several letters."""
    try:
        return torch.equal(read_map(place).free(), mazes[:1].free().cpu())
    except FormatError:
        return False
