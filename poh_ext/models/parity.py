"""Comparable planners: parameter counts, shapes of equal size, and the arithmetic for a maze.

Nothing here allocates a model; counts come from the meta device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from numbers import Real

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from poh_ext.models.blocks import SLOTS, Attention
from poh_ext.models.config import PlannerShape
from poh_ext.models.planners import BaselinePlanner, PoHPlanner
from poh_ext.ops.neighbor_attention import neighbor_attention_flop

__all__ = ["MODES", "RULES", "SCALES", "SHAPES", "OnlyShapes", "gflop_per_maze", "match_width", "parameter_count"]

MODES = ("depth", "width", "none")
RULES = ("scale", "heads")
SCALES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


SHAPES = {
    "12x12": PlannerShape(384, 6, 1536, 4),
    "tiny": PlannerShape(128, 4, 512, 2),
    "small": PlannerShape(256, 4, 1024, 3),
    "medium": PlannerShape(512, 8, 2048, 4),
    "large": PlannerShape(768, 12, 3072, 6),
    "xl": PlannerShape(1024, 16, 4096, 8),
}
"""Shapes of the baselines in the two benchmarks, by name."""


def parameter_count(planner: type[nn.Module] | nn.Module, *args, **kwargs) -> int:
    """The number of trained parameters of a model, or of a class built from the arguments on the meta device.

    Args:
        planner: a model, or a planner class.
        args, kwargs: the arguments of the class, for example size and options; none for a model.

    Raises:
        TypeError: arguments are given with a model.

    Examples:
        >>> parameter_count(BaselinePlanner, 12, **SHAPES["12x12"]._asdict(), cell_features=1)
        7210896
    """
    if isinstance(planner, type):
        with torch.device("meta"):
            planner = planner(*args, **kwargs)
    elif args or kwargs:
        raise TypeError("parameter_count takes options only with a class, not with a model")
    return sum(p.numel() for p in planner.parameters() if p.requires_grad)


def _candidates(shape: PlannerShape, mode: str, rule: str, scales):
    """Shapes to try, largest first."""
    if mode == "none":
        yield shape
    elif mode == "width":
        for depth in range(shape.depth, 0, -1):
            yield shape._replace(depth=depth)
    elif rule == "heads":
        d_head = shape.d_model // shape.n_heads
        for heads in range(shape.n_heads, 0, -1):
            yield PlannerShape(heads * d_head, heads, shape.d_ff * heads // shape.n_heads, shape.depth)
    else:
        for scale in scales:
            d_model = int(shape.d_model * scale) // shape.n_heads * shape.n_heads
            if d_model:
                yield PlannerShape(d_model, shape.n_heads, int(shape.d_ff * scale), shape.depth)


def match_width(
    size, shape: PlannerShape, *, mode: str = "depth", rule: str = "scale", scales=SCALES, limit: float = 1.1, **options
) -> PlannerShape:
    """The shape of a PoHPlanner that has about as many parameters as the BaselinePlanner of `shape`.

    It is the first candidate whose parameters are at most `limit` times the baseline's.

    Args:
        size: side of the maze in cells, or (height, width).
        shape: the baseline's (d_model, n_heads, d_ff, depth).
        mode: "depth" keeps the depth and narrows the planner. "width" keeps the width and drops blocks. "none" returns
            `shape`.
        rule: the way in which "depth" narrows. "scale" (scaling benchmark) multiplies d_model and d_ff by each of
            `scales` and rounds down, d_model to a multiple of n_heads. "heads" (12x12 benchmark) drops heads of the
            same width one by one, and d_ff in proportion: 6, 5, 4, ... heads of 64 at d_model=384.
        scales: factors to try, in order.
        limit: the largest accepted ratio of parameters, PoH to baseline.
        options: fields of PlannerConfig that both planners have, for the count (cell_features, maze_enc).

    Raises:
        ValueError: mode or rule is unknown, limit is not positive, or no candidate is within the limit.

    Examples:
        >>> match_width(12, SHAPES["12x12"], rule="heads")
        PlannerShape(d_model=320, n_heads=5, d_ff=1280, depth=4)
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if isinstance(limit, bool) or not isinstance(limit, Real) or not limit > 0:
        raise ValueError(f"limit must be a positive number, got {limit!r}")
    shape = PlannerShape(*shape)
    if mode == "none":
        return shape
    baseline = parameter_count(BaselinePlanner, size, **shape._asdict(), **options)
    least = None
    for candidate in _candidates(shape, mode, rule, scales):
        params = parameter_count(PoHPlanner, size, **candidate._asdict(), **options)
        if params <= limit * baseline:
            return candidate
        least = params if least is None else min(least, params)
    tried = "no candidate was tried" if least is None else f"the smallest tried has {least:,}"
    raise ValueError(
        f"no PoH planner with at most {limit} x the baseline's {baseline:,} parameters "
        f"(mode {mode!r}, rule {rule!r}): {tried}"
    )


class OnlyShapes:
    """Stands in for a MazeBatch of so many mazes where only shapes matter."""

    def __init__(self, batch: int, height: int, width: int, device: torch.device | str):
        self.passages = torch.zeros(batch, height, width, dtype=torch.uint8, device=device)

    def raster(self) -> torch.Tensor:
        batch, height, width = self.passages.shape
        return torch.zeros(batch, 2 * height + 1, 2 * width + 1, dtype=torch.uint8, device=self.passages.device)


@contextlib.contextmanager
def _counting_valid_heads(model: nn.Module) -> Iterator[list[int]]:
    """FLOP of each call of the heads that see neighbours. On the meta device these are gathers and sums, of which
    FlopCounterMode counts nothing; so it would be wrong to add them where it sees the op itself."""
    found: list[int] = []

    def count(attention: Attention, args: tuple, output: torch.Tensor) -> None:
        batch, n_cells, d_model = output.shape
        d_head = d_model // attention.n_heads
        found.append(neighbor_attention_flop(batch, attention.valid_heads, n_cells, d_head, SLOTS))

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, Attention) and m.valid_heads]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def gflop_per_maze(model: BaselinePlanner | PoHPlanner, passes: int | None = None) -> float:
    """The arithmetic of a forward on one maze, in GFLOP (a multiply-add counts as 2 FLOP).

    Counted are matrix products, convolutions and the products of attention, over all passes. A head that sees only
    neighbours has five slots for each cell, walled or not. The model is traced on the meta device, which takes no
    arithmetic and no memory; the count is the same for every device and backend. A training step takes about three
    times as much for each maze.

    Args:
        model: a BaselinePlanner or PoHPlanner on any device.
        passes: the number of passes. None: the model's own number.

    Examples:
        >>> round(gflop_per_maze(BaselinePlanner(12, **SHAPES["12x12"]._asdict())), 2)
        2.18
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
    cell = torch.zeros(1, dtype=torch.int64, device="meta")
    kept = dict(model.__dict__)
    try:
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), _counting_valid_heads(model) as valid, counter:
            functional_call(model, tensors, (OnlyShapes(1, *model.size, "meta"), cell, cell), {"passes": passes})
    finally:
        model.__dict__.update(kept)  # the routing entropy and weights of the model's own last forward
    return (counter.get_total_flops() + sum(valid)) / 1e9
