"""Which mazes each step trains on: a function of the seed and the step alone, so that a run can go on anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

from poh_ext.tasks import MazeTasks, sample_tasks
from poh_ext.training.validation import ConfigError

__all__ = ["Batches", "FixedBatches", "OnlineBatches"]


class Batches(Protocol):
    """The batches of a training.

    Attributes:
        per_epoch: steps of an epoch.
        mazes_per_epoch: mazes of it.
    """

    per_epoch: int
    mazes_per_epoch: int

    def run(self, first: int, last: int) -> Iterator[tuple[MazeTasks, int]]:
        """For steps first to last - 1: the batch, and how many mazes were rejected to make it."""


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
    """New mazes in every step, none of the test set's, made while the step before is computed.

    Each step has a stream of mazes of its own, named by the seed and the step: no maze depends on what was drawn
    before, on the number of threads or on the prefetching. The generator's kernels run outside the GIL, so that one
    thread ahead is enough.

    Args:
        batch_size, per_epoch: mazes of a step, steps of an epoch.
        seed: of the training.
        exclude: int64 [m], MazeTasks.keys() of the test mazes.
        sample: the rest of sample_tasks' arguments: size, min_path, algorithm.

    Raises:
        ConfigError: by `run`: so few mazes are not in the test set that no batch can be made of them.
    """

    def __init__(self, batch_size: int, per_epoch: int, seed: int, exclude: torch.Tensor, **sample) -> None:
        self.batch_size, self.per_epoch, self.seed = batch_size, per_epoch, seed
        self.exclude, self.sample = exclude, sample
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

    def draw(self, step: int) -> tuple[MazeTasks, int]:
        """(batch of the step, how many mazes were rejected because they are in the test set)."""
        seed, drawn = stream_seed(self.seed, step), self.batch_size
        while True:
            tasks = sample_tasks(drawn, seed=seed, **self.sample)  # a longer draw begins with the shorter one
            kept = (~torch.isin(tasks.keys(), self.exclude)).nonzero().flatten()[: self.batch_size]
            if len(kept) == self.batch_size:
                return tasks[kept], int(kept[-1]) + 1 - self.batch_size
            if drawn > 1000 * self.batch_size:
                raise ConfigError(f"--train online: {drawn - len(kept)} of {drawn} mazes drawn are test mazes; lower "
                                  "--test or raise --maze-size")
            drawn += 2 * (self.batch_size - len(kept))


def stream_seed(seed: int, step: int) -> int:
    """The seed of a step's mazes in [0, 2^63), well mixed (SplitMix64's finaliser): neighbours share nothing."""
    mask = 2**64 - 1
    z = (seed * 0xD1342543DE82EF95 + (step + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1
