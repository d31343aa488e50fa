"""All timed cases by group, for `python -m poh_ext.bench` and for the pytest-benchmark suites in bench/."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from poh_ext.bench.maze_cases import maze_cases
from poh_ext.bench.operator_cases import attention_cases, linear_cases, loss_cases, routing_cases
from poh_ext.bench.planner_cases import passes_cases, train_cases
from poh_ext.bench.timing import Purse, Watch

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

# A case's part of a limited run: what it takes beside the others, slow rivals included, compilers not.
WEIGHTS = {"loss": 4.0, "linear": 5.0, "routing": 1.0, "attention": 2.0, "passes": 3.0, "mazes": 1.0, "train": 6.0}
FIRST_COMPILATION = 3.0  # times as long as the import of the compiler
COMPILING = ("loss", "linear", "routing", "attention")  # with a variant that torch.compile makes


def warm_up_compiler(device: torch.device, purse: Purse, watch: Watch) -> None:
    """Compile something small, with its gradient: the first compilation imports and prepares what all others use.

    Its time is taken from the purse. If the time of the import shows that this would empty the purse, nothing is
    compiled.
    """
    start = watch.now()
    importlib.import_module("torch._inductor.compile_fx")
    expected = FIRST_COMPILATION * (watch.now() - start)
    if expected > purse.left:
        purse.left, purse.last = 0.0, expected
        return
    x = torch.ones(8, device=device, requires_grad=True)
    try:
        torch.compile(lambda x: (x * 2).sum())(x).backward()
    except RuntimeError:
        pass  # no compiler here: the cases say so
    purse.left = max(0.0, purse.left - (watch.now() - start))
