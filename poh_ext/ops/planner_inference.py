"""Many passes of post-norm blocks of neighbour attention in one call, without a graph. CPU kernel only: elsewhere, and
wherever a gradient is wanted, the planners' own blocks are what it stands for. csrc/planner_inference/ mirrors them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from poh_ext._backend import has_kernel

__all__ = ["has_passes", "neighbor_passes"]


def has_passes(x: Tensor) -> bool:
    """Whether the kernel serves x: float32 on the CPU, no graph, no autocast, not compiled."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not has_kernel(x.device, "neighbor_passes"):
        return False
    return x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)


class Routers(NamedTuple):
    """The pooled routers of a PoH planner's blocks, for `neighbor_passes`.

    Attributes:
        parameters: of each router, in the kernel's order: project; slow cell (from the input, from the state), its
            norm; fast cell, its norm; mix; logits. Weights before biases.
        scale: [depth, H], factors on the routing weights.
        state: float32 [depth, B, 2 (d // 2) + H]: slow, fast, the weights in use; zeros before the first pass.
        T: the slow cell moves on passes 0, T, 2 T, ...
        temperature: of the softmax.
    """

    parameters: list[list[Tensor]]
    scale: Tensor
    state: Tensor
    T: int
    temperature: float


def neighbor_passes(
    x: Tensor,
    tokens: Tensor,
    neighbors: Tensor,
    blocks: list[list[Tensor]],
    *,
    heads: int,
    d_ff: int,
    step: int,
    after: Sequence[int],
    inject: bool,
    eps: float,
    tolerance: float = 0.0,
    routers: Routers | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The states after several numbers of passes over the blocks, of one run that `step` passes were made of before.

    Args:
        x, tokens: [B, N, d]; tokens are added before each pass but pass 0 if `inject`.
        blocks: of each block, the parameters in the kernel's order: qkv, direction bias, offsets of keys and values,
            output projection, first norm, expanding and contracting layer, second norm; weights before biases.
        after: numbers of passes, rising, above `step`; the last is how many are run.
        tolerance: a cell that a pass moves by no more keeps its state, and routing weights likewise. Above 0 for one
            block only.
        routers: None: the heads are added up as they are.

    Returns:
        x [len(after), B, N, d]; the routers' state at the end, and the routing weights used [passes run, depth, B, H]:
        both empty without routers.
    """
    weights = _rows(blocks)
    scale = x.new_ones(len(blocks), heads) if routers is None else routers.scale.detach().to(weights.dtype)
    return torch.ops.poh_ext.neighbor_passes(
        x,
        tokens,
        neighbors,
        torch.cat([weights, scale], dim=1),
        heads,
        d_ff,
        step,
        after[-1] - step,
        torch.tensor(after, device="cpu"),
        inject,
        eps,
        tolerance,
        None if routers is None else _rows(routers.parameters),
        None if routers is None else routers.state,
        1 if routers is None else routers.T,
        1.0 if routers is None else routers.temperature,
    )


def _rows(parameters: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.cat([p.detach().flatten() for p in each]) for each in parameters])


if has_kernel(torch.device("cpu")):

    @torch.library.register_fake("poh_ext::neighbor_passes")
    def _(
        x,
        tokens,
        candidates,
        weights,
        heads,
        d_ff,
        step,
        passes,
        after,
        inject,
        eps,
        tolerance,
        routers,
        router_state,
        slow_period,
        temperature,
    ):
        out = x.new_empty(after.shape[0], *x.shape)
        if routers is None:
            return out, x.new_empty(0), x.new_empty(0)
        return (
            out,
            torch.empty_like(router_state, memory_format=torch.contiguous_format),
            x.new_empty(passes, weights.shape[0], x.shape[0], heads),
        )
