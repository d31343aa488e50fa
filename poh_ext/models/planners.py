"""The two planners: a plain transformer and a Pointer-over-Heads transformer, over the same input and output.

Both read a batch of mazes with a start and a goal each, and answer for every cell where to go next.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from poh_ext.models.layers import Block, CellEmbedding, MazeEncoder, Router

__all__ = ["BaselinePlanner", "PoHPlanner"]

MIN_STACK_POSITIONS = 512  # as published: PoH's second table of positions has 512 rows whatever the maze
MIN_TEMPERATURE = 0.7


def _positive(**values) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _probability(**values) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")


def grid_shape(size: int | tuple[int, int]) -> tuple[int, int]:
    """An int side or a pair (height, width) -> (height, width), checked."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"size must be an int or a pair (height, width), got {size!r}")
    _positive(**{"size" if pair[0] == pair[1] else "size (height)": pair[0], "size (width)": pair[1]})
    return int(pair[0]), int(pair[1])


class _Planner(nn.Module):
    """What both planners share: checks, the embedding of a maze, the policy head."""

    def __init__(self, size, *, d_model, n_heads, d_ff, depth, cell_features, maze_enc, dropout):
        super().__init__()
        height, width = grid_shape(size)
        _positive(d_model=d_model, n_heads=n_heads, d_ff=d_ff, depth=depth)
        _probability(dropout=dropout)
        if d_model % n_heads:
            raise ValueError(f"d_model must be divisible by n_heads, got d_model={d_model}, n_heads={n_heads}")
        if cell_features not in (1, 4):
            raise ValueError(f"cell_features must be 1 (published) or 4 (passage bits), got {cell_features!r}")
        self.size = (height, width)
        self.n_cells = height * width
        self.embed = CellEmbedding(self.n_cells, d_model, cell_features)
        self.encoder = MazeEncoder(d_model) if maze_enc else None
        self.head = nn.Linear(d_model, self.n_cells)

    def _refine(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _check(self, mazes, start: Tensor, goal: Tensor) -> None:
        passages = getattr(mazes, "passages", None)
        if not isinstance(passages, Tensor):
            raise TypeError(f"mazes must be a MazeBatch, got {type(mazes).__name__}")
        if passages.dim() != 3 or tuple(passages.shape[1:]) != self.size:
            raise ValueError(
                f"mazes must be of the model's size {self.size[0]}x{self.size[1]}, "
                f"got passages of shape {tuple(passages.shape)}"
            )
        if passages.device != self.head.weight.device:
            raise ValueError(f"mazes are on {passages.device}, the model is on {self.head.weight.device}")
        for name, cells in (("start", start), ("goal", goal)):
            if not isinstance(cells, Tensor) or cells.dtype != torch.int64:
                given = cells.dtype if isinstance(cells, Tensor) else type(cells).__name__
                raise TypeError(f"{name} must be an int64 tensor, got {given}")
            if cells.shape != passages.shape[:1]:
                raise ValueError(f"{name} must have shape ({len(passages)},), got {tuple(cells.shape)}")
            if cells.device != passages.device:
                raise ValueError(f"{name} is on {cells.device}, mazes are on {passages.device}")
            # Elsewhere the scatter in CellEmbedding checks the range on the device, without a synchronisation.
            if cells.device.type == "cpu" and not torch.compiler.is_compiling():
                wrong = ((cells < 0) | (cells >= self.n_cells)).nonzero()
                if len(wrong):
                    i = int(wrong[0])
                    raise IndexError(f"{name}[{i}] is {int(cells[i])}, but cells are 0 to {self.n_cells - 1}")

    def hidden(self, mazes, start: Tensor, goal: Tensor) -> Tensor:
        """State of every cell before the policy head, [B, N, d_model]: the `hidden` of the linear loss,
        whose `weight` and `bias` are `model.head.weight` and `model.head.bias`."""
        self._check(mazes, start, goal)
        x = self.embed(mazes.passages, start, goal)
        if self.encoder is not None:
            x = x + self.encoder(mazes.raster()).unsqueeze(1)
        return self._refine(x)

    def forward(self, mazes, start: Tensor, goal: Tensor) -> Tensor:
        """Policy logits [B, N, N]: entry [b, i, j] scores going from cell i to cell j.

        Args:
            mazes: MazeBatch of B mazes of the model's size, on the model's device.
            start, goal: int64 [B], cell numbers in row-major order.

        Raises:
            TypeError: mazes is no MazeBatch; start or goal is not an int64 tensor.
            ValueError: wrong size, shape or device.
            IndexError: a start or goal outside the grid (named with its place).
        """
        return self.head(self.hidden(mazes, start, goal))

    def policy(self, mazes, start: Tensor, goal: Tensor) -> Tensor:
        """Move logits [B, N, 4] (up, down, left, right), -inf where walled: the columns of `forward` at the
        passable neighbours, without computing the other N - 4 columns."""
        x = self.hidden(mazes, start, goal)
        width = self.size[1]
        cell = torch.arange(self.n_cells, device=x.device)
        # Where a step leaves the grid the column is that of some other cell: a wall, masked below.
        columns = (cell.unsqueeze(1) + torch.tensor([-width, width, -1, 1], device=x.device)) % self.n_cells
        # The four columns of a cell are the same in all mazes, so this is one small product per cell.
        moves = torch.matmul(x.transpose(0, 1), self.head.weight[columns].transpose(1, 2)).transpose(0, 1)
        moves = moves + self.head.bias[columns].to(moves.dtype)
        bits = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=x.device)
        return moves.masked_fill((mazes.passages.flatten(1).unsqueeze(-1) & bits) == 0, -math.inf)


class BaselinePlanner(_Planner):
    """Plain post-norm transformer encoder over the cells (the blocks equal nn.TransformerEncoder's).

    Args:
        size: side of the maze in cells, or (height, width).
        d_model, n_heads, d_ff, depth: width, attention heads, feed-forward width, number of blocks.
        loops: passes over the same blocks; before each the embedded maze is added again (x <- blocks(x + maze),
            from x = 0), so loops=1 is the plain encoder and loops=R matches the compute of PoHPlanner(R=R).
        cell_features: 4 = passage bits (walls visible), 1 = published input (see CellEmbedding).
        maze_enc: add a CNN summary of the raster to every token.
        dropout: after each sublayer and within the feed-forward.
        attention_dropout: of the attention weights; None: the same as dropout, as published. 0 lets
            scaled_dot_product_attention use its fused CPU kernel while training.

    Example:
        >>> model = BaselinePlanner(12, d_model=384, n_heads=6, d_ff=1536, depth=4)
        >>> logits = model(tasks.mazes, tasks.start, tasks.goal)      # [B, 144, 144]
    """

    def __init__(self, size, *, d_model, n_heads, d_ff, depth, loops=1, cell_features=4, maze_enc=False,
                 dropout=0.1, attention_dropout=None):
        super().__init__(size, d_model=d_model, n_heads=n_heads, d_ff=d_ff, depth=depth,
                         cell_features=cell_features, maze_enc=maze_enc, dropout=dropout)
        _positive(loops=loops)
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        _probability(attention_dropout=attention_dropout)
        self.loops = loops
        self.blocks = nn.ModuleList(
            Block(d_model, n_heads, d_ff, dropout=dropout, attention_dropout=attention_dropout,
                  norm="post", ff_bias=True)
            for _ in range(depth)
        )

    def _refine(self, x: Tensor) -> Tensor:
        maze = x
        for loop in range(self.loops):
            if loop:
                x = x + maze
            for block in self.blocks:
                x = block(x)
        return x


class PoHPlanner(_Planner):
    """Pointer-over-Heads transformer: R refinement passes over one stack of pre-norm blocks, in each of which a
    two-speed recurrent router weighs the attention heads.

    h <- h + alpha (stack(h) - h), with alpha a trained scalar that starts at 0 (ReZero, arXiv 2003.04887), so the
    first gradient step moves alpha alone; the router is HRM-like (arXiv 2506.21734), see layers.Router.

    Args:
        size, d_model, n_heads, d_ff, depth, cell_features, maze_enc, dropout, attention_dropout: as
            BaselinePlanner.
        R: refinement passes.
        T: the router's slow cell updates on passes 0, T, 2T, ...
        routing: "pooled" (published: one weight per head and maze) or "token" (per head and cell).
        route_scale: factor on the routing weights. 1 is published: uniform routing over H heads then leaves
            attention at 1/H of its strength; n_heads keeps it at full strength.
        log_t: the softmax temperature of the routers is max(0.7, exp(log_t)); not trained.

    Example:
        >>> model = PoHPlanner(12, d_model=320, n_heads=5, d_ff=1280, depth=4)
        >>> logits = model(tasks.mazes, tasks.start, tasks.goal)      # [B, 144, 144]
        >>> loss = criterion(logits) + 5e-4 * model.routing_entropy()
    """

    def __init__(self, size, *, d_model, n_heads, d_ff, depth, R=4, T=4, cell_features=4, maze_enc=False,
                 dropout=0.1, attention_dropout=None, routing="pooled", route_scale=1.0, log_t=2.0):
        super().__init__(size, d_model=d_model, n_heads=n_heads, d_ff=d_ff, depth=depth,
                         cell_features=cell_features, maze_enc=maze_enc, dropout=dropout)
        _positive(R=R, T=T)
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        _probability(attention_dropout=attention_dropout)
        if d_model < 2:
            raise ValueError(f"d_model must be at least 2 (the router is half as wide), got {d_model}")
        if routing not in ("pooled", "token"):
            raise ValueError(f"routing must be 'pooled' or 'token', got {routing!r}")
        for name, value in (("route_scale", route_scale), ("log_t", log_t)):
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        if route_scale <= 0:
            raise ValueError(f"route_scale must be positive, got {route_scale}")
        self.R = R
        self.route_scale = float(route_scale)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.positions = nn.Embedding(max(MIN_STACK_POSITIONS, self.n_cells), d_model)
        self.blocks = nn.ModuleList(
            Block(d_model, n_heads, d_ff, dropout=dropout, attention_dropout=attention_dropout,
                  norm="pre", ff_bias=False)
            for _ in range(depth)
        )
        self.routers = nn.ModuleList(
            Router(d_model, n_heads, T=T, temperature=max(MIN_TEMPERATURE, math.exp(log_t)),
                   per_token=routing == "token")
            for _ in range(depth)
        )
        self.gains = nn.Parameter(torch.ones(depth, n_heads))
        self._entropy = self._weights = None

    def _refine(self, x: Tensor) -> Tensor:
        self._entropy = self._weights = None  # frees the graph of the last forward before building this one
        positions = self.positions.weight[: self.n_cells]
        scale = self.gains * self.route_scale
        states = [None] * len(self.blocks)
        entropies, weights = [], []
        for step in range(self.R):
            refined = x + positions
            for i, (block, router) in enumerate(zip(self.blocks, self.routers, strict=True)):
                routed, entropy, states[i] = router(refined, states[i], step)
                refined = block(refined, routed * scale[i])
                entropies.append(entropy)
                weights.append(routed.detach())
            x = torch.lerp(x, refined, self.alpha)
        self._entropy = torch.stack(entropies).mean()
        self._weights = torch.stack(weights).unflatten(0, (self.R, len(self.blocks)))
        return x

    def routing_entropy(self) -> Tensor:
        """Entropy of the routing weights of the last forward in nats, averaged over passes, blocks and mazes
        (and cells, with routing="token"): a scalar in that forward's graph. RuntimeError before any forward."""
        if self._entropy is None:
            raise RuntimeError("routing_entropy() needs a forward pass first")
        return self._entropy

    def routing_weights(self) -> Tensor:
        """Routing weights of the last forward, detached, before gain and scale: [R, depth, B, H], or
        [R, depth, B, N, H] with routing="token". RuntimeError before any forward."""
        if self._weights is None:
            raise RuntimeError("routing_weights() needs a forward pass first")
        return self._weights

    def __getstate__(self):
        # What the last forward left behind belongs to no copy: a graph cannot be copied or pickled.
        return {**self.__dict__, "_entropy": None, "_weights": None}
