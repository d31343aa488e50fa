"""The recurrent parts of the planners: transformer block, GRU cell, head router."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poh_ext.models.attention import Attention
from poh_ext.models.dropout import Dropout
from poh_ext.routing import route

__all__ = ["Block", "GRUCell", "Router"]


class Block(nn.Module):
    """Self-attention and a ReLU feed-forward with residuals; layer norm before ("pre") or after ("post").

    With norm="post" and ff_bias=True it is nn.TransformerEncoderLayer(activation="relu", batch_first=True).
    """

    def __init__(self, d_model: int, n_heads: int, d_ff: int, *, dropout: float, attention_dropout: float,
                 norm: str, ff_bias: bool, valid_heads: int = 0):
        super().__init__()
        self.norm = norm
        self.attention = Attention(d_model, n_heads, attention_dropout, valid_heads)
        self.expand = nn.Linear(d_model, d_ff, bias=ff_bias)
        self.contract = nn.Linear(d_ff, d_model, bias=ff_bias)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)

    def parameters_in_order(self) -> list[Tensor]:
        """As poh_ext.ops.planner_inference wants them, of a block whose heads all see neighbours."""
        a = self.attention
        bias = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
                   for layer in (self.expand, self.contract)]
        return [a.qkv.weight, a.qkv.bias, a.direction_bias, a.key_offset, a.value_offset, a.out.weight, a.out.bias,
                self.norm1.weight, self.norm1.bias, self.expand.weight, bias[0], self.contract.weight, bias[1],
                self.norm2.weight, self.norm2.bias]

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

    def __init__(self, d_model: int, n_heads: int, *, T: int, temperature: float, per_token: bool):
        super().__init__()
        d_control = d_model // 2
        self.T = T
        self.temperature = temperature
        self.per_token = per_token
        self.project = nn.Linear(d_model, d_control)
        self.slow = GRUCell(d_control, d_control)
        self.slow_norm = nn.LayerNorm(d_control)
        self.fast = GRUCell(2 * d_control, d_control)
        self.fast_norm = nn.LayerNorm(d_control)
        self.mix = nn.Linear(d_control, d_control, bias=False)
        self.logits = nn.Linear(d_control, n_heads)

    def parameters_in_order(self) -> list[Tensor]:
        """As poh_ext.ops.planner_inference wants them."""
        cells = [p for cell, norm in ((self.slow, self.slow_norm), (self.fast, self.fast_norm))
                 for p in (cell.weight_ih, cell.bias_ih, cell.weight_hh, cell.bias_hh, norm.weight, norm.bias)]
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
