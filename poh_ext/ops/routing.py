"""torch.library wiring of the routing ops."""

from __future__ import annotations

from torch import Tensor

from poh_ext.reference import routing as reference

__all__ = ["route", "routing_entropy"]


def route(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return reference.route(logits, temperature)


def routing_entropy(logits: Tensor, temperature: float, reduction: str) -> Tensor:
    return reference.routing_entropy(logits, temperature, reduction)
