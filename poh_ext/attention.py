"""Attention along the edges of a graph: each cell sees itself and a short list of others, in O(N C)."""

from __future__ import annotations

import torch
from torch import Tensor

from poh_ext._loss_checks import FLOATS, check_tensor
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
    """Scaled dot-product attention of every cell to itself and to its candidates, fused, forward and backward.

    Slot 0 is the cell itself, slot c + 1 its c-th candidate j. With i's query, scores are
    ``q_i . (k_j + key_offset[slot]) / sqrt(Dh) + bias[slot]``; their softmax over the slots that are there weighs
    ``v_j + value_offset[slot]``. Where slots are directions (`MazeBatch.neighbors()`), the offsets are relative
    positions in keys and values (Shaw et al., arXiv 1803.02155). Cost and memory are O(B H N C Dh); the dense form with
    a mask is O(B H N^2 Dh).

    Args:
        q, k, v: [B, H, N, Dh] of one dtype, float32, float64, bfloat16 or float16. Views are read by their strides
            (of a packed projection, `qkv.unflatten(-1, (3, H, Dh)).permute(2, 0, 3, 1, 4)`); sums run in float32
            (float64 for float64).
        candidates: [B, N, C] int64 cell numbers, -1 for none; any list, in any order, repeats count twice.
        bias: [H, C + 1]; key_offset, value_offset: [H, C + 1, Dh]; each of the dtype of q or, for half types, float32.

    Returns:
        [B, H, N, Dh] in the dtype of q, laid out as [B, N, H, Dh], so that `.transpose(1, 2).flatten(2)` is free.
        Differentiable in q, k, v, bias, key_offset and value_offset; the same for any number of threads.

    Raises:
        TypeError: no tensor, or a dtype not named above.
        ValueError: a shape or device that does not fit.
        IndexError: a candidate that is neither -1 nor a cell, with its place. On CUDA only with POH_EXT_CHECKS=1,
            because looking costs a synchronisation; else by a device assert.

    Example:
        >>> mazes = poh_ext.generate_mazes(8, 12)
        >>> q, k, v = torch.randn(3, 8, 4, 144, 12)
        >>> neighbor_attention(q, k, v, mazes.neighbors(), bias=torch.zeros(4, 5)).shape
        torch.Size([8, 4, 144, 12])
    """
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
    for name, t, shape in (
        ("bias", bias, (heads, slots)),
        ("key_offset", key_offset, (heads, slots, d_head)),
        ("value_offset", value_offset, (heads, slots, d_head)),
    ):
        if t is not None:
            check_tensor(name, t, shape, dtypes, q)
    return ops.neighbor_attention(q, k, v, candidates, bias, key_offset, value_offset)
