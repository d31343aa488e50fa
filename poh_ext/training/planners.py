"""The planners a benchmark compares, built from its options."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from poh_ext.models import BaselinePlanner, PlannerShape, PoHPlanner, match_width
from poh_ext.training.config import BenchmarkConfig, ConfigError
from poh_ext.training.protocol import protocol_settings

__all__ = ["PLANNERS", "build_planner", "planner_options"]

PLANNERS = ("baseline", "poh", "looped_baseline")


def planner_options(name: str, config: BenchmarkConfig) -> dict[str, Any]:
    """Keyword arguments of the planner's class; PoH keeps the baseline's depth and gets the width that matches."""
    shape = PlannerShape(config.d_model, config.n_heads, config.d_ff, config.depth)
    shared = {"cell_features": protocol_settings(config)["cell_features"], "maze_enc": config.maze_enc}
    if name == "poh":
        try:
            shape = match_width(config.maze_size, shape, rule=config.parity_rule, **shared)
        except ValueError as error:
            raise ConfigError(f"--d-model {config.d_model}: {error}") from error
        shared.update(R=config.R, T=config.T)
    elif name == "looped_baseline":
        shared.update(loops=config.R)
    elif name != "baseline":
        raise ValueError(f"unknown planner {name!r}; known: {', '.join(PLANNERS)}")
    return {"d_model": shape.d_model, "n_heads": shape.n_heads, "d_ff": shape.d_ff, "depth": shape.depth, **shared}


def build_planner(name: str, config: BenchmarkConfig, *, seed: int) -> nn.Module:
    """A fresh planner on the CPU; the same seed gives the same weights, and the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        planner = PoHPlanner if name == "poh" else BaselinePlanner
        return planner(config.maze_size, **planner_options(name, config))
