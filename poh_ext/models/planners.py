"""The two planners: a plain transformer and a Pointer-over-Heads transformer, over the same input and output.

Both read a batch of mazes, each with a start and a goal, and score the next move of every cell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from poh_ext.models.base import Planner
from poh_ext.models.blocks import Block, Router
from poh_ext.models.config import PlannerConfig
from poh_ext.models.inference import (
    check_override,
    fused_passes,
    kernel_serves,
    overridden,
    routers_of,
    routers_state,
    settled,
)

__all__ = ["PLANNERS", "BaselinePlanner", "PoHPlanner", "build"]

MIN_STACK_POSITIONS = 512  # as published: PoH's second table of positions has 512 rows whatever the maze


class BaselinePlanner(Planner):
    """Plain transformer encoder over the cells, post-norm by default (the blocks are nn.TransformerEncoder's).

    Args:
        size: side of the maze in cells, or (height, width).
        loops: passes over the same blocks. Each pass adds the embedded maze again (x <- blocks(x + maze), from x = 0).
            loops=1 is the plain encoder; loops=R has as many passes as PoHPlanner(R=R).
        options: d_model, n_heads, d_ff, depth, and any other field of PlannerConfig that is not PoH's alone. With
            head="moves" and positions="none" no parameter belongs to a cell, and the planner takes mazes of any size,
            whatever `size` is.

    Raises:
        TypeError, ValueError: an option is of the wrong type or out of range, or d_model is not divisible by n_heads.

    Examples:
        >>> model = BaselinePlanner(12, d_model=384, n_heads=6, d_ff=1536, depth=4)
        >>> logits = model(tasks.mazes, tasks.start, tasks.goal)      # [B, 144, 144]
    """

    def __init__(self, size: int | tuple[int, int], *, loops: int = 1, **options: Any):
        super().__init__(size, PlannerConfig.of("baseline", options, R=loops))
        self.blocks = nn.ModuleList(Block(self.config, ff_bias=True) for _ in range(self.config.depth))

    @property
    def loops(self) -> int:
        """The number of passes of a forward that is given no `passes`."""
        return self.passes

    def _pass(self, x: Tensor, tokens: Tensor, neighbors: Tensor | None, step: int, tolerance: float) -> Tensor:
        before = x
        if step and self.reinject:
            x = x + tokens
        for block in self.blocks:
            x = block(x, None, neighbors)
        return settled(before, x, tolerance)

    def _without_graph(
        self, x: Tensor, tokens: Tensor, neighbors: Tensor | None, step: int, after: Sequence[int], tolerance: float
    ) -> tuple[Tensor, list[Tensor]] | None:
        if not kernel_serves(self, x, tolerance):
            return None
        found = list(fused_passes(self, x, tokens, neighbors, step, after, tolerance)[0])
        return found[-1], found


class _State(NamedTuple):
    """The state that a PoH planner carries from pass to pass."""

    cells: Tensor
    routers: list
    held: list
    entropies: list  # [passes x blocks] in parts: one of a pass and block, or of all that a kernel ran
    weights: list  # likewise


class PoHPlanner(Planner):
    """Pointer-over-Heads (PoH) transformer: R refinement passes over one stack of blocks. In each block a two-speed
    recurrent router weighs the attention heads.

    A pass is h <- h + alpha (stack(h) - h). The trained scalar alpha starts at 0 (ReZero, arXiv 2003.04887), so the
    first gradient step moves alpha alone. The router resembles that of HRM (arXiv 2506.21734): see blocks.Router.

    Args:
        size: side of the maze in cells, or (height, width).
        options: d_model, n_heads, d_ff, depth, and any other field of PlannerConfig. R is the number of passes. With
            route_scale=1 (published) uniform routing over H heads leaves attention at 1/H of its strength.
            positions="none" also leaves out the stack's own position table; residual="none" with norm="post" keeps the
            state bounded after any number of passes.

    Raises:
        TypeError, ValueError: an option is of the wrong type or out of range, or d_model is not divisible by n_heads.

    Examples:
        >>> model = PoHPlanner(12, d_model=320, n_heads=5, d_ff=1280, depth=4)
        >>> logits = model(tasks.mazes, tasks.start, tasks.goal)      # [B, 144, 144]
        >>> loss = criterion(logits) + 5e-4 * model.routing_entropy()
    """

    has_router = True
    routers: nn.ModuleList

    def __init__(self, size: int | tuple[int, int], **options: Any):
        config = PlannerConfig.of("poh", options)
        super().__init__(size, config)
        self.per_token = config.routing == "token"
        self.route_scale = float(config.route_scale)
        self.alpha = nn.Parameter(torch.zeros(())) if config.residual == "rezero" else None
        self.positions = None
        if config.positions == "absolute":
            self.positions = nn.Embedding(max(MIN_STACK_POSITIONS, self.n_cells), config.d_model)
        self.blocks = nn.ModuleList(Block(config, ff_bias=False) for _ in range(config.depth))
        self.routers = nn.ModuleList(Router(config) for _ in range(config.depth))
        self.gains = nn.Parameter(torch.ones(config.depth, config.n_heads))
        self._entropy: Tensor | None = None
        self._weights: Tensor | None = None
        self._override: str | Tensor | None = None

    @property
    def R(self) -> int:
        """The number of passes of a forward that is given no `passes`."""
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

    def _without_graph(
        self, state: _State, tokens: Tensor, neighbors: Tensor | None, step: int, after: Sequence[int], tolerance: float
    ) -> tuple[_State, list[Tensor]] | None:
        published = self.alpha is not None or self.positions is not None
        if published or self.per_token or self._override is not None or not kernel_serves(self, state.cells, tolerance):
            return None
        packed = routers_of(self, self.gains * self.route_scale, state.routers, state.held, state.cells)
        found, ended, used = fused_passes(self, state.cells, tokens, neighbors, step, after, tolerance, packed)
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
        """Replace the routers' weights in every pass and block, within the context and in eval mode.

        The routers still run, on states that follow from the other weights. routing_weights() and routing_entropy()
        are those of the weights that were used. Gains and route_scale stay in force.

        Args:
            how: "uniform": all weights are 1 / n_heads. "shuffled": maze b of a batch gets the weights of maze b - 1 in
                the same pass and block, and the first maze those of the last; with routing="token", cell n gets those
                of the cell N // 2 before it in maze b - 1. A tensor [depth, n_heads]: these weights for every maze,
                pass and cell.

        Raises:
            TypeError: how is neither a str nor a tensor of a floating-point dtype.
            ValueError: the name is unknown; or the tensor has another shape, a weight below 0, or a sum over heads that
                is not 1. A forward raises it for "shuffled" with a batch of a single maze.
            RuntimeError: a forward runs in training mode.

        Examples:
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
        """Entropy of the last forward's routing weights in nats, averaged over passes, blocks and mazes (and cells with
        routing="token"). It is a scalar in the graph of that forward. Raises RuntimeError before the first forward."""
        if self._entropy is None:
            raise RuntimeError("routing_entropy() needs a forward pass first")
        return self._entropy

    def routing_weights(self) -> Tensor:
        """Routing weights of the last forward, detached, before gains and route_scale: [passes, depth, B, H], or
        [passes, depth, B, N, H] of the first R passes with routing="token". Raises RuntimeError before the first
        forward."""
        if self._weights is None:
            raise RuntimeError("routing_weights() needs a forward pass first")
        return self._weights

    def __getstate__(self):
        # What the last forward left behind belongs to no copy: a graph cannot be copied or pickled. Nor does what a
        # context of the original has set.
        return {**self.__dict__, "_entropy": None, "_weights": None, "_override": None}


PLANNERS = {"baseline": BaselinePlanner, "poh": PoHPlanner}  # by PlannerConfig.kind


def build(config: PlannerConfig, size: int | tuple[int, int]) -> Planner:
    """A new planner; its weights come from torch's default generator.

    Examples:
        >>> build(PlannerConfig(kind="poh", d_model=64, n_heads=4, d_ff=128, depth=1), 12).size
        (12, 12)
    """
    return PLANNERS[config.kind](size, **config.keywords())


# What help() and editors show: the constructors hand their options to PlannerConfig, which declares them.
BaselinePlanner.__signature__ = PlannerConfig.signature("baseline")
PoHPlanner.__signature__ = PlannerConfig.signature("poh")
