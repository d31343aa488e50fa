"""Attention to a cell and its candidates in plain PyTorch: the fallback, and the oracle of the kernels' tests.

Shapes are checked by poh_ext.attention; here stands only the check that must look at the data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poh_ext.reference.horizon_ce import accumulate_dtype, raise_first

__all__ = ["neighbor_attention"]


def neighbor_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    candidates: Tensor,
    bias: Tensor | None,
    key_offset: Tensor | None,
    value_offset: Tensor | None,
) -> Tensor:
    """As poh_ext.attention.neighbor_attention, of checked arguments; gathers [B, H, N, C + 1, Dh] twice."""
    n_cells, d_head = q.shape[2:]
    bad = (candidates < -1) | (candidates >= n_cells)
    raise_first("candidates", candidates, bad, "there are {} cells (-1 pads)", n_cells)
    wide = accumulate_dtype(q.dtype)
    own = torch.arange(n_cells, device=q.device)[None, :, None].expand(candidates.shape[0], n_cells, 1)
    # What is absent reads the cell itself, with weight 0: another cell's NaN must not come in.
    slots = torch.cat([own, torch.where(candidates < 0, own, candidates)], dim=-1)
    absent = torch.cat([torch.zeros_like(own, dtype=torch.bool), candidates < 0], dim=-1).unsqueeze(1)

    def at_slots(rows: Tensor, offset: Tensor | None) -> Tensor:
        index = slots.flatten(1)[:, None, :, None].expand(-1, rows.shape[1], -1, d_head)
        taken = rows.to(wide).gather(2, index).unflatten(2, slots.shape[1:])  # [B, H, N, C + 1, Dh]
        return taken if offset is None else taken + offset.to(wide)[:, None]

    scores = (at_slots(k, key_offset) * q.to(wide).unsqueeze(3)).sum(-1) / math.sqrt(d_head)
    if bias is not None:
        scores = scores + bias.to(wide)[:, None]
    weights = scores.masked_fill(absent, -torch.inf).softmax(-1)
    return (at_slots(v, value_offset) * weights.unsqueeze(-1)).sum(3).to(q.dtype)
