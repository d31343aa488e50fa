"""All timed cases by group, for `python -m poh_ext.bench` and for the pytest-benchmark suites in bench/."""

from __future__ import annotations

from collections.abc import Callable

from poh_ext.bench.attention_cases import attention_cases
from poh_ext.bench.loss_cases import linear_cases, loss_cases, routing_cases
from poh_ext.bench.maze_cases import maze_cases
from poh_ext.bench.passes_cases import passes_cases
from poh_ext.bench.train_cases import train_cases

# name -> (device, dtype) -> iterator of (size name, builder of a Case); building makes the inputs, not before.
GROUPS: dict[str, Callable] = {
    "loss": loss_cases,
    "linear": linear_cases,
    "routing": routing_cases,
    "attention": attention_cases,
    "passes": passes_cases,
    "mazes": maze_cases,
    "train": train_cases,
}
