"""Interventions on the routing at evaluation: what would a planner do with other weights than its routers give?"""

from __future__ import annotations

import torch
from torch import Tensor

from poh_ext.routing import SUM_TOLERANCE

__all__ = ["INTERVENTIONS", "check_override", "overridden"]

INTERVENTIONS = ("uniform", "shuffled")  # by name; a tensor of weights is the third kind


def check_override(how: str | Tensor, depth: int, heads: int) -> None:
    """Raise ValueError or TypeError, with what is accepted, if `how` is no intervention; see override_routing."""
    if isinstance(how, Tensor):
        if not how.is_floating_point():
            raise TypeError(f"routing weights must be of a floating-point dtype, got {how.dtype}")
        if how.shape != (depth, heads):
            raise ValueError(f"routing weights must be [depth, heads] = [{depth}, {heads}], got {list(how.shape)}")
        wide = how.detach().double()
        if not bool((wide >= 0).all() and ((wide.sum(-1) - 1).abs() <= SUM_TOLERANCE).all()):
            raise ValueError("routing weights must be 0 or more and sum to 1 over the heads of each block")
    elif not isinstance(how, str):
        raise TypeError(f"how must be {_accepted()}, got {type(how).__name__}")
    elif how not in INTERVENTIONS:
        raise ValueError(f"how must be {_accepted()}, got {how!r}")


def _accepted() -> str:
    return ", ".join(map(repr, INTERVENTIONS)) + " or a tensor of weights [depth, heads]"


def overridden(how: str | Tensor, block: int, weights: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """What takes the place of a router's weights [B, H] or [B, N, H] and of their entropy [B] or [B, N] in nats."""
    if isinstance(how, Tensor):
        fixed = how[block].to(weights)
        return fixed.expand_as(weights), torch.special.entr(fixed).sum(-1).expand_as(entropy)
    if how == "uniform":
        even = torch.full_like(weights, 1 / weights.shape[-1])
        return even, torch.full_like(entropy, weights.shape[-1]).log()
    mazes, cells = weights.shape[0], weights.shape[1] if weights.dim() == 3 else 1
    if mazes * cells < 2:
        raise ValueError("routing 'shuffled' takes the weights of another maze of the batch, which needs 2 or more "
                         f"mazes, got {mazes}")
    # Half the maze away, as neighbouring cells have much in common: no cell keeps its own, in a batch of one either.
    shifts, dims = ((1,), (0,)) if weights.dim() == 2 else ((1, cells // 2), (0, 1))
    return weights.roll(shifts, dims), entropy.roll(shifts, dims)
