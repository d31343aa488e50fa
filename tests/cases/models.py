"""Small planners of the published shape, and random mazes for them."""

from dataclasses import dataclass

import torch
from torch import nn

from poh_ext.models import BaselinePlanner, PoHPlanner

SHAPE = {"d_model": 16, "n_heads": 4, "d_ff": 24, "depth": 2}
VARIANTS = {
    "baseline": (BaselinePlanner, {}),
    "looped": (BaselinePlanner, {"loops": 3}),
    "pooled": (PoHPlanner, {"R": 3, "T": 2}),
    "token": (PoHPlanner, {"R": 3, "T": 2, "routing": "token", "route_scale": 4}),
}


@dataclass
class Mazes:
    """The part of MazeBatch that planners read."""

    passages: torch.Tensor

    def raster(self):
        b, h, w = self.passages.shape
        grid = torch.ones(b, 2 * h + 1, 2 * w + 1, dtype=torch.uint8)
        grid[:, 1::2, 1::2] = 0
        grid[:, 2::2, 1::2] = 1 - (self.passages >> 1 & 1)
        grid[:, 1::2, 2::2] = 1 - (self.passages >> 3 & 1)
        return grid


def random_mazes(n, size, seed=0):
    h, w = size if isinstance(size, tuple) else (size, size)
    generator = torch.Generator().manual_seed(seed)
    down = torch.rand(n, h, w, generator=generator) < 0.6
    right = torch.rand(n, h, w, generator=generator) < 0.6
    down[:, -1], right[:, :, -1] = False, False
    up, left = down.roll(1, 1), right.roll(1, 2)
    bits = up * 1 + down * 2 + left * 4 + right * 8
    cells = torch.randint(0, h * w, (2, n), generator=generator)
    return Mazes(bits.to(torch.uint8)), cells[0], cells[1]


def make(variant, size=(3, 4), *, alpha=0.7, seed=0, **options):
    """A model in eval mode; a PoH planner with its ReZero scalar set, so that its stack takes part."""
    cls, own = VARIANTS[variant]
    torch.manual_seed(seed)
    model = cls(size, **SHAPE, **{"cell_features": 4, **own, **options}).eval()
    if isinstance(model, PoHPlanner):
        nn.init.constant_(model.alpha, alpha)
    return model
