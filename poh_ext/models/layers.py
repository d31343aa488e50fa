"""The parts both planners are made of: what a maze looks like to them, attention, block, head router."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poh_ext.models.dropout import Dropout, dropout_mask, has_fast_mask
from poh_ext.routing import route

__all__ = ["Attention", "Block", "CellEmbedding", "GRUCell", "MazeEncoder", "Router"]


class MazeEncoder(nn.Module):
    """One summary vector per maze from its raster (uint8 [B, 2H+1, 2W+1], 1 = wall) -> [B, d_model]."""

    def __init__(self, d_model: int):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.project = nn.Linear(32 * 4 * 4, d_model)

    def forward(self, raster: Tensor) -> Tensor:
        x = raster.unsqueeze(1).to(self.conv1.weight.dtype)
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.project(F.adaptive_avg_pool2d(x, (4, 4)).flatten(1))


class CellEmbedding(nn.Module):
    """Cell features, position, start and goal marks -> one token per cell, [B, N, d_model].

    cell_features=4 is the passage bits (up, down, left, right): the walls are visible. cell_features=1 is the
    published input, one number per cell: 0 where the cell can be entered, 1 where it is walled in on all four
    sides. An all-open grid gives zeros, and so does every perfect maze: this input does not show the walls.
    """

    def __init__(self, n_cells: int, d_model: int, cell_features: int, *, positions: bool = True):
        super().__init__()
        self.cell_features = cell_features
        self.cell = nn.Linear(cell_features, d_model)
        self.position = nn.Embedding(n_cells, d_model) if positions else None
        self.start = nn.Embedding(2, d_model)
        self.goal = nn.Embedding(2, d_model)

    def features(self, passages: Tensor) -> Tensor:
        """Passages uint8 [B, H, W] -> [B, N, cell_features], in the dtype of the weights."""
        bits = passages.flatten(1).unsqueeze(-1)
        if self.cell_features == 1:
            return (bits == 0).to(self.cell.weight.dtype)
        place = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=bits.device)
        return ((bits & place) != 0).to(self.cell.weight.dtype)

    def forward(self, passages: Tensor, start: Tensor, goal: Tensor) -> Tensor:
        features = self.features(passages)
        # One product does the cell, start and goal embeddings: a 2-row embedding looked up for every cell
        # would add its gradient row by row, on one thread.
        at_start = torch.zeros_like(features[..., :1]).scatter(1, start.view(-1, 1, 1), 1)
        at_goal = torch.zeros_like(at_start).scatter(1, goal.view(-1, 1, 1), 1)
        marks = torch.cat([features, 1 - at_start, at_start, 1 - at_goal, at_goal], dim=-1)
        weight = torch.cat([self.cell.weight, self.start.weight.t(), self.goal.weight.t()], dim=1)
        tokens = F.linear(marks, weight, self.cell.bias)
        return tokens if self.position is None else tokens + self.position.weight


class Attention(nn.Module):
    """Multi-head self-attention whose heads can be weighted one by one before the output projection.

    forward(x [B, N, d], head_weights [B, H] or [B, N, H] or None) -> [B, N, d]. With head_weights=None it is
    nn.MultiheadAttention(bias=True, batch_first=True), initialised the same way.
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, head_weights: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        if dropout > 0 and has_fast_mask(x):
            heads = _attend_with_dropout(q, k, v, dropout)
        else:
            heads = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        heads = heads.transpose(1, 2)  # [B, N, H, Dh]
        if head_weights is not None:
            if head_weights.dim() == 2:
                head_weights = head_weights.unsqueeze(1)
            heads = heads * head_weights.unsqueeze(-1).to(heads.dtype)
        return self.out(heads.flatten(2))


def _attend_with_dropout(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """scaled_dot_product_attention on the CPU, where torch has no fused kernel with dropout: 3x faster in bfloat16."""
    with torch.autocast(q.device.type, enabled=False):  # else softmax would widen a bfloat16 run to float32
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
        return (weights * dropout_mask(weights.shape, dropout, weights.dtype)) @ v


class Block(nn.Module):
    """Self-attention and a ReLU feed-forward with residuals; layer norm before ("pre") or after ("post").

    With norm="post" and ff_bias=True it is nn.TransformerEncoderLayer(activation="relu", batch_first=True).
    """

    def __init__(self, d_model: int, n_heads: int, d_ff: int, *, dropout: float, attention_dropout: float,
                 norm: str, ff_bias: bool):
        super().__init__()
        self.norm = norm
        self.attention = Attention(d_model, n_heads, attention_dropout)
        self.expand = nn.Linear(d_model, d_ff, bias=ff_bias)
        self.contract = nn.Linear(d_ff, d_model, bias=ff_bias)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.contract(self.dropout(F.relu(self.expand(x)))))

    def forward(self, x: Tensor, head_weights: Tensor | None = None) -> Tensor:
        if self.norm == "pre":
            x = x + self.dropout(self.attention(self.norm1(x), head_weights))
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self.dropout(self.attention(x, head_weights)))
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
