"""The planners a benchmark compares, built from its options."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from poh_ext.models import BaselinePlanner, PoHPlanner, match_width
from poh_ext.training.config import BenchmarkConfig, ConfigError
from poh_ext.training.protocol import protocol_of

__all__ = ["PLANNERS", "build_planner", "planner_class", "planner_options"]

PLANNERS = ("baseline", "looped_baseline", "poh", "poh_shallow", "poh_token")


def planner_class(name: str) -> type[nn.Module]:
    return PoHPlanner if name.startswith("poh") else BaselinePlanner


def planner_options(name: str, config: BenchmarkConfig, scale: str = "") -> dict[str, Any]:
    """Keyword arguments of the planner's class, for one of the benchmark's sizes.

    PoH gets the baseline's number of parameters as --parity says; poh_shallow keeps its width and drops layers,
    poh_token routes per token. What is as published is left to the planners' own defaults.
    """
    if name not in PLANNERS:
        raise ValueError(f"unknown planner {name!r}; known: {', '.join(PLANNERS)}")
    shape = config.shapes[scale]
    shared = {"cell_features": protocol_of(config).cell_features or config.cell_features, "maze_enc": config.maze_enc}
    if name.startswith("poh"):
        mode = "width" if name == "poh_shallow" else config.parity
        # To drop heads would change how many of them see all cells.
        rule = "scale" if config.valid_heads else config.parity_rule
        try:
            shape = match_width(config.maze_size, shape, mode=mode, rule=rule, **shared,
                                **config.shared_levers(shape.n_heads))
        except ValueError as error:
            size = f"--models {scale}" if scale else f"--d-model {config.shapes[scale].d_model}"
            hint = "; poh_shallow needs --depth 2 or more" if name == "poh_shallow" and shape.depth == 1 else ""
            raise ConfigError(f"{size}: {error}{hint}") from error
        routing = "token" if name == "poh_token" else config.routing
        shared.update(R=config.R, T=config.T, **config.poh_levers(shape.n_heads, routing))
    elif name == "looped_baseline":
        shared.update(loops=config.R)
    shared.update(config.shared_levers(shape.n_heads))
    return {"d_model": shape.d_model, "n_heads": shape.n_heads, "d_ff": shape.d_ff, "depth": shape.depth, **shared,
            "dropout": config.dropout}


def build_planner(name: str, config: BenchmarkConfig, *, seed: int, scale: str = "") -> nn.Module:
    """A fresh planner on the CPU; the same seed gives the same weights, and the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return planner_class(name)(config.maze_size, **planner_options(name, config, scale))
