"""Trained weights of the recipe: a small file of tensors and plain values (`torch.load(path, weights_only=True)`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from poh_ext.report.results import write_atomically
from poh_ext.solve.recipe import Recipe
from poh_ext.training.checkpoint import read_archive

__all__ = ["SHIPPED", "load", "save"]

FORMAT = "poh_ext solve weights"
VERSION = 1
SHIPPED = Path(__file__).parent  # <planner>.pt, built by `make solve`


def save(path: Path, model: torch.nn.Module, recipe: Recipe, notes: dict[str, Any]) -> Path:
    """Write the weights with the recipe they come from; `notes` are plain values (seconds, accuracy, versions)."""
    record = {"format": FORMAT, "version": VERSION, "recipe": recipe.record(), "notes": notes,
              "model": model.state_dict()}
    return write_atomically(path, lambda file: torch.save(record, file))


def load(source: str | Path) -> tuple[torch.nn.Module, Recipe, dict[str, Any]]:
    """(planner in eval mode, its recipe, notes).

    Args:
        source: "baseline" or "poh" for the weights that come with the package, or the path of a file.

    Raises:
        FileNotFoundError: no such file. ValueError: it is damaged or holds no weights of this format.

    Example:
        >>> model, recipe, notes = load("poh")
        >>> table = model.policy(tasks.mazes, tasks.start, tasks.goal, passes=200)      # [B, N, 4], mazes of any size
    """
    path = SHIPPED / f"{source}.pt" if str(source) in ("baseline", "poh") else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `python -m poh_ext solve train` makes weights")
    try:
        record = read_archive(path, FORMAT, VERSION)
        recipe = Recipe.from_record(record["recipe"])
        model = recipe.build()
        model.load_state_dict(record["model"])
        return model.eval(), recipe, record["notes"]
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} is of another planner: {str(error).splitlines()[0]}") from error
