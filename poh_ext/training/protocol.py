"""The two protocols: what is trained and tested on, with no maze in both sets, and how loss and test are counted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks, sample_tasks, sample_tasks_as_published
from poh_ext.training.batches import Batches, FixedBatches, OnlineBatches
from poh_ext.training.config import BenchmarkConfig, ConfigError

__all__ = ["TEST_SEED_OFFSET", "VALIDATION_SEED_OFFSET", "Data", "Protocol", "make_data", "protocol_of",
           "without_walls"]

TEST_SEED_OFFSET = 10_000  # --seeds is at most this, so that no seeds meet
VALIDATION_SEED_OFFSET = 20_000
CANDIDATES_PER_MAZE = 3  # as published: this many mazes are drawn for each one asked for


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


@dataclass(frozen=True)
class Protocol:
    """What a protocol decides beside the mazes. The defaults are those of the default protocol.

    Attributes:
        cell_features: of a cell that the planners see; None: --cell-features.
        reduction: of the loss.
        clamp: scores are clamped to +/- this before the softmax of the loss; None: they are not.
        smooth_masked: label smoothing also where --validity-mask restricts the moves, over the allowed ones.
        rate_from_zero: the learning rate is 0 at the first step, and each later one has the rate of the step before.
        count_start: optimal compares cells, the start included, instead of moves.
        true_mazes: the mazes are those that the paths are shortest in. False: planners, validity mask and rollout get
            grids without walls (`MazeBatch.open`), and whether a maze is solved exactly cannot be said.
    """

    cell_features: int | None = None
    reduction: str = "mean"
    clamp: float | None = None
    smooth_masked: bool = True
    rate_from_zero: bool = False
    count_start: bool = False
    true_mazes: bool = True


PROTOCOLS = {
    "default": Protocol(),
    "as-published": Protocol(cell_features=1, reduction="position_mean", clamp=20.0, smooth_masked=False,
                             rate_from_zero=True, count_start=True, true_mazes=False),
}


def protocol_of(config: BenchmarkConfig) -> Protocol:
    """What --protocol decides."""
    return PROTOCOLS[config.protocol]


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
        online = OnlineBatches(config.batch_size, config.steps_per_epoch, seed, held_out,
                               size=lambda step: config.size_range_at(step, config.total_steps(0)),
                               min_path=config.min_path_at, algorithm=config.algorithm,
                               anywhere=config.supervision == "all")
        spans = [config.size_range_at(step, 100) for step in range(100)]
        means = [sum(size**2 for size in range(low, high + 1)) / (high + 1 - low) for low, high in spans]
        middling = round(math.sqrt(sum(means) / len(means)))
        return Data(online.draw(0, middling)[0], test, online, config.epochs * online.mazes_per_epoch, test.mazes,
                    validation)
    train = _sample(config, "train", config.train, seed, None)
    test = _sample(config, "test", config.test, seed + TEST_SEED_OFFSET, train.keys())
    validation = _validation(config, seed, torch.cat([train.keys(), test.keys()]))
    walls = test.mazes
    if not protocol_of(config).true_mazes:
        train, test = without_walls(train), without_walls(test)
        validation = None if validation is None else without_walls(validation)
    return Data(train, test, FixedBatches(train, config.batch_size, seed), len(train), walls, validation)


def without_walls(tasks: MazeTasks) -> MazeTasks:
    """The same starts, goals and paths on open grids."""
    mazes = MazeBatch.open(len(tasks), tasks.mazes.size, device=tasks.mazes.device)
    return MazeTasks(mazes, tasks.start, tasks.goal, tasks.path, tasks.length)


def _validation(config: BenchmarkConfig, seed: int, exclude: torch.Tensor) -> MazeTasks | None:
    if not config.validate_every:
        return None
    return _sample(config, "validation", config.validation, seed + VALIDATION_SEED_OFFSET, exclude)


def _sample(config: BenchmarkConfig, which: str, n: int, seed: int, exclude: torch.Tensor | None) -> MazeTasks:
    if config.protocol == "as-published":
        drawn = CANDIDATES_PER_MAZE * n
        tasks = sample_tasks_as_published(drawn, config.maze_size, config.min_path_cells, seed)[:n]
        if exclude is not None:
            tasks = tasks[~torch.isin(tasks.keys(), exclude)]
        if len(tasks):
            return tasks
        problem = f"none of {drawn} mazes drawn has a path of {config.min_path_cells} cells; ask for more mazes"
    else:
        try:
            return sample_tasks(n, config.maze_size, min_path=config.min_path_cells, algorithm=config.algorithm,
                                seed=seed, exclude=exclude)
        except ValueError as error:
            problem = str(error)
    raise ConfigError(f"--{which} {n} with --maze-size {config.maze_size} --min-path {config.min_path}: {problem}")
