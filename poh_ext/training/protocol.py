"""What is trained and tested on: the two protocols' mazes, with no maze in both sets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks, sample_tasks, sample_tasks_as_published
from poh_ext.training.batches import Batches, FixedBatches, OnlineBatches
from poh_ext.training.config import BenchmarkConfig, ConfigError

__all__ = ["TEST_SEED_OFFSET", "VALIDATION_SEED_OFFSET", "Data", "make_data", "planner_view", "protocol_settings"]

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
        validation: None without --validate-every.
    """

    train: MazeTasks
    test: MazeTasks
    batches: Batches
    n_train: int
    validation: MazeTasks | None = None


def protocol_settings(config: BenchmarkConfig) -> dict:
    """What the protocol decides: features per cell that the planners see, and the reduction of the loss."""
    if config.protocol == "as-published":
        return {"cell_features": 1, "reduction": "position_mean"}
    return {"cell_features": config.cell_features, "reduction": "mean"}


def planner_view(mazes: MazeBatch, config: BenchmarkConfig) -> MazeBatch:
    """What the planners are shown: the mazes, or as published a grid without walls in place of each."""
    if config.protocol != "as-published":
        return mazes
    passages = torch.full_like(mazes.passages, 15)  # all four ways, but none out of the grid
    for edge, bit in ((passages[:, 0], 1), (passages[:, -1], 2), (passages[:, :, 0], 4), (passages[:, :, -1], 8)):
        edge -= bit
    return MazeBatch(passages)


def make_data(config: BenchmarkConfig, seed: int) -> Data:
    """Training mazes of `seed` and test mazes of `seed + 10000`; no test maze has the walls of a training maze.

    default: exactly --train and --test mazes. as-published: 3x as many candidates with random start and goal, of
    which those whose shortest path is long enough are kept, at most as many as asked for: usually fewer. With
    --train online the training mazes are drawn step by step, those of the test set left out (of several sizes only
    --maze-size has any). Validation mazes come from `seed + 20000`, as the test mazes are drawn: a fixed training set
    is the same with them and without; with --train online they are left out of the training too.

    Raises:
        ConfigError: no maze of the size has so long a path, or too few mazes are not in the other sets.
    """
    if config.train == "online":
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
        return Data(online.draw(0, middling)[0], test, online, config.epochs * online.mazes_per_epoch, validation)
    train = _sample(config, "train", config.train, seed, None)
    test = _sample(config, "test", config.test, seed + TEST_SEED_OFFSET, train.keys())
    validation = _validation(config, seed, torch.cat([train.keys(), test.keys()]))
    return Data(train, test, FixedBatches(train, config.batch_size, seed), len(train), validation)


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
