"""Which mazes each step trains on: a function of the seed and the step alone, so that a run can go on anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from poh_ext.mazes import generate_mazes
from poh_ext.tasks import MazeTasks, sample_tasks
from poh_ext.training.validation import ConfigError

__all__ = ["Batches", "Draw", "FixedBatches", "OnlineBatches", "draw", "stream_seed"]


class Draw(NamedTuple):
    """What a step draws before its mazes: their side, the passes, and the generator for what comes after."""

    size: int
    passes: int
    generator: torch.Generator


def draw(seed: int, step: int, sizes: tuple[int, int], passes: tuple[int, int] = (1, 1)) -> Draw:
    """Side and passes of a step, uniformly from (lowest, highest); neither range changes what else is drawn."""
    generator = torch.Generator().manual_seed(stream_seed(seed, step))
    size, run = (int(torch.randint(low, high + 1, (), generator=generator)) for low, high in (sizes, passes))
    return Draw(size, run, generator)


class Batches(Protocol):
    """The batches of a training.

    Attributes:
        per_epoch: steps of an epoch.
        mazes_per_epoch: mazes of it.
    """

    per_epoch: int
    mazes_per_epoch: int

    def run(self, first: int, last: int) -> Iterator[tuple[MazeTasks, int]]:
        """Yield, for steps first to last - 1, the batch and the number of mazes rejected to make it."""


class FixedBatches:
    """A training set, in a new order in every epoch; the last batch of an epoch may be smaller.

    Args:
        tasks: the training set.
        batch_size: mazes of a step.
        seed: of the order.
    """

    def __init__(self, tasks: MazeTasks, batch_size: int, seed: int) -> None:
        self.tasks, self.batch_size, self.seed = tasks, batch_size, seed
        self.per_epoch, self.mazes_per_epoch = math.ceil(len(tasks) / batch_size), len(tasks)

    def run(self, first: int, last: int) -> Iterator[tuple[MazeTasks, int]]:
        order = torch.Generator().manual_seed(self.seed)
        for epoch in range(math.ceil(last / self.per_epoch)):
            permutation = torch.randperm(len(self.tasks), generator=order)  # drawn for epochs before `first` too
            for place, index in enumerate(permutation.split(self.batch_size)):
                if first <= epoch * self.per_epoch + place < last:
                    yield self.tasks[index], 0


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
        min_path: least number of cells on a shortest path, or a function that says it of a side.
        algorithm: one of poh_ext.GENERATORS.
        anywhere: start and goal are any two cells of any maze (the same cell, or without a way between them, too);
            min_path is of no effect.

    Raises:
        ConfigError: by `run`: so few mazes are not held out that no batch can be made of them.
    """

    def __init__(self, batch_size: int, per_epoch: int, seed: int, exclude: Tensor, *,
                 size: int | tuple[int, int] | Callable[[int], tuple[int, int]], min_path: int | Callable[[int], int],
                 algorithm: str, anywhere: bool = False) -> None:
        self.batch_size, self.per_epoch, self.seed = batch_size, per_epoch, seed
        self.exclude, self.algorithm, self.anywhere = exclude, algorithm, anywhere
        span = (size, size) if isinstance(size, int) else size
        self.sizes = span if callable(span) else lambda _: span
        self.min_path = min_path if callable(min_path) else lambda _: min_path
        self.mazes_per_epoch = batch_size * per_epoch

    def run(self, first: int, last: int) -> Iterator[tuple[MazeTasks, int]]:
        if first == last:
            return
        with ThreadPoolExecutor(1, "next-mazes") as ahead:
            coming = ahead.submit(self.draw, first)
            for step in range(first, last):
                batch = coming.result()
                if step + 1 < last:
                    coming = ahead.submit(self.draw, step + 1)
                yield batch

    def side(self, step: int) -> int:
        """The side of the step's mazes, before any of them is made."""
        return draw(self.seed, step, self.sizes(step)).size

    def draw(self, step: int, size: int | None = None) -> tuple[MazeTasks, int]:
        """(batch of the step, how many mazes were rejected because they are held out); `size` replaces the side that
        is drawn."""
        own, _, generator = draw(self.seed, step, self.sizes(step))
        size, drawn = size or own, self.batch_size
        ends = torch.randint(size * size, (2, self.batch_size), generator=generator) if self.anywhere else None
        while True:
            found = self._stream(step, size, drawn)  # a longer draw begins with the shorter one
            keys = found.hash() if self.anywhere else found.keys()
            kept = (~torch.isin(keys, self.exclude)).nonzero().flatten()[: self.batch_size]
            if len(kept) == self.batch_size:
                tasks = found[kept]
                if self.anywhere:
                    path = tasks.shortest_paths(*ends)
                    tasks = MazeTasks(tasks, *ends, path, (path >= 0).sum(1))
                return tasks, int(kept[-1]) + 1 - self.batch_size
            if drawn > 1000 * self.batch_size:
                raise ConfigError(f"--train online: {drawn - len(kept)} of {drawn} mazes drawn are test mazes, or "
                                  "validation mazes; lower --test or --validation, or raise --maze-size")
            drawn += 2 * (self.batch_size - len(kept))

    def _stream(self, step: int, size: int, n: int):
        """The first n mazes of the step's stream: tasks, or with `anywhere` the bare mazes."""
        seed = stream_seed(self.seed, step)
        if self.anywhere:
            return generate_mazes(n, size, algorithm=self.algorithm, seed=seed)
        return sample_tasks(n, size, min_path=self.min_path(size), algorithm=self.algorithm, seed=seed)


def stream_seed(seed: int, step: int) -> int:
    """The seed of a step's mazes in [0, 2^63), well mixed (SplitMix64's finaliser): neighbours share nothing."""
    mask = 2**64 - 1
    z = (seed * 0xD1342543DE82EF95 + (step + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1
