"""Attention along the edges of a graph: each cell sees itself and a short list of others, in O(N C)."""

from __future__ import annotations

import torch
from torch import Tensor

from poh_ext._checks import FLOATS, autocast_together, check_tensor
from poh_ext.ops import neighbor_attention as ops
from poh_ext.reference.horizon_ce import accumulate_dtype

__all__ = ["neighbor_attention"]


def neighbor_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    candidates: Tensor,
    *,
    bias: Tensor | None = None,
    key_offset: Tensor | None = None,
    value_offset: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention of every cell to itself and to its candidates. Forward and backward are fused.

    Slot 0 of cell i is the cell itself, and slot c + 1 is its c-th candidate. The score of cell j in a slot is
    ``q_i . (k_j + key_offset[slot]) / sqrt(Dh) + bias[slot]``. The softmax of the scores over all slots with a cell
    weighs ``v_j + value_offset[slot]``. If slots are directions (`MazeBatch.neighbors()`), the offsets are relative
    position representations (Shaw et al., arXiv 1803.02155). Cost and memory are O(B H N C Dh); the dense form with a
    mask takes O(B H N^2 Dh).

    Args:
        q, k, v: [B, H, N, Dh] of one dtype, float32, float64, bfloat16 or float16. Views are read by their strides
            (of a packed projection, `qkv.unflatten(-1, (3, H, Dh)).permute(2, 0, 3, 1, 4)`). Sums run in float32
            (float64 for float64). Under autocast they are cast to its dtype, as scaled_dot_product_attention casts.
        candidates: [B, N, C] int64 cell numbers, -1 for an empty slot. The order is free; a repeated cell counts twice.
        bias: [H, C + 1], of the dtype of q or, for half types, float32.
        key_offset, value_offset: [H, C + 1, Dh], of the same dtypes as bias.

    Returns:
        [B, H, N, Dh] in the dtype of q, laid out as [B, N, H, Dh], so `.transpose(1, 2).flatten(2)` copies nothing.
        It is differentiable in q, k, v, bias, key_offset and value_offset, and the same for any number of threads.

    Raises:
        TypeError: an argument is no tensor, or of a dtype not named above.
        ValueError: a shape or device does not fit.
        IndexError: a candidate is neither -1 nor a cell; the message gives its place. On CUDA this needs
            POH_EXT_CHECKS=1, because looking costs a synchronisation; without it a device assertion stops the kernel.

    Examples:
        >>> mazes = poh_ext.generate_mazes(8, 12)
        >>> q, k, v = torch.randn(3, 8, 4, 144, 12)
        >>> neighbor_attention(q, k, v, mazes.neighbors(), bias=torch.zeros(4, 5)).shape
        torch.Size([8, 4, 144, 12])
    """
    q, k, v = autocast_together(q, k, v)
    check_tensor("q", q, ("B", "H", "N", "Dh"), FLOATS, q)
    batch, heads, n_cells, d_head = q.shape
    if d_head < 1:
        raise ValueError(f"q must have Dh >= 1 features per head, got shape {list(q.shape)}")
    for name, t in (("k", k), ("v", v)):
        check_tensor(name, t, tuple(q.shape), (q.dtype,), q)
    check_tensor("candidates", candidates, (batch, n_cells, "C"), (torch.int64,), q)
    slots = candidates.shape[2] + 1
    wide = accumulate_dtype(q.dtype)
    dtypes = (q.dtype,) if wide == q.dtype else (q.dtype, wide)
    for name, table, shape in (
        ("bias", bias, (heads, slots)),
        ("key_offset", key_offset, (heads, slots, d_head)),
        ("value_offset", value_offset, (heads, slots, d_head)),
    ):
        if table is not None:
            check_tensor(name, table, shape, dtypes, q)
    return ops.neighbor_attention(q, k, v, candidates, bias, key_offset, value_offset)
