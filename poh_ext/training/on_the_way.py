"""--validate-every: how well a planner plans while it is trained, on mazes that are neither trained nor tested on."""

from __future__ import annotations

from typing import Any

import torch

from poh_ext.tasks import MazeTasks
from poh_ext.training.at_test import arguments_at_test
from poh_ext.training.config import BenchmarkConfig
from poh_ext.training.evaluate import evaluate

__all__ = ["Validation", "validations"]


class Validation:
    """Evaluates a planner after some of the epochs of its training, as at the test. It draws no random numbers and
    changes no weights: what is trained is the same with it and without it.

    Args:
        config: `validate_every` says after which epochs: every so many, and the last.
        tasks: validation mazes.
        precision: of the run.
    """

    def __init__(self, config: BenchmarkConfig, tasks: MazeTasks, precision: str) -> None:
        self.config, self.tasks, self.precision = config, tasks, precision

    def due(self, epoch: int) -> bool:
        """After epoch `epoch`, from 0."""
        return (epoch + 1) % self.config.validate_every == 0 or epoch + 1 == self.config.epochs

    def __call__(self, model: torch.nn.Module) -> dict[str, Any]:
        """Validation mazes, and the shares of them reached, reached optimally and, where known, solved exactly."""
        # It is not stopped on the way: a signal waits for the end of a training step too, and a point is kept whole.
        outcome = evaluate(model, self.tasks, decode=self.config.decode_used, label="validating",
                           **arguments_at_test(model, self.config, self.precision))
        n = len(self.tasks)
        shares = {"reached": outcome.reached, "optimal": outcome.optimal, "exact": outcome.exact}
        return {"mazes": n} | {name: int(found.sum()) / n for name, found in shares.items() if found is not None}


def validations(config: BenchmarkConfig) -> int:
    """The number of validations in a whole training."""
    return -(-config.epochs // config.validate_every) if config.validate_every else 0
