"""Many passes of post-norm blocks of neighbour attention in one call, without a graph. CPU kernel only: elsewhere, and
wherever a gradient is wanted, the planners' own blocks are what it stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from poh_ext._backend import has_kernel

__all__ = ["has_passes", "neighbor_passes"]


def has_passes(x: Tensor) -> bool:
    """Whether the kernel serves x: float32 on the CPU, no graph, no autocast, not compiled."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not has_kernel(x.device, "neighbor_passes"):
        return False
    return x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)


def neighbor_passes(x: Tensor, tokens: Tensor, neighbors: Tensor, blocks: list[list[Tensor]], *, heads: int, d_ff: int,
                    passes: int, inject: bool, inject_first: bool, eps: float) -> Tensor:
    """The state [B, N, d] after so many passes over the blocks.

    Args:
        x, tokens: [B, N, d]; tokens are added before each pass if `inject` (before the first only if inject_first).
        blocks: of each block, the parameters in the kernel's order: qkv, direction bias, offsets of keys and values,
            output projection, first norm, expanding and contracting layer, second norm; weights before biases.
    """
    weights = torch.stack([torch.cat([p.detach().flatten() for p in block]) for block in blocks])
    return torch.ops.poh_ext.neighbor_passes(
        x, tokens, neighbors, weights, heads, d_ff, passes, inject, inject_first, eps
    )


if has_kernel(torch.device("cpu")):

    @torch.library.register_fake("poh_ext::neighbor_passes")
    def _(x, tokens, candidates, weights, heads, d_ff, passes, inject, inject_first, eps):
        return torch.empty_like(x, memory_format=torch.contiguous_format)
