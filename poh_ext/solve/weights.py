"""The trained planners that come with the package, and those that the benchmark programs save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from poh_ext.models.weights import load as load_planner
from poh_ext.solve.recipe import Recipe

__all__ = ["SHIPPED", "load"]

SHIPPED = Path(__file__).parent  # <name>.safetensors, built by `make solve`
NAMES = ("baseline", "poh")


def load(source: str | Path) -> tuple[torch.nn.Module, Recipe, dict[str, Any]]:
    """(planner in eval mode, what it was trained on, notes).

    Args:
        source: "baseline" (the looped one of `--preset solve`) or "poh" for the weights that come with the package, or
            the path of a file that `--save-weights` wrote.

    Raises:
        FileNotFoundError: no such file. ValueError: it is damaged, holds no weights of this format, or its notes do not
            say what it was trained on. ImportError: safetensors (the extra `experiments`) is missing.

    Example:
        >>> model, recipe, notes = load("poh")
        >>> table = model.policy(tasks.mazes, tasks.start, tasks.goal, passes=200)      # [B, N, 4], mazes of any size
    """
    path = SHIPPED / f"{source}.safetensors" if str(source) in NAMES else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --save-weights of the benchmark programs writes weights")
    model, notes = load_planner(path)
    try:
        return model, Recipe.of(notes), notes
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say what its planner was trained on: {error}") from error
