"""How a planner is evaluated: the same way after its training, on the way, and in TensorBoard's pictures."""

from __future__ import annotations

from typing import Any

import torch

from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.passes import passes_at_test
from poh_ext.training.protocol import protocol_of

__all__ = ["arguments_at_test", "counted_at_test"]


def arguments_at_test(model: torch.nn.Module, config: BenchmarkConfig, precision: str) -> dict[str, Any]:
    """Arguments of `evaluate`: passes, tolerance, arithmetic, and what counts as optimal and exact.

    Args:
        model: the planner; one that does not loop has its own number of passes, and no cell at rest in them.
        config: of its row.
        precision: of the run.
    """
    return {
        "passes": passes_at_test(model, config),
        "tolerance": config.tolerance if model.looped else 0.0,
        "precision": config.evaluation_precision(precision),
        **counted_at_test(config),
    }


def counted_at_test(config: BenchmarkConfig) -> dict[str, bool]:
    """Arguments of `evaluate` and `evaluate_control`: what counts as optimal, and whether exactness can be told."""
    protocol = protocol_of(config)
    return {"count_start": protocol.count_start, "true_mazes": protocol.true_mazes}
