"""Options of runs that take a moment, and what they train."""

import functools

import pytest
import torch

from poh_ext.training import loop
from poh_ext.training.config import Benchmark12x12Config
from poh_ext.training.data import make_data
from poh_ext.training.plan import PlannedRow, planner_config

TINY = {
    "train": 8,
    "test": 6,
    "epochs": 2,
    "maze_size": 5,
    "batch_size": 4,
    "d_model": 64,
    "n_heads": 4,
    "d_ff": 128,
    "depth": 1,
    "R": 2,
    "warmup_steps": 2,
    "device": "cpu",
    "precision": "float32",
}
TINY_FLAGS = [part for name, value in TINY.items() for part in (f"--{name.replace('_', '-')}", str(value))]
needs_tyro = pytest.mark.skipif(not pytest.importorskip("tyro"), reason="tyro")


tiny = functools.partial(Benchmark12x12Config, **TINY)
# A planner of --preset solve: all of its options, and passes drawn anew in each step.
tiny_solver = functools.partial(
    tiny,
    train="online",
    steps_per_epoch=2,
    R=4,
    d_model=16,
    d_ff=24,
    parity="none",
    warmup_steps=1,
    lr=1e-2,
    dropout=0.0,
    cell_features=6,
    valid_heads="all",
    norm="post",
    head="moves",
    positions="none",
    reinject="on",
    residual="none",
    route_scale="heads",
    supervision="all",
    train_R=(2, 5),
)


def planner_options(name, config, scale=""):
    return planner_config(name, config, scale).keywords()


def build_planner(name, config, *, seed, scale=""):
    """The planner of a row, as a run builds it."""
    row = PlannedRow(name, name, True, scale, config, planner_config(name, config, scale))
    return row.build(seed, torch.device("cpu"))


def train(config, name="baseline", seed=3):
    data = make_data(config, seed)
    model = build_planner(name, config, seed=seed)
    return model, loop.train_planner(model, data.train, config, seed=seed, label=name), data
