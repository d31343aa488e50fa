"""The parts of the planners: attention, transformer block, GRU cell, head router, dropout.

Planners whose heads all see neighbours run without a graph in C++ (csrc/planner_inference): what is changed here is
changed there too.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poh_ext.models.config import PlannerConfig
from poh_ext.ops import dropout as dropout_op
from poh_ext.ops.neighbor_attention import neighbor_attention_packed
from poh_ext.routing import route

__all__ = ["SLOTS", "Attention", "Block", "Dropout", "GRUCell", "Router"]

SLOTS = 5  # the cell itself, then up, down, left, right
MOST_KEYS = 1024  # beyond, the weights [B, H, N, N] of `_attend` need more memory than they save time
MIN_TEMPERATURE = 0.7


class Dropout(nn.Dropout):
    """nn.Dropout, by the kernel where it serves (torch's own takes a third of a training step's time on a CPU); other
    numbers than torch's from the same seed."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return dropout_op.dropout(x, self.p) if dropout_op.has_dropout(x) else F.dropout(x, self.p)


class Attention(nn.Module):
    """Multi-head self-attention whose heads can be weighted one by one before the output projection.

    forward(x [B, N, d], head_weights [B, H] or [B, N, H] or None, neighbors [B, N, 4] or None) -> [B, N, d].
    With head_weights=None and valid_heads=0 it is nn.MultiheadAttention(bias=True, batch_first=True), initialised the
    same way. The first valid_heads heads attend only to the cell and its `neighbors` (poh_ext.neighbor_attention), with
    a learned bias and learned offsets of keys and values per direction; their weights, five at most, get no dropout.
    """

    direction_bias: nn.Parameter | None
    key_offset: nn.Parameter | None
    value_offset: nn.Parameter | None

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
            heads = self._valid(qkv, neighbors)
        else:
            valid, wide = qkv.split((self.valid_heads, self.n_heads - self.valid_heads), dim=3)
            heads = torch.cat([self._valid(valid, neighbors), self._wide(wide)], dim=2)
        if head_weights is not None:
            if head_weights.dim() == 2:
                head_weights = head_weights.unsqueeze(1)
            heads = heads * head_weights.unsqueeze(-1).to(heads.dtype)
        return self.out(heads.flatten(2))

    def _valid(self, qkv: Tensor, neighbors: Tensor) -> Tensor:
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


class Block(nn.Module):
    """Self-attention and a ReLU feed-forward with residuals; layer norm before ("pre") or after ("post").

    With norm="post" and ff_bias=True it is nn.TransformerEncoderLayer(activation="relu", batch_first=True).
    """

    def __init__(self, config: PlannerConfig, *, ff_bias: bool):
        super().__init__()
        d_model, own = config.d_model, config.attention_dropout
        self.norm = config.norm_used
        self.attention = Attention(
            d_model, config.n_heads, config.dropout if own is None else own, int(config.valid_heads)
        )
        self.expand = nn.Linear(d_model, config.d_ff, bias=ff_bias)
        self.contract = nn.Linear(config.d_ff, d_model, bias=ff_bias)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = Dropout(config.dropout)

    def parameters_in_order(self) -> list[Tensor]:
        """As poh_ext.ops.planner_inference wants them, of a block whose heads all see neighbours."""
        a = self.attention
        bias = [
            layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
            for layer in (self.expand, self.contract)
        ]
        return [
            a.qkv.weight,
            a.qkv.bias,
            a.direction_bias,
            a.key_offset,
            a.value_offset,
            a.out.weight,
            a.out.bias,
            self.norm1.weight,
            self.norm1.bias,
            self.expand.weight,
            bias[0],
            self.contract.weight,
            bias[1],
            self.norm2.weight,
            self.norm2.bias,
        ]

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.contract(self.dropout(F.relu(self.expand(x)))))

    def forward(self, x: Tensor, head_weights: Tensor | None = None, neighbors: Tensor | None = None) -> Tensor:
        if self.norm == "pre":
            x = x + self.dropout(self.attention(self.norm1(x), head_weights, neighbors))
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self.dropout(self.attention(x, head_weights, neighbors)))
        return self.norm2(x + self.feed_forward(x))


class GRUCell(nn.GRUCell):
    """nn.GRUCell as two linear maps, so that it runs under autocast (aten's gru_cell refuses mixed dtypes).

    The state keeps the dtype it is given: under bfloat16 autocast only the products are rounded.
    """

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        reset_x, update_x, new_x = F.linear(x, self.weight_ih, self.bias_ih).chunk(3, dim=-1)
        reset_h, update_h, new_h = F.linear(state, self.weight_hh, self.bias_hh).chunk(3, dim=-1)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return new + torch.sigmoid(update_x + update_h) * (state - new)


class Router(nn.Module):
    """Two-speed recurrent router over attention heads: a slow cell sets the course, a fast one follows it.

    u = Linear(tokens' mean, or each token); slow = norm(GRU(u, slow)) on every T-th pass; fast =
    norm(GRU([u, slow], fast)) on every pass; logits = Linear(fast + mix(slow)); softmax at `temperature`.
    A step is one refinement pass, counted from 0 in each forward and never across calls: the states start at
    zero there too, and an output must not depend on what the model saw before. The slow cell updates when
    step % T == 0, so it runs on the first pass and is trained for any R; its recurrent weights (on a zero state
    at first) get a gradient once it runs twice, R > T.
    """

    def __init__(self, config: PlannerConfig):
        super().__init__()
        if config.d_model < 2:
            raise ValueError(f"d_model must be at least 2 (the router is half as wide), got {config.d_model}")
        d_control = config.d_model // 2
        self.T = config.T
        self.temperature = max(MIN_TEMPERATURE, math.exp(config.log_t))
        self.per_token = config.routing == "token"
        self.project = nn.Linear(config.d_model, d_control)
        self.slow = GRUCell(d_control, d_control)
        self.slow_norm = nn.LayerNorm(d_control)
        self.fast = GRUCell(2 * d_control, d_control)
        self.fast_norm = nn.LayerNorm(d_control)
        self.mix = nn.Linear(d_control, d_control, bias=False)
        self.logits = nn.Linear(d_control, config.n_heads)

    def parameters_in_order(self) -> list[Tensor]:
        """As poh_ext.ops.planner_inference wants them."""
        cells = [
            p
            for cell, norm in ((self.slow, self.slow_norm), (self.fast, self.fast_norm))
            for p in (cell.weight_ih, cell.bias_ih, cell.weight_hh, cell.bias_hh, norm.weight, norm.bias)
        ]
        return [self.project.weight, self.project.bias, *cells, self.mix.weight, self.logits.weight, self.logits.bias]

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor] | None, step: int):
        """Tokens [B, N, d] -> (weights [B, H] or [B, N, H], entropy [B] or [B, N] in nats, new state)."""
        u = self.project(tokens if self.per_token else tokens.mean(dim=1))
        if state is None:
            zero = u.new_zeros(u.shape, dtype=self.project.weight.dtype)
            state = zero, zero
        slow, fast = state
        if step % self.T == 0:
            slow = self.slow_norm(self.slow(u, slow))
        fast = self.fast_norm(self.fast(torch.cat([u, slow], dim=-1), fast))
        logits = self.logits(fast + self.mix(slow))
        weights, entropy = route(logits.float(), temperature=self.temperature)
        return weights, entropy, (slow, fast)
