"""The recipe: what a small planner must be, and see in training, to solve mazes far larger than it was trained on."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from poh_ext.mazes import GENERATORS
from poh_ext.models import BaselinePlanner, PoHPlanner
from poh_ext.training.every_cell import EveryCellBatch, every_cell_batch

__all__ = ["PLANNERS", "Recipe"]

# One recurrent layer whose heads all see a cell and its neighbours; a bounded state (norm after each residual, the
# maze added at every pass) and nothing that belongs to a place, so that any size and any number of passes will do.
_COMMON = {
    "d_model": 48, "n_heads": 4, "d_ff": 96, "depth": 1, "cell_features": 6, "valid_heads": 4, "norm": "post",
    "head": "moves", "positions": "none", "reinject": True, "dropout": 0.0,
}
PLANNERS = {
    "baseline": (BaselinePlanner, {**_COMMON, "loops": 40}),
    "poh": (PoHPlanner, {**_COMMON, "R": 40, "residual": "none", "route_scale": 4.0}),
}


@dataclass(frozen=True)
class Recipe:
    """One training. The defaults are the recipe of the weights that come with the package.

    Attributes:
        planner: "baseline" (19,992 parameters) or "poh" (30,728).
        seed: of the first weights and of the mazes.
        steps: updates.
        batch_size: mazes of an update, new ones every time.
        sizes: lowest and highest side of the mazes, drawn for each step.
        passes: lowest and highest number of passes, drawn for each step.
        grad_passes: gradients through the last so many passes.
        lr, warmup_steps: see schedule.learning_rate.
        algorithm: one of poh_ext.GENERATORS.

    Raises:
        ValueError: a value is out of range; the field is named.
    """

    planner: str = "baseline"
    seed: int = 0
    steps: int = 3000
    batch_size: int = 32
    sizes: tuple[int, int] = (5, 12)
    passes: tuple[int, int] = (4, 40)
    grad_passes: int = 12
    lr: float = 2e-3
    warmup_steps: int = 50
    algorithm: str = "dfs"

    def __post_init__(self) -> None:
        for name, accepted in (("planner", PLANNERS), ("algorithm", GENERATORS)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}")
        lowest = {"seed": 0, "steps": 1, "batch_size": 1, "grad_passes": 1, "warmup_steps": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, least in (("sizes", 2), ("passes", 1)):  # a maze of one cell has no move to learn
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(f"{name} must be (lowest, highest) with {least} <= lowest <= highest, got {low, high}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive, got {self.lr}")

    def build(self) -> torch.nn.Module:
        """The planner with its first weights: a function of the seed; the global generator is left alone."""
        planner, options = PLANNERS[self.planner]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return planner(self.sizes[1], **options)

    def batch(self, step: int) -> EveryCellBatch:
        """What update `step` (from 0) is made of."""
        return every_cell_batch(step, seed=self.seed, batch_size=self.batch_size, sizes=self.sizes,
                                passes=self.passes, algorithm=self.algorithm)

    def record(self) -> dict:
        """Plain values, for a file; `from_record` reads them."""
        return {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}

    @classmethod
    def from_record(cls, record: dict) -> Recipe:
        """ValueError or TypeError if the record is not of a recipe."""
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in record.items()})
