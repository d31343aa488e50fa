"""What is trained and tested on, with no maze in both, and what each step draws.

What a step draws is a function of the seed and the step alone, so that a training can go on anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from poh_ext.mazes import DENSITY, KINDS, MazeBatch, generate_mazes
from poh_ext.tasks import MazeTasks, sample_tasks, sample_tasks_as_published
from poh_ext.training.checks import ConfigError
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.presets import protocol_of

__all__ = [
    "TEST_SEED_OFFSET",
    "VALIDATION_SEED_OFFSET",
    "Batches",
    "Data",
    "FixedBatches",
    "OnlineBatches",
    "Step",
    "draw",
    "make_data",
    "stream_seed",
    "without_walls",
]

TEST_SEED_OFFSET = 10_000  # --seeds is at most this, so that no seeds meet
VALIDATION_SEED_OFFSET = 20_000
KIND_STREAM = 0x6B696E64  # what names the draws of kinds
CANDIDATES_PER_MAZE = 3  # as published: this many mazes are drawn for each one asked for

Span = tuple[int, int]  # lowest and highest


# -- steps -------------------------------------------------------------------------------------------------------


def draw(
    seed: int, step: int, sizes: Span, passes: Span = (1, 1), law: str = "uniform"
) -> tuple[int, int, torch.Generator]:
    """What a step draws before its mazes: their side and the passes, from (lowest, highest), and the generator for
    what comes after. Neither range, nor the law of the passes (of --train-R-draw), changes what else is drawn."""
    generator = torch.Generator().manual_seed(stream_seed(seed, step))
    size = int(torch.randint(sizes[0], sizes[1] + 1, (), generator=generator))
    low, high = passes
    if law == "uniform":
        return size, int(torch.randint(low, high + 1, (), generator=generator)), generator
    share = int(torch.randint(1 << 24, (), generator=generator)) / (1 << 24)
    return size, min(high, int(low * ((high + 1) / low) ** share)), generator


def stream_seed(seed: int, step: int) -> int:
    """The seed of a step's mazes in [0, 2^63), well mixed (SplitMix64's finaliser): neighbours share nothing."""
    mask = 2**64 - 1
    z = (seed * 0xD1342543DE82EF95 + (step + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1


class Step(NamedTuple):
    """What a step trains on: its mazes, the passes that a planner that loops runs, and the number of mazes that were
    rejected to make the batch. It is the same for every planner."""

    batch: MazeTasks
    passes: int
    rejected: int


def _of_step(span: int | Span | Callable[[int], Span]) -> Callable[[int], Span]:
    if callable(span):
        return span
    pair = (span, span) if isinstance(span, int) else span
    return lambda _: pair


class FixedBatches:
    """A training set, in a new order in every epoch; the last batch of an epoch may be smaller.

    Attributes:
        per_epoch, mazes_per_epoch: steps and mazes of an epoch.

    Args:
        tasks: the training set.
        batch_size: mazes of a step.
        seed: of the order, and of the passes.
        passes: (lowest, highest) number of passes, or a function that says these of a step.
        law: that they are drawn by, of --train-R-draw.
    """

    def __init__(
        self,
        tasks: MazeTasks,
        batch_size: int,
        seed: int,
        *,
        passes: int | Span | Callable[[int], Span] = 1,
        law: str = "uniform",
    ) -> None:
        self.tasks, self.batch_size, self.seed = tasks, batch_size, seed
        self.passes, self.law = _of_step(passes), law
        self.per_epoch, self.mazes_per_epoch = math.ceil(len(tasks) / batch_size), len(tasks)

    @classmethod
    def of(cls, tasks: MazeTasks, config: BenchmarkConfig, seed: int) -> FixedBatches:
        total = config.epochs * math.ceil(len(tasks) / config.batch_size)
        return cls(
            tasks, config.batch_size, seed, passes=lambda step: config.pass_range(step, total), law=config.train_R_draw
        )

    def run(self, first: int, last: int) -> Iterator[Step]:
        """Yield the steps first to last - 1."""
        order = torch.Generator().manual_seed(self.seed)
        for epoch in range(math.ceil(last / self.per_epoch)):
            permutation = torch.randperm(len(self.tasks), generator=order)  # drawn for epochs before `first` too
            for step, index in enumerate(permutation.split(self.batch_size), epoch * self.per_epoch):
                if first <= step < last:
                    yield Step(self.tasks[index], draw(self.seed, step, (1, 1), self.passes(step), self.law)[1], 0)


class OnlineBatches:
    """New mazes in every step, none of those held out, made while the step before is computed.

    Each step has a stream of mazes of its own, named by the seed and the step: no maze depends on what was drawn
    before, on the number of threads or on the prefetching. The generator's kernels run outside the GIL, so that one
    thread ahead is enough.

    Args:
        batch_size, per_epoch: mazes of a step, steps of an epoch.
        seed: of the training.
        exclude: int64 [m], MazeTasks.keys() of the mazes held out: test and validation mazes.
        size: side of the mazes, or the (lowest, highest) from which each step draws it, or a function that says these
            of a step.
        passes: likewise, the number of passes.
        law: that they are drawn by, of --train-R-draw.
        min_path: least number of cells on a shortest path, or a function that says it of a side and a kind.
        algorithm: one of poh_ext.mazes.KINDS, or several, of which each step draws one.
        anywhere: start and goal are any two cells of any maze (the same cell, or without a way between them, too);
            min_path is of no effect. In percolation, obstacles and open there is a way between
            them.

    Raises:
        ConfigError: by `run`: so few mazes are not held out that no batch can be made of them.
    """

    def __init__(
        self,
        batch_size: int,
        per_epoch: int,
        seed: int,
        exclude: Tensor,
        *,
        size: int | Span | Callable[[int], Span],
        min_path: int | Callable[[int, str], int],
        algorithm: str | Sequence[str],
        anywhere: bool = False,
        passes: int | Span | Callable[[int], Span] = 1,
        law: str = "uniform",
    ) -> None:
        self.batch_size, self.per_epoch, self.seed = batch_size, per_epoch, seed
        self.exclude, self.anywhere = exclude, anywhere
        self.kinds = (algorithm,) if isinstance(algorithm, str) else tuple(algorithm)
        self.sizes, self.passes, self.law = _of_step(size), _of_step(passes), law
        self.min_path = min_path if callable(min_path) else lambda *_: min_path
        self.mazes_per_epoch = batch_size * per_epoch

    @classmethod
    def of(cls, config: BenchmarkConfig, seed: int, exclude: Tensor) -> OnlineBatches:
        total = config.total_steps(0)
        return cls(
            config.batch_size,
            config.steps_per_epoch,
            seed,
            exclude,
            size=lambda step: config.size_range_at(step, total),
            algorithm=config.kinds,
            passes=lambda step: config.pass_range(step, total),
            law=config.train_R_draw,
            min_path=config.min_path_at,
            anywhere=config.supervision == "all",
        )

    def run(self, first: int, last: int) -> Iterator[Step]:
        """Yield the steps first to last - 1."""
        if first == last:
            return
        with ThreadPoolExecutor(1, "next-mazes") as ahead:
            coming = ahead.submit(self.draw, first)
            for step in range(first, last):
                found = coming.result()
                if step + 1 < last:
                    coming = ahead.submit(self.draw, step + 1)
                yield found

    def side(self, step: int) -> int:
        """The side of the step's mazes, before any of them is made."""
        return draw(self.seed, step, self.sizes(step))[0]

    def draw(self, step: int, size: int | None = None) -> Step:
        """The step, made now; `size` replaces the side that is drawn."""
        own, passes, generator = draw(self.seed, step, self.sizes(step), self.passes(step), self.law)
        size, drawn, kind = size or own, self.batch_size, self.kind(step)
        ends = torch.randint(size * size, (2, self.batch_size), generator=generator) if self.anywhere else None
        while True:
            found = self._stream(step, kind, size, drawn)  # a longer draw begins with the shorter one
            keys = found.hash() if isinstance(found, MazeBatch) else found.keys()
            kept = (~torch.isin(keys, self.exclude)).nonzero().flatten()[: self.batch_size]
            if len(kept) == self.batch_size:
                tasks = found[kept]
                if isinstance(tasks, MazeBatch):
                    path = tasks.shortest_paths(*ends)
                    tasks = MazeTasks(tasks, *ends, path, check=False)
                return Step(tasks, passes, int(kept[-1]) + 1 - self.batch_size)
            if drawn > 1000 * self.batch_size:
                raise ConfigError(
                    f"--train online: {drawn - len(kept)} of {drawn} mazes drawn are test mazes, or "
                    "validation mazes; lower --test or --validation, or raise --maze-size"
                )
            drawn += 2 * (self.batch_size - len(kept))

    def kind(self, step: int) -> str:
        """The kind of the step's mazes. What else a step draws does not depend on how many kinds there are."""
        return self.kinds[stream_seed(self.seed ^ KIND_STREAM, step) % len(self.kinds)]

    def _stream(self, step: int, kind: str, size: int, n: int) -> MazeBatch | MazeTasks:
        """The first n mazes of the step's stream: tasks, or with `anywhere` the bare mazes."""
        seed, options = stream_seed(self.seed, step), KINDS[kind]
        if not self.anywhere:
            return sample_tasks(n, size, min_path=self.min_path(size, kind), seed=seed, **options)
        if options["algorithm"] in DENSITY:  # most pairs of cells would be no task
            return sample_tasks(n, size, min_path=2, seed=seed, **options)
        return generate_mazes(n, size, seed=seed, **options)


Batches = FixedBatches | OnlineBatches


# -- sets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Training, test and validation mazes of one seed.

    Attributes:
        train: the training set; with --train online the mazes of the first step, of a middling size, to time a step on.
        test: the test mazes.
        batches: what each step trains on.
        n_train: different mazes trained on.
        test_walls: the test mazes as they were drawn, where those of `test` are grids without walls; else `test.mazes`.
        validation: None without --validate-every.
    """

    train: MazeTasks
    test: MazeTasks
    batches: Batches
    n_train: int
    test_walls: MazeBatch
    validation: MazeTasks | None = None


def make_data(config: BenchmarkConfig, seed: int, *, test: MazeTasks | None = None) -> Data:
    """Training mazes of `seed` and test mazes of `seed + 10000`; no test maze has the walls of a training maze.

    default: exactly --train and --test mazes. as-published: 3x as many candidates with random start and goal, of
    which those whose shortest path is long enough are kept, at most as many as asked for: usually fewer. Start,
    goal and path are then put on a grid without walls, which is all that planners, loss and rollout get. With
    --train online the training mazes are drawn step by step, those of the test set left out (of several sizes only
    --maze-size has any). Validation mazes come from `seed + 20000`, as the test mazes are drawn: a fixed training
    set is the same with them and without; with --train online they are left out of the training too.

    Args:
        config: --seed and --seeds are of no effect.
        seed: of the training mazes.
        test: with --train online, test mazes instead of those of `seed + 10000`.

    Raises:
        ConfigError: no maze of the size has so long a path, or too few mazes are not in the other sets.
    """
    if config.train == "online":
        if test is None:
            test = _sample(config, "test", config.test, seed + TEST_SEED_OFFSET, None)
        validation = _validation(config, seed, test.keys())
        held_out = test.keys() if validation is None else torch.cat([test.keys(), validation.keys()])
        online = OnlineBatches.of(config, seed, held_out)
        spans = [config.size_range_at(step, 100) for step in range(100)]
        means = [sum(size**2 for size in range(low, high + 1)) / (high + 1 - low) for low, high in spans]
        middling = round(math.sqrt(sum(means) / len(means)))
        return Data(
            online.draw(0, middling).batch, test, online, config.epochs * online.mazes_per_epoch, test.mazes, validation
        )
    train = _sample(config, "train", config.train, seed, None)
    test = _sample(config, "test", config.test, seed + TEST_SEED_OFFSET, train.keys())
    validation = _validation(config, seed, torch.cat([train.keys(), test.keys()]))
    walls = test.mazes
    if not protocol_of(config).true_mazes:
        train, test = without_walls(train), without_walls(test)
        validation = None if validation is None else without_walls(validation)
    return Data(train, test, FixedBatches.of(train, config, seed), len(train), walls, validation)


def without_walls(tasks: MazeTasks) -> MazeTasks:
    """The same starts, goals and paths on open grids."""
    mazes = MazeBatch.open(len(tasks), tasks.mazes.size, device=tasks.mazes.device)
    return MazeTasks(mazes, tasks.start, tasks.goal, tasks.path, tasks.length, check=False)


def _validation(config: BenchmarkConfig, seed: int, exclude: Tensor) -> MazeTasks | None:
    if not config.validate_every:
        return None
    return _sample(config, "validation", config.validation, seed + VALIDATION_SEED_OFFSET, exclude)


def _sample(config: BenchmarkConfig, which: str, n: int, seed: int, exclude: Tensor | None) -> MazeTasks:
    if config.protocol == "as-published":
        drawn = CANDIDATES_PER_MAZE * n
        tasks = sample_tasks_as_published(drawn, config.maze_size, config.min_path_cells, seed)[:n]
        if exclude is not None:
            tasks = tasks[~torch.isin(tasks.keys(), exclude)]
        if len(tasks):
            return tasks
        problem = f"none of {drawn} mazes drawn has a path of {config.min_path_cells} cells; ask for more mazes"
    else:
        kinds, sets = config.kinds, []
        counts = [n // len(kinds) + (i < n % len(kinds)) for i in range(len(kinds))]
        try:
            for kind, count in zip(kinds, counts, strict=True):
                least = config.min_path_at(config.maze_size, kind)
                options = KINDS[kind]
                sets.append(
                    sample_tasks(count, config.maze_size, min_path=least, seed=seed, exclude=exclude, **options)
                )
            return sets[0] if len(sets) == 1 else MazeTasks.cat(sets)
        except ValueError as error:
            problem = str(error)
    raise ConfigError(f"--{which} {n} with --maze-size {config.maze_size} --min-path {config.min_path}: {problem}")
