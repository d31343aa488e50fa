"""The mazes that a planner solves exactly, over the number of passes that it gets.

This holds the sets of test mazes, the outcome on every maze, and the file of raw outcomes.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poh_ext._checks import MAX_CELLS, ceil_of
from poh_ext._files import write_atomically
from poh_ext.environment import describe_environment
from poh_ext.mazes import DENSITY
from poh_ext.rollout import solved_exactly
from poh_ext.solve.pretrained import Recipe
from poh_ext.tasks import MazeTasks, sample_tasks
from poh_ext.training.targets import passes_to_know_paths

__all__ = [
    "DEFAULT_SETS",
    "MOST_FACTOR",
    "MazeSet",
    "Outcome",
    "exact_over_passes",
    "measure",
    "passes_given",
    "save_json",
    "seen_in_training",
]

CELLS_AT_ONCE = 16_384  # of a batch: large enough for the threads, small enough for a cache
STATES_AT_ONCE = 3_000_000  # of cells, kept until a batch is done: some 600 MB
FORMAT, VERSION = "poh_ext solve evaluation", 1
MOST_FACTOR = 1e9  # of passes for each move: with the longest path of all they are still an int64
TEST_SEED = 6_000_000  # plus the side: no training or choice of anything has looked at these


def _check_factors(factors: Sequence[float]) -> list[float]:
    """`factors`, if they are one or more numbers that are accepted. Raises ValueError otherwise."""
    if not factors or not all(0 < f <= MOST_FACTOR for f in factors):
        raise ValueError(f"factors must be positive numbers of at most {MOST_FACTOR:g}, got {list(factors)}")
    return list(factors)


@torch.no_grad()
def exact_over_passes(
    model: torch.nn.Module,
    tasks: MazeTasks,
    factors: Sequence[float],
    *,
    tolerance: float = 0.0,
    done: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """bool [len(factors), n]: True for mazes solved exactly with `factor` passes for each move of the shortest path.

    One run per batch serves all factors. Its state is read after each number of passes that one of its mazes needs.

    Args:
        model: a planner. It is evaluated in eval mode and in float32, and its mode is restored.
        tasks: n tasks whose goal is not the start.
        factors: positive numbers of at most 1e9. 1 gives as many passes as moves. The numbers of passes are rounded up.
        tolerance: see the planners' forward.
        done: called after each batch with the number of its mazes; may raise an error to stop.

    Raises:
        ValueError: there are no factors, or one is out of range.
    """
    factors = _check_factors(factors)
    was_training, result = model.training, torch.zeros(len(factors), len(tasks), dtype=torch.bool)
    model.eval()
    try:
        for part in _parts(tasks, factors):
            result[:, part] = _batch(model, tasks[part], factors, tolerance).cpu()
            done(len(part))
    finally:
        model.train(was_training)
    return result


def passes_given(cells: int, factors: Sequence[float]) -> list[int]:
    """The number of passes that each factor gives for a shortest path of `cells` cells."""
    return [max(1, ceil_of(factor, cells - 1)) for factor in factors]


def _parts(tasks: MazeTasks, factors: Sequence[float]) -> Iterator[list[int]]:
    """Batches of mazes with paths of about the same length, because a batch runs as long as its longest path needs."""
    lengths, part, numbers = tasks.length.tolist(), [], set()
    for i in sorted(range(len(tasks)), key=lambda i: -lengths[i]):
        mine = set(passes_given(lengths[i], factors))
        cells, kept = (len(part) + 1) * tasks.mazes.n_cells, len(numbers | mine)
        most = max(CELLS_AT_ONCE, torch.get_num_threads() * tasks.mazes.n_cells)  # a thread takes whole mazes
        if part and (cells > most or cells * kept > STATES_AT_ONCE):
            yield part
            part, numbers = [], set()
        part.append(i)
        numbers |= mine
    if part:
        yield part


def _batch(model: torch.nn.Module, tasks: MazeTasks, factors: Sequence[float], tolerance: float) -> Tensor:
    wanted = [passes_given(cells, factors) for cells in tasks.length.tolist()]
    after = sorted({passes for row in wanted for passes in row})
    place = {passes: i for i, passes in enumerate(after)}
    states = model.hidden_passes(tasks.mazes, tasks.start, tasks.goal, after=after, tolerance=tolerance)
    tables = []
    for row in zip(*wanted, strict=True):
        state = torch.stack([states[place[passes]][i] for i, passes in enumerate(row)])
        tables.append(solved_exactly(model.move_scores(state), tasks))
    return torch.stack(tables)


class MazeSet(NamedTuple):
    """A set of test mazes: side, fewest cells on the shortest path, number of mazes."""

    size: int
    min_path: int
    count: int

    def __str__(self) -> str:
        return ":".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> MazeSet:
        """Read a set from "SIZE:PATH:COUNT". Raises ValueError, naming the text, for any other text."""
        parts = text.split(":")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"mazes must be SIZE:PATH:COUNT, three whole numbers, got {text!r}")
        made = cls(*map(int, parts))
        if made.size < 2 or made.min_path < 2 or made.count < 1:
            raise ValueError(f"mazes must have SIZE >= 2, PATH >= 2 and COUNT >= 1, got {text!r}")
        if made.size**2 > MAX_CELLS:
            raise ValueError(f"mazes must have SIZE x SIZE <= {MAX_CELLS} cells, got {text!r}")
        if made.min_path > made.size**2:
            raise ValueError(f"mazes must have PATH <= SIZE x SIZE = {made.size**2} cells, got {text!r}")
        return made

    def tasks(self, algorithm: str, start: str = "any", **loops: Any) -> MazeTasks:
        """The tasks of the set on mazes of `algorithm` with that kind of `start`, and with density or braid as `loops`
        (see sample_tasks). Raises ValueError, naming the set, if there are none. All kinds of start share their mazes,
        except mazes without such a start."""
        which: dict[str, Any] = {"algorithm": algorithm, "start": start, "seed": TEST_SEED + self.size, **loops}
        try:
            return sample_tasks(self.count, self.size, min_path=self.min_path, **which)
        except ValueError as error:
            raise ValueError(f"mazes {self}: {error}") from error


DEFAULT_SETS = (MazeSet(12, 50, 1000), MazeSet(20, 140, 200), MazeSet(30, 225, 200))


@dataclass(frozen=True)
class Outcome:
    """The outcome on one set of mazes.

    Attributes:
        mazes, algorithm, start: the set, its generator and the kind of its start cells.
        factors: passes for each move of a maze's shortest path.
        lengths: cells on the shortest path of each maze.
        solved: for each factor, whether each maze was solved exactly.
        needed: for each maze, the passes after which cells that see only neighbours can know the moves of its path
            (`passes_to_know_paths`). With fewer passes a maze is solved by luck only.
        met: the number of mazes that are also training mazes.
        seconds: duration of the evaluation.
        loops: density or braid of the mazes, where one was asked for.
        unique: for each maze, whether its shortest path is the only one. A maze solved exactly is then solved by the
            very path that a data set gives, which is what HRM and TRM count.
    """

    mazes: MazeSet
    algorithm: str
    start: str
    factors: list[float]
    lengths: list[int]
    solved: list[list[bool]]
    needed: list[int]
    met: int
    seconds: float
    loops: dict[str, Any] = field(default_factory=dict)
    unique: list[bool] = field(default_factory=list)

    @property
    def identical(self) -> list[tuple[int, int]]:
        """For each factor: of how many mazes with one shortest path the path walked is that one, and how many there
        are."""
        return [(sum(row[i] for i, one in enumerate(self.unique) if one), sum(self.unique)) for row in self.solved]

    @property
    def generator(self) -> str:
        """The name of the generator for a reader: "20x20 wilson"."""
        return _name(self.mazes.size, self.algorithm, "any", self.loops)

    @property
    def name(self) -> str:
        """`generator` with the start: "20x20 dfs from a dead-end"."""
        return _name(self.mazes.size, self.algorithm, self.start, self.loops)

    @property
    def knowable(self) -> list[list[bool]]:
        """Like `solved`: whether that many passes are as many as are needed."""
        given = [passes_given(cells, self.factors) for cells in self.lengths]
        return [
            [passes >= least for passes, least in zip(row, self.needed, strict=True)]
            for row in zip(*given, strict=True)
        ]

    def record(self) -> dict[str, Any]:
        """Plain values; solved as one string of 0 and 1 for each factor, as there may be thousands."""
        return {
            **self.mazes._asdict(),
            "algorithm": self.algorithm,
            **self.loops,
            "start": self.start,
            "seed": TEST_SEED + self.mazes.size,
            "met_in_training": self.met,
            "seconds": round(self.seconds, 2),
            "moves": [cells - 1 for cells in self.lengths],
            "passes_to_know": self.needed,
            "one_shortest_path": "".join(str(int(one)) for one in self.unique),
            "solved": {
                f"{factor:g}": "".join(str(int(one)) for one in row)
                for factor, row in zip(self.factors, self.solved, strict=True)
            },
        }


Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def measure(
    model: torch.nn.Module,
    recipe: Recipe,
    sets: Sequence[MazeSet],
    factors: Sequence[float],
    *,
    algorithms: Sequence[str] = ("dfs",),
    starts: Sequence[str] = ("any",),
    density: float | tuple[float, float] | None = None,
    braid: float | tuple[float, float] = 0.0,
    tolerance: float = 0.0,
    watch: Watch = lambda label, mazes: nullcontext(lambda count: None),
) -> Iterator[Outcome]:
    """Yield the outcome of every set, with every algorithm and every kind of start, as soon as it is known.

    `density` is for the algorithms that have one, `braid` for the others (see sample_tasks). The mazes go to the device
    of the model. `tolerance`: see the planners' forward. `watch` is entered for each outcome, with a label and the
    number of mazes. What it yields is called after each batch with the number of mazes done in it.

    Raises:
        ValueError, when called: a set asks for mazes that do not exist; or as `exact_over_passes`.
    """
    factors = _check_factors(factors)
    wanted = []
    for mazes, algorithm, start in product(sets, algorithms, starts):
        loops = {"density": density} if algorithm in DENSITY else {"braid": braid or None}
        loops = {name: value for name, value in loops.items() if value is not None}
        wanted.append((mazes, algorithm, start, loops, mazes.tasks(algorithm, start, **loops)))
    return (_measured(model, recipe, factors, tolerance, watch, *which) for which in wanted)


def _measured(
    model: torch.nn.Module,
    recipe: Recipe,
    factors: list[float],
    tolerance: float,
    watch: Watch,
    mazes: MazeSet,
    algorithm: str,
    start: str,
    loops: dict[str, Any],
    tasks: MazeTasks,
) -> Outcome:
    began, device = time.perf_counter(), next(iter(model.parameters())).device
    with watch(_name(mazes.size, algorithm, start, loops), len(tasks)) as done:
        solved = exact_over_passes(model, tasks.to(device), factors, tolerance=tolerance, done=done)
    seconds = time.perf_counter() - began
    return Outcome(
        mazes,
        algorithm,
        start,
        factors,
        tasks.length.tolist(),
        solved.tolist(),
        passes_to_know_paths(tasks).tolist(),
        seen_in_training(recipe, tasks),
        seconds,
        loops,
        tasks.one_shortest_path().tolist(),
    )


def _name(size: int, algorithm: str, start: str, loops: dict[str, Any]) -> str:
    words = [f"{size}x{size} {algorithm}"]
    for name, value in loops.items():
        words.append(f"{name} {value:g}" if isinstance(value, Real) else "{} {:g}:{:g}".format(name, *value))
    return " ".join(words if start == "any" else [*words, f"from a {start}"])


def seen_in_training(recipe: Recipe, tasks: MazeTasks) -> int:
    """The number of test mazes that are also training mazes. The training mazes are made again for this."""
    return int(torch.isin(tasks.keys(), _met(recipe, tasks.mazes.height)).sum())


@functools.cache  # the same for every algorithm and start
def _met(recipe: Recipe, size: int) -> torch.Tensor:
    """int64: keys of the training mazes of this size."""
    return recipe.keys(size)


def save_json(path: Path, outcomes: Sequence[Outcome], about: dict[str, Any]) -> Path:
    """Write raw outcomes atomically, with plain values `about` the planner, and with machine and versions."""
    record = {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "environment": describe_environment(),
        "sets": [outcome.record() for outcome in outcomes],
    }
    return write_atomically(path, (json.dumps(record) + "\n").encode())
