"""Maze-Hard, the csv files of HRM and TRM: a question and an answer per line, each the characters of a square grid."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from poh_ext._files import write_atomically
from poh_ext.io._cells import FREE, GOAL, PATH, WALL, cells_of, check_blocked_only, tasks_of
from poh_ext.io._source import FormatError, Source, read_source, unknown
from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks

__all__ = ["HEADER", "Questions", "read_hrm", "write_hrm"]

HEADER = ["source", "question", "answer", "rating"]
_QUESTION, _ANSWER = "# SG", "# SGo"


class Questions(NamedTuple):
    """A file of Maze-Hard.

    Attributes:
        tasks: the n tasks; their paths are the answers.
        source: n strings, as given.
        rating: n strings, as given.
    """

    tasks: MazeTasks
    source: list[str]
    rating: list[str]


def read_hrm(path: str | os.PathLike[str], *, answers: bool = True) -> Questions:
    """Read the tasks of a csv file with the columns source, question, answer and rating.

    A question is the N * N characters of a square grid, row by row: '#' is blocked, ' ' free, 'S' the start, 'G' the
    goal. The answer has 'o' on the cells of the path, too. Where it is empty or has no 'o', none is given,
    and a shortest path is found.

    Args:
        answers: False leaves the answers out, which may be anything then; the paths are shortest ones.

    Raises:
        OSError: the file cannot be read.
        FormatError: another header or number of columns, no square or several sizes, an unknown character, a missing
            or second 'S' or 'G', a goal out of reach, or an answer to another question or whose marks are not one way.

    Examples:
        >>> tasks, source, rating = poh_ext.io.read_hrm("maze-30x30-hard-1k/train.csv")
    """
    return parse_hrm(read_source(path), answers=answers)


def parse_hrm(source: Source, *, answers: bool = True) -> Questions:
    rows, lines = _rows(source)
    names, questions, answered, ratings = ([row[column] for row in rows] for column in range(4))
    length = len(questions[0])
    side = math.isqrt(length)
    if side * side != length or not side:
        raise source.error(f"the question has {length} characters; N * N are accepted, for a grid of N x N", lines[0])

    def fail(reason: str, task: int, cell: int | None) -> FormatError:
        place = "" if cell is None else f"row {cell // side + 1}, column {cell % side + 1} of the grid: "
        return source.error(place + reason, lines[task])

    def grids(texts: list[str], name: str, accepted: str) -> np.ndarray:
        for task, text in enumerate(texts):
            if len(text) != length:
                wanted = f"the first question has {length}: one size is accepted"
                raise source.error(f"the {name} has {len(text)} characters, but {wanted}", lines[task])
        codes = np.frombuffer("".join(texts).encode("ascii", "replace"), dtype=np.uint8).reshape(-1, length)
        if (strange := ~np.isin(codes, list(accepted.encode()))).any():
            task, cell = divmod(int(strange.argmax()), length)
            raise fail(f"in the {name}, {unknown(texts[task][cell], accepted)}", task, cell)
        return codes

    asked = grids(questions, "question", _QUESTION)
    for task in ((asked == GOAL).sum(1) > 1).nonzero()[0][:1].tolist():
        raise fail("there is a second goal; one 'G' is accepted", task, int((asked[task] == GOAL).nonzero()[0][1]))
    cells = asked.copy()
    if answers:
        given = [answer or question for answer, question in zip(answered, questions, strict=True)]
        cells = grids(given, "answer", _ANSWER)
        other = np.where(cells == PATH, asked != FREE, cells != asked)
        if other.any():
            task, cell = divmod(int(other.argmax()), length)
            had, has = chr(asked[task, cell]), chr(cells[task, cell])
            raise fail(f"the answer has {has!r} where the question has {had!r}", task, cell)
    shape = (len(rows), side, side)
    mazes = MazeBatch.from_free(torch.from_numpy(asked.reshape(shape) != WALL))
    tasks = tasks_of(mazes, cells.reshape(shape), fail)
    return Questions(tasks, names, ratings)


def _rows(source: Source) -> tuple[list[list[str]], list[int]]:
    """The rows below the header, and the line of each, from 0."""
    most = 2 * len(HEADER) * csv.field_size_limit()  # each field full of quotes that are doubled
    for number, text in enumerate(source.lines):
        if len(text) > most:  # csv would make a list of its fields first, a hundred times as large
            raise source.error(f"no csv of four columns: the line has {len(text)} characters", number)
        if "\0" in text:  # which csv refuses in Python 3.10 only
            raise source.error("no csv: the line has a NUL", number)
    reader = csv.reader((line + "\n" for line in source.lines), strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    at = 0
    try:
        for row in reader:
            line, at = at, reader.line_num
            if not row:
                continue
            if not lines:
                if row != HEADER:
                    raise source.error(f"the header is {','.join(row)[:80]!r}; accepted: {','.join(HEADER)!r}", line)
            elif len(row) != len(HEADER):
                raise source.error(f"{len(row)} columns; accepted: {len(HEADER)} ({', '.join(HEADER)})", line)
            rows.append(row)
            lines.append(line)
    except csv.Error as error:
        raise source.error(f"no csv: {error}", at) from None
    if not rows:
        raise source.error(f"the file is empty; the first line is {','.join(HEADER)!r}")
    if len(rows) == 1:
        raise source.error("there is no question below the header")
    return rows[1:], lines[1:]


def write_hrm(
    path: str | os.PathLike[str],
    tasks: MazeTasks,
    *,
    paths: Tensor | None = None,
    source: Sequence[str] | None = None,
    rating: Sequence[str | float] | None = None,
) -> Path:
    """Write tasks as `read_hrm` reads them.

    Args:
        paths: int64 [n, L], the cells to mark in the answers, padded with -1: `Rollout.path` of a planner. It may be no
            way to the goal, which `read_hrm` accepts with answers=False only; without marks it reads as no answer.
            None: the paths of the tasks.
        source: n names of the origins. None: the algorithm of the mazes, or "poh_ext".
        rating: n ratings. None: the number of cells on the path of the task.

    Raises:
        OSError: the file cannot be written.
        TypeError: tasks is no MazeTasks.
        ValueError: paths has another shape or a value that is no cell; source or rating has another length.
        FormatError: there are no tasks; the grids are not square, have walls between free cells or more characters
            than csv readers take; or a task has several goals, starts on its goal, or has no path.

    Examples:
        >>> walk = greedy_rollout(table, tasks)
        >>> poh_ext.io.write_hrm("answers.csv", tasks, paths=walk.path)
    """
    if not isinstance(tasks, MazeTasks):
        raise TypeError(f"tasks must be MazeTasks, as the format has a start and a goal, got {type(tasks).__name__}")
    height, width = tasks.size
    if height != width:
        raise FormatError(f"{path}: the mazes are {height} x {width}; the format hrm has square grids")
    if not len(tasks):
        raise FormatError(f"{path}: there are no tasks; the format hrm has at least one")
    if tasks.mazes.n_cells > csv.field_size_limit():
        raise FormatError(
            f"{path}: a grid of {height} x {width} has more characters than csv readers take in a field "
            f"({csv.field_size_limit()} in Python)"
        )
    check_blocked_only(path, tasks.mazes, "hrm")
    if tasks.goal.dim() == 2 and (tasks.goal[:, 1:] >= 0).any():
        task = int((tasks.goal[:, 1:] >= 0).any(1).nonzero()[0, 0])
        raise FormatError(f"{path}: task {task} has several goals; the format hrm has one")
    if paths is None and (tasks.length == 0).any():
        task = int((tasks.length == 0).nonzero()[0, 0])
        raise FormatError(f"{path}: task {task} has no path; the format hrm has one in each answer")
    n = len(tasks)
    names = [tasks.mazes.algorithm or "poh_ext"] * n if source is None else list(source)
    ratings = tasks.length.tolist() if rating is None else list(rating)
    for name, column in (("source", names), ("rating", ratings)):
        if len(column) != n:
            raise ValueError(f"{name} must have {n} items, one for each task, got {len(column)}")
    answers = cells_of(tasks, paths, f"{path}: ")
    questions = np.where(answers == PATH, FREE, answers)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    for name, question, answer, rate in zip(names, questions, answers, ratings, strict=True):
        writer.writerow([name, question.tobytes().decode(), answer.tobytes().decode(), rate])
    return write_atomically(path, buffer.getvalue().encode())
