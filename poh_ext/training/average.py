"""The exponential moving average of a planner's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

__all__ = ["Average"]


class Average:
    """Weights averaged over the steps: after each, average <- d average + (1 - d) weights.

    d = min(decay, (1 + n) / (10 + n)) after n steps, so that the first weights are soon forgotten (as TensorFlow's
    ExponentialMovingAverage with num_updates).

    Args:
        model: whose weights are averaged; it is copied.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = copy.deepcopy(model).requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Take in the weights of `model`, after so many steps before this one."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)

    def into(self, model: nn.Module) -> None:
        """Give `model` the averaged weights."""
        model.load_state_dict(self.model.state_dict())

    def state(self) -> dict[str, Any]:
        return self.model.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state)
