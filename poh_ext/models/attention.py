"""Self-attention of the planners: heads that see every cell, heads that see a cell and its passable neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poh_ext.ops import dropout as dropout_op
from poh_ext.ops.neighbor_attention import neighbor_attention_packed

__all__ = ["Attention"]

SLOTS = 5  # the cell itself, then up, down, left, right


class Attention(nn.Module):
    """Multi-head self-attention whose heads can be weighted one by one before the output projection.

    forward(x [B, N, d], head_weights [B, H] or [B, N, H] or None, neighbors [B, N, 4] or None) -> [B, N, d].
    With head_weights=None and valid_heads=0 it is nn.MultiheadAttention(bias=True, batch_first=True), initialised the
    same way. The first valid_heads heads attend only to the cell and its `neighbors` (poh_ext.neighbor_attention), with
    a learned bias and learned offsets of keys and values per direction; their weights, five at most, get no dropout.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float, valid_heads: int = 0):
        super().__init__()
        self.n_heads = n_heads
        self.valid_heads = valid_heads
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)
        tables = {"direction_bias": (), "key_offset": (d_model // n_heads,), "value_offset": (d_model // n_heads,)}
        for name, width in tables.items():
            table = nn.Parameter(torch.zeros(valid_heads, SLOTS, *width)) if valid_heads else None
            if table is not None and width:  # about as large as keys and values are, so that directions are told apart
                nn.init.normal_(table, std=0.5)
            self.register_parameter(name, table)

    def forward(self, x: Tensor, head_weights: Tensor | None = None, neighbors: Tensor | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.n_heads, -1))
        if self.valid_heads == 0:
            heads = self._wide(qkv)
        elif self.valid_heads == self.n_heads:
            heads = self._near(qkv, neighbors)
        else:
            near, wide = qkv.split((self.valid_heads, self.n_heads - self.valid_heads), dim=3)
            heads = torch.cat([self._near(near, neighbors), self._wide(wide)], dim=2)
        if head_weights is not None:
            if head_weights.dim() == 2:
                head_weights = head_weights.unsqueeze(1)
            heads = heads * head_weights.unsqueeze(-1).to(heads.dtype)
        return self.out(heads.flatten(2))

    def _near(self, qkv: Tensor, neighbors: Tensor) -> Tensor:
        """[B, N, 3, heads, Dh] -> [B, N, heads, Dh], as _wide."""
        return neighbor_attention_packed(qkv, neighbors, self.direction_bias, self.key_offset, self.value_offset)

    def _wide(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        if _attends_faster(qkv, dropout):
            heads = _attend(q, k, v, dropout)
        else:
            heads = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return heads.transpose(1, 2)


MOST_KEYS = 1024  # beyond, the weights [B, H, N, N] of `_attend` need more memory than they save time


def _attends_faster(qkv: Tensor, dropout: float) -> bool:
    """Whether `_attend` beats torch: on the CPU, which has no fused kernel with dropout, and none that is fast in
    bfloat16 (B 32, H 6, N 144, Dh 64, both passes: 41 ms against 10; in float32 26 against 25)."""
    if dropout > 0:
        return dropout_op.has_dropout(qkv)
    return qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and qkv.shape[1] <= MOST_KEYS


def _attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """scaled_dot_product_attention as three products; see `_attends_faster`."""
    with torch.autocast(q.device.type, enabled=False):  # else softmax would widen a bfloat16 run to float32
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
        if dropout > 0:
            weights = dropout_op.dropout(weights, dropout)
        return weights @ v
