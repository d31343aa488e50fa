"""The two planners: a plain transformer and a Pointer-over-Heads transformer, over the same input and output.

Both read a batch of mazes with a start and a goal each, and answer for every cell where to go next.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn

from poh_ext.models.base import Planner, choice, positive
from poh_ext.models.layers import Block, Router
from poh_ext.models.routing_override import check_override, overridden
from poh_ext.models.without_graph import fused_passes, kernel_serves, routers_of, routers_state, settled

__all__ = ["BaselinePlanner", "PoHPlanner"]

MIN_STACK_POSITIONS = 512  # as published: PoH's second table of positions has 512 rows whatever the maze
MIN_TEMPERATURE = 0.7


class BaselinePlanner(Planner):
    """Plain post-norm transformer encoder over the cells (the blocks equal nn.TransformerEncoder's).

    Args:
        size: side of the maze in cells, or (height, width).
        d_model, n_heads, d_ff, depth: width, attention heads, feed-forward width, number of blocks.
        loops: passes over the same blocks; before each the embedded maze is added again (x <- blocks(x + maze),
            from x = 0), so loops=1 is the plain encoder and loops=R matches the compute of PoHPlanner(R=R).
        cell_features: 4 = passage bits (walls visible), 6 = start and goal among them, 1 = published input (see
            CellEmbedding).
        maze_enc: add a CNN summary of the raster to every token.
        dropout: after each sublayer and within the feed-forward.
        attention_dropout: of the attention weights; None: the same as dropout, as published. 0 lets
            scaled_dot_product_attention use its fused CPU kernel while training.
        valid_heads: so many of the heads see only a cell and its passable neighbours (see Attention).
        norm: layer norm "post" each residual (published; the state stays bounded however many passes) or "pre".
        head: policy logits for all N "cells" (published), or for the four "moves".
        positions: "absolute" (a learned vector per cell, published) or "none". With "none" and head="moves" no
            parameter belongs to a cell, and mazes of any size can be planned, whatever `size` is.
        reinject: False: only the first pass sees the embedded maze.

    Example:
        >>> model = BaselinePlanner(12, d_model=384, n_heads=6, d_ff=1536, depth=4)
        >>> logits = model(tasks.mazes, tasks.start, tasks.goal)      # [B, 144, 144]
    """

    def __init__(self, size, *, d_model, n_heads, d_ff, depth, loops=1, cell_features=4, maze_enc=False, dropout=0.1,
                 attention_dropout=None, valid_heads=0, norm="post", head="cells", positions="absolute",
                 reinject=True):
        positive(loops=loops)
        super().__init__(size, d_model=d_model, n_heads=n_heads, d_ff=d_ff, depth=depth, passes=loops,
                         cell_features=cell_features, maze_enc=maze_enc, dropout=dropout,
                         attention_dropout=attention_dropout, valid_heads=valid_heads, norm=norm, head=head,
                         positions=positions, reinject=reinject)
        self.blocks = nn.ModuleList(
            Block(d_model, n_heads, d_ff, ff_bias=True, **self.block_options) for _ in range(depth)
        )

    @property
    def loops(self) -> int:
        """Passes of a forward that names no other number."""
        return self.passes

    def _begin(self, tokens: Tensor) -> Tensor:
        return tokens

    def _pass(self, x: Tensor, tokens: Tensor, neighbors: Tensor | None, step: int, tolerance: float) -> Tensor:
        before = x
        if step and self.reinject:
            x = x + tokens
        for block in self.blocks:
            x = block(x, None, neighbors)
        return settled(before, x, tolerance)

    def _without_graph(self, x: Tensor, tokens: Tensor, neighbors: Tensor | None, step: int, after: Sequence[int],
                       tolerance: float) -> tuple[Tensor, list[Tensor]] | None:
        if not kernel_serves(self, x, tolerance):
            return None
        found = list(fused_passes(self, x, tokens, neighbors, step, after, tolerance)[0])
        return found[-1], found

    def _cells(self, state: Tensor) -> Tensor:
        return state

    def _end(self, state: Tensor) -> None:
        pass


class _State(NamedTuple):
    """What a PoH planner carries from pass to pass."""

    cells: Tensor
    routers: list
    held: list
    entropies: list  # [passes x blocks] in parts: one of a pass and block, or of all that a kernel ran
    weights: list  # likewise


class PoHPlanner(Planner):
    """Pointer-over-Heads transformer: R refinement passes over one stack of pre-norm blocks, in each of which a
    two-speed recurrent router weighs the attention heads.

    h <- h + alpha (stack(h) - h), with alpha a trained scalar that starts at 0 (ReZero, arXiv 2003.04887), so the
    first gradient step moves alpha alone; the router is HRM-like (arXiv 2506.21734), see layers.Router.

    Args:
        size, d_model, n_heads, d_ff, depth, cell_features, maze_enc, dropout, attention_dropout, valid_heads, head,
            positions: as BaselinePlanner. positions="none" leaves out the stack's own table too.
        norm: layer norm "pre" each sublayer (published) or "post" each residual.
        reinject: True: the embedded maze is added before each pass but the first.
        residual: between passes, "rezero" (published) or "none": h <- stack(h), bounded with norm="post".
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

    def __init__(self, size, *, d_model, n_heads, d_ff, depth, R=4, T=4, cell_features=4, maze_enc=False, dropout=0.1,
                 attention_dropout=None, valid_heads=0, norm="pre", head="cells", positions="absolute",
                 reinject=False, residual="rezero", routing="pooled", route_scale=1.0, log_t=2.0):
        positive(R=R, T=T)
        super().__init__(size, d_model=d_model, n_heads=n_heads, d_ff=d_ff, depth=depth, passes=R,
                         cell_features=cell_features, maze_enc=maze_enc, dropout=dropout,
                         attention_dropout=attention_dropout, valid_heads=valid_heads, norm=norm, head=head,
                         positions=positions, reinject=reinject)
        if d_model < 2:
            raise ValueError(f"d_model must be at least 2 (the router is half as wide), got {d_model}")
        choice("residual", residual, "rezero", "none")
        choice("routing", routing, "pooled", "token")
        for name, value in (("route_scale", route_scale), ("log_t", log_t)):
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        if route_scale <= 0:
            raise ValueError(f"route_scale must be positive, got {route_scale}")
        self.per_token = routing == "token"
        self.route_scale = float(route_scale)
        self.alpha = nn.Parameter(torch.zeros(())) if residual == "rezero" else None
        absolute = positions == "absolute"
        self.positions = nn.Embedding(max(MIN_STACK_POSITIONS, self.n_cells), d_model) if absolute else None
        self.blocks = nn.ModuleList(
            Block(d_model, n_heads, d_ff, ff_bias=False, **self.block_options) for _ in range(depth)
        )
        self.routers = nn.ModuleList(
            Router(d_model, n_heads, T=T, temperature=max(MIN_TEMPERATURE, math.exp(log_t)),
                   per_token=self.per_token)
            for _ in range(depth)
        )
        self.gains = nn.Parameter(torch.ones(depth, n_heads))
        self._entropy = self._weights = self._override = None

    @property
    def R(self) -> int:
        """Passes of a forward that names no other number."""
        return self.passes

    def _begin(self, tokens: Tensor) -> _State:
        self._entropy = self._weights = None  # frees the graph of the last forward before building this one
        if self._override is not None and self.training:
            raise RuntimeError("the routing is overridden, which is for evaluation: call eval() first")
        return _State(tokens, [None] * len(self.blocks), [None] * len(self.blocks), [], [])

    def _pass(self, state: _State, tokens: Tensor, neighbors: Tensor | None, step: int, tolerance: float) -> _State:
        x, routers, held = state.cells, list(state.routers), list(state.held)
        refined = x if self.positions is None else x + self.positions.weight[: self.n_cells]
        if step and self.reinject:
            refined = refined + tokens
        scale = self.gains * self.route_scale
        for i, (block, router) in enumerate(zip(self.blocks, self.routers, strict=True)):
            routed, entropy, routers[i] = router(refined, routers[i], step)
            if self._override is not None:
                routed, entropy = overridden(self._override, i, routed, entropy)
            if tolerance > 0 and held[i] is not None:
                routed = settled(held[i], routed, tolerance)
                entropy = torch.special.entr(routed).sum(-1)
            held[i] = routed.detach()
            refined = block(refined, routed * scale[i], neighbors)
            state.entropies.append(entropy.mean()[None])
            # Per token they are as large as the state itself: hundreds of passes at test must not add them up.
            if not self.per_token or step < self.R:
                state.weights.append(held[i][None])
        new = refined if self.alpha is None else torch.lerp(x, refined, self.alpha)
        return _State(settled(x, new, tolerance), routers, held, state.entropies, state.weights)

    def _without_graph(self, state: _State, tokens: Tensor, neighbors: Tensor | None, step: int, after: Sequence[int],
                       tolerance: float) -> tuple[_State, list[Tensor]] | None:
        published = self.alpha is not None or self.positions is not None
        if published or self.per_token or self._override is not None or not kernel_serves(self, state.cells, tolerance):
            return None
        routers = routers_of(self, self.gains * self.route_scale, state.routers, state.held, state.cells)
        found, ended, used = fused_passes(self, state.cells, tokens, neighbors, step, after, tolerance, routers)
        used = used.flatten(0, 1)
        entropies = torch.special.entr(used).sum(-1).mean(-1)
        routers, held = routers_state(ended, used.shape[-1])
        end = _State(found[-1], routers, held, [*state.entropies, entropies], [*state.weights, used])
        return end, list(found)

    def _cells(self, state: _State) -> Tensor:
        return state.cells

    def _shifted(self, state: _State, by: Tensor) -> _State:
        return state._replace(cells=state.cells + by)

    def _end(self, state: _State) -> None:
        self._entropy = torch.cat(state.entropies).mean()
        self._weights = torch.cat(state.weights).unflatten(0, (-1, len(self.blocks)))

    @contextlib.contextmanager
    def override_routing(self, how: str | Tensor) -> Iterator[None]:
        """Within the context, in eval mode, other weights stand in for those of the routers, in every pass and block.

        The routers run as ever, on what the planner makes of the other weights; routing_weights() and
        routing_entropy() are of the weights that were used. Gain and scale stay.

        Args:
            how: "uniform": 1 / n_heads each. "shuffled": of the same pass and block, but of another maze: maze b of
                a batch gets those of maze b - 1, the first those of the last; with routing="token", cell n gets those
                of the cell N // 2 before it, in maze b - 1. Or a tensor [depth, n_heads]: the same for every maze,
                pass and cell.

        Raises:
            TypeError: how is neither str nor a tensor of a floating-point dtype.
            ValueError: an unknown name; weights of another shape, below 0, or whose sum over heads is not 1; in a
                forward, a batch of a single maze for "shuffled".
            RuntimeError: in a forward in training mode.

        Example:
            >>> with model.eval().override_routing("uniform"):
            ...     table = model.policy(tasks.mazes, tasks.start, tasks.goal)
        """
        check_override(how, *self.gains.shape)
        before, self._override = self._override, how
        try:
            yield
        finally:
            self._override = before

    def routing_entropy(self) -> Tensor:
        """Entropy of the routing weights of the last forward in nats, averaged over passes, blocks and mazes
        (and cells, with routing="token"): a scalar in that forward's graph. RuntimeError before any forward."""
        if self._entropy is None:
            raise RuntimeError("routing_entropy() needs a forward pass first")
        return self._entropy

    def routing_weights(self) -> Tensor:
        """Routing weights of the last forward, detached, before gain and scale: [passes, depth, B, H], or
        [passes, depth, B, N, H] with routing="token" (of the first R passes). RuntimeError before any forward."""
        if self._weights is None:
            raise RuntimeError("routing_weights() needs a forward pass first")
        return self._weights

    def __getstate__(self):
        # What the last forward left behind belongs to no copy: a graph cannot be copied or pickled. Nor does what a
        # context of the original has set.
        return {**self.__dict__, "_entropy": None, "_weights": None, "_override": None}
