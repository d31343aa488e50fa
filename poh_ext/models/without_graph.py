"""Passes where no gradient is wanted: settled cells, and the kernel that runs hundreds of passes at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from poh_ext.ops.planner_inference import Routers, has_passes, neighbor_passes

if TYPE_CHECKING:
    from poh_ext.models.base import Planner

__all__ = ["SETTLED", "fused_passes", "kernel_serves", "routers_of", "routers_state", "settled"]

SETTLED = 1e-3  # the `tolerance` of the programs: on all mazes tried the moves are those of 0


def settled(old: Tensor, new: Tensor, tolerance: float) -> Tensor:
    """`new`, but `old` in each row that moved by at most `tolerance` everywhere; NaN counts as moved."""
    if tolerance == 0:
        return new
    still = (new - old).abs().amax(-1, keepdim=True) <= tolerance
    return torch.where(still, old, new)


def kernel_serves(planner: Planner, x: Tensor, tolerance: float) -> bool:
    """Whether the passes of the planner's blocks can be run by `fused_passes`."""
    block = planner.blocks[0]
    return (planner.valid_heads == block.attention.n_heads and planner.norm == "post" and has_passes(x)
            and not (planner.training and block.dropout.p > 0) and (tolerance == 0 or len(planner.blocks) == 1))


def fused_passes(planner: Planner, x: Tensor, tokens: Tensor, neighbors: Tensor, step: int, after: Sequence[int],
                 tolerance: float, routers: Routers | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """See ops.planner_inference."""
    block = planner.blocks[0]
    return neighbor_passes(
        x, tokens, neighbors, [block.parameters_in_order() for block in planner.blocks], heads=planner.valid_heads,
        d_ff=block.expand.out_features, step=step, after=after, inject=planner.reinject, eps=block.norm1.eps,
        tolerance=tolerance, routers=routers,
    )


def routers_of(planner: Planner, scale: Tensor, states: list, held: list, x: Tensor) -> Routers:
    """A PoH planner's routers and their states (None, None before the first pass) as the kernel wants them."""
    router = planner.routers[0]
    empty = x.new_zeros(len(x), 2 * router.slow.hidden_size + scale.shape[1])
    state = torch.stack([empty if s is None else torch.cat([*s, w], dim=-1) for s, w in zip(states, held, strict=True)])
    parameters = [r.parameters_in_order() for r in planner.routers]
    return Routers(parameters, scale, state, router.T, router.temperature)


def routers_state(state: Tensor, heads: int) -> tuple[list, list]:
    """The other way: ((slow, fast) of each router, weights in use of each)."""
    c = (state.shape[-1] - heads) // 2
    parts = [s.split((c, c, heads), dim=-1) for s in state]
    return [(slow, fast) for slow, fast, _ in parts], [held for *_, held in parts]
