"""Planners over mazes and the rules that make their sizes comparable."""

from poh_ext.models.config import PlannerConfig, PlannerShape
from poh_ext.models.parity import SHAPES, gflop_per_maze, match_width, parameter_count
from poh_ext.models.planners import BaselinePlanner, PoHPlanner

__all__ = [
    "SHAPES",
    "BaselinePlanner",
    "PlannerConfig",
    "PlannerShape",
    "PoHPlanner",
    "gflop_per_maze",
    "match_width",
    "parameter_count",
]
