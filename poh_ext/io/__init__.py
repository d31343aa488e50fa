"""Mazes and tasks in files, those of other projects too.

`read` and `write` tell the format from the suffix of the file. The functions of a format also give what `read` leaves
out: the ratings of Maze-Hard, the octile lengths of MovingAI. A file is written whole or not at all, and nothing that
is read is executed. What a file holds wrongly is a `FormatError`, a ValueError that names file, line and column.

All mazes of a file have one size; a file of several sizes is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from poh_ext._files import write_atomically
from poh_ext.io._cells import as_blocked
from poh_ext.io._source import FormatError, Source, read_source
from poh_ext.io.archive import read_npz, read_safetensors, write_npz, write_safetensors
from poh_ext.io.drawing import draw, parse, read_drawings, read_micromouse, text, write_micromouse
from poh_ext.io.hrm import HEADER, Questions, parse_hrm, read_hrm, write_hrm
from poh_ext.io.lattice import from_lattice, from_pixels, to_lattice, to_pixels
from poh_ext.io.movingai import (
    Scenarios,
    parse_map,
    parse_scenarios,
    read_map,
    read_scenarios,
    write_map,
    write_scenarios,
)
from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks

__all__ = [
    "FORMATS",
    "FormatError",
    "Questions",
    "Scenarios",
    "as_blocked",
    "from_lattice",
    "from_pixels",
    "parse",
    "read",
    "read_hrm",
    "read_map",
    "read_micromouse",
    "read_npz",
    "read_safetensors",
    "read_scenarios",
    "text",
    "to_lattice",
    "to_pixels",
    "write",
    "write_hrm",
    "write_map",
    "write_micromouse",
    "write_npz",
    "write_safetensors",
    "write_scenarios",
]


class _Format(NamedTuple):
    about: str
    suffixes: tuple[str, ...]  # that say so on their own
    read: Callable[[Path], MazeTasks | MazeBatch]
    write: Callable[..., Path]
    paths: bool = False  # whether `write` takes paths=


def _read_movingai(path: Path) -> MazeTasks | MazeBatch:
    return _parse_movingai(read_source(path))


def _parse_movingai(source: Source) -> MazeTasks | MazeBatch:
    if source.name.lower().endswith(".scen") or "".join(source.lines[:1]).startswith("version"):
        return parse_scenarios(source).tasks
    return parse_map(source)


def _write_movingai(path: Path, what: MazeBatch | MazeTasks) -> Path:
    if isinstance(what, MazeBatch):
        if path.suffix.lower() == ".scen":
            raise FormatError(f"{path}: mazes have no starts and goals, which a .scen has; write them to a .map")
        return write_map(path, what)
    if path.suffix.lower() == ".map":
        raise FormatError(
            f"{path}: a map has no starts and goals; write the tasks to a .scen or .txt (in Python also tasks.mazes)"
        )
    return write_scenarios(path, what)


def _write_ascii(path: Path, what: MazeBatch | MazeTasks, *, paths: Tensor | None = None) -> Path:
    mazes = what.mazes if isinstance(what, MazeTasks) else what
    if not len(mazes):
        raise FormatError(f"{path}: there are no mazes; a file of drawings has at least one")
    return write_atomically(path, draw(what, paths, f"{path}: ").encode())


_FORMATS = {
    "ascii": _Format(
        "drawings of '#', '.', 'S', 'G' and 'o', or of walls '+---+' between cells; several of one size (read, write)",
        (),
        lambda path: read_drawings(read_source(path)),
        _write_ascii,
        True,
    ),
    "hrm": _Format(
        "Maze-Hard of HRM and TRM: csv with source, question, answer, rating; square grids (read, write)",
        (".csv",),
        lambda path: read_hrm(path).tasks,
        write_hrm,
        True,
    ),
    "movingai": _Format(
        "MovingAI benchmarks: .map, a map with '.' free and '@' blocked; .scen, tasks on a map (read, write)",
        (".map", ".scen"),
        _read_movingai,
        _write_movingai,
    ),
    "micromouse": _Format(
        "one micromouse maze: posts 'o', walls '---' and '|', 'S' the start, 'G' the goal cells (read, write)",
        (),
        read_micromouse,
        write_micromouse,
    ),
    "npz": _Format(
        "mazes or tasks whole, arrays of NumPy without pickles (read, write)", (".npz",), read_npz, write_npz
    ),
    "safetensors": _Format(
        "mazes or tasks whole, as safetensors; needs that package (read, write)",
        (".safetensors",),
        read_safetensors,
        write_safetensors,
    ),
}

FORMATS: dict[str, str] = {name: each.about for name, each in _FORMATS.items()}
"""The formats of files by name, each with what it holds. All can be read and written.

Examples:
    >>> for name, about in poh_ext.io.FORMATS.items():
    ...     print(f"{name:12} {about}")
"""


def read(path: str | os.PathLike[str], *, format: str | None = None) -> MazeTasks | MazeBatch:
    """Read the mazes of a file, as MazeTasks where it holds starts and goals, else as a MazeBatch.

    Args:
        format: one of FORMATS. None: told from the suffix (.csv, .map, .scen, .npz, .safetensors); of a .txt or a file
            without a suffix, from its first line.

    Raises:
        OSError: the file cannot be read.
        ValueError: an unknown format, or a suffix that tells none.
        FormatError: the file does not hold what the format wants; the message names line and column.
        ImportError: safetensors is missing.

    Examples:
        >>> tasks = poh_ext.io.read("maze-30x30-hard-1k/test.csv")
        >>> tasks = poh_ext.io.read("arena.map.scen")  # with arena.map beside it
    """
    path = Path(path)
    name = _format(path, format)
    return _read_text(read_source(path)) if name is None else _FORMATS[name].read(path)


def write(
    path: str | os.PathLike[str],
    mazes_or_tasks: MazeBatch | MazeTasks,
    *,
    format: str | None = None,
    paths: Tensor | None = None,
) -> Path:
    """Write mazes or tasks, whole or not at all, and return the path of the file.

    Args:
        format: one of FORMATS. None: told from the suffix, as in `read`; a .txt is ascii.
        paths: of ascii and hrm, int64 [n, L]: the cells to mark in place of the tasks' own paths, padded with -1, for
            example `Rollout.path`.

    Raises:
        OSError: the file cannot be written.
        TypeError: mazes_or_tasks is neither a MazeBatch nor MazeTasks, or the format needs starts and goals.
        ValueError: an unknown format, a suffix that tells none, or paths for a format without.
        FormatError: the format cannot hold the mazes or tasks; the message says why.
        ImportError: safetensors is missing.

    Examples:
        >>> walk = greedy_rollout(table, tasks)
        >>> poh_ext.io.write("answers.csv", tasks, paths=walk.path)
    """
    path = Path(path)
    name = _format(path, format) or "ascii"
    if not isinstance(mazes_or_tasks, (MazeBatch, MazeTasks)):
        raise TypeError(f"mazes_or_tasks must be a MazeBatch or MazeTasks, got {type(mazes_or_tasks).__name__}")
    if paths is None:
        return _FORMATS[name].write(path, mazes_or_tasks)
    if not _FORMATS[name].paths:
        marking = " and ".join(name for name, each in _FORMATS.items() if each.paths)
        raise ValueError(f"paths is for the formats {marking}, not for {name}")
    return _FORMATS[name].write(path, mazes_or_tasks, paths=paths)


def _format(path: Path, format: str | None) -> str | None:
    """The name of the format; None: any text, which the first line tells."""
    if format is not None:
        if format not in _FORMATS:
            raise ValueError(f"format {format!r} is unknown; accepted: {', '.join(_FORMATS)}")
        return format
    suffix = path.suffix.lower()
    for name, each in _FORMATS.items():
        if suffix in each.suffixes:
            return name
    if suffix in ("", ".txt"):
        return None
    known = [suffix for each in _FORMATS.values() for suffix in each.suffixes]
    raise ValueError(
        f"{path}: the suffix {suffix!r} tells no format; accepted: {', '.join(known)}, .txt or none, or a format by "
        f"name: {', '.join(_FORMATS)}"
    )


def _read_text(source: Source) -> MazeTasks | MazeBatch:
    first = source.lines[0] if source.lines else ""
    if first.startswith(("type ", "version ")):
        return _parse_movingai(source)
    if first.startswith(HEADER[0] + ","):
        return parse_hrm(source).tasks
    return read_drawings(source)
