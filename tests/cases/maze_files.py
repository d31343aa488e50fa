"""Mazes and tasks to write to files, and what it means that they are read again."""

import torch

from poh_ext import MazeTasks, generate_mazes, sample_tasks

WALLS = sample_tasks(5, (4, 7), seed=1)
BLOCKED = sample_tasks(6, 9, algorithm="obstacles", min_path=8, seed=2)
MAP = MazeTasks(
    generate_mazes(1, (20, 31), algorithm="obstacles", density=0.1, seed=3),
    *torch.tensor([[40] * 30, [7 * 31 + 9] * 30]),
)
GOALS = MazeTasks(
    generate_mazes(3, 6, braid=0.5, seed=4), torch.tensor([0, 1, 2]), torch.tensor([[30, 35], [20, -1], [8, 9]])
)
ONE = sample_tasks(1, (4, 7), seed=1)
MANY = MazeTasks(GOALS.mazes[:1], GOALS.start[:1], GOALS.goal[:1])
FIELDS = ("start", "goal", "path", "length")


def assert_same(read, given):
    assert type(read) is type(given)
    mazes, wanted = (what.mazes if isinstance(what, MazeTasks) else what for what in (read, given))
    assert torch.equal(mazes.passages, wanted.passages) and torch.equal(mazes.free(), wanted.free())
    if isinstance(given, MazeTasks):
        for field in FIELDS:
            assert torch.equal(getattr(read, field), getattr(given, field)), field
