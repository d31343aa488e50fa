"""What only inference has: settled cells, the kernel that runs many passes at once (the C++ mirror of blocks.py), and
interventions on the routing: what would a planner do with other weights than its routers give?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from poh_ext.ops.planner_inference import Routers, has_passes, neighbor_passes
from poh_ext.routing import SUM_TOLERANCE

if TYPE_CHECKING:
    from poh_ext.models.base import Planner

__all__ = [
    "INTERVENTIONS",
    "SETTLED",
    "check_override",
    "fused_passes",
    "kernel_serves",
    "overridden",
    "routers_of",
    "routers_state",
    "settled",
]

INTERVENTIONS = ("uniform", "shuffled")  # by name; a tensor of weights is the third kind
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
    return (
        planner.valid_heads == block.attention.n_heads
        and planner.norm == "post"
        and has_passes(x)
        and not (planner.training and block.dropout.p > 0)
        and (tolerance == 0 or len(planner.blocks) == 1)
    )


def fused_passes(
    planner: Planner,
    x: Tensor,
    tokens: Tensor,
    neighbors: Tensor,
    step: int,
    after: Sequence[int],
    tolerance: float,
    routers: Routers | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ops.planner_inference."""
    block = planner.blocks[0]
    return neighbor_passes(
        x,
        tokens,
        neighbors,
        [block.parameters_in_order() for block in planner.blocks],
        heads=planner.valid_heads,
        d_ff=block.expand.out_features,
        step=step,
        after=after,
        inject=planner.reinject,
        eps=block.norm1.eps,
        tolerance=tolerance,
        routers=routers,
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
        raise ValueError(
            "routing 'shuffled' takes the weights of another maze of the batch, which needs 2 or more "
            f"mazes, got {mazes}"
        )
    # Half the maze away, as neighbouring cells have much in common: no cell keeps its own, in a batch of one either.
    shifts, dims = ((1,), (0,)) if weights.dim() == 2 else ((1, cells // 2), (0, 1))
    return weights.roll(shifts, dims), entropy.roll(shifts, dims)
