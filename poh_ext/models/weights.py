"""Files of trained planners: what to build, its weights, and plain notes on where they come from.

A file is an archive of tensors and plain values (`torch.load(path, weights_only=True)`), a few kB larger than its
weights, and checked when it is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from poh_ext._files import read_archive, write_atomically
from poh_ext.models.planners import BaselinePlanner, PoHPlanner

__all__ = ["FORMAT", "VERSION", "load", "save"]

FORMAT = "poh_ext planner weights"
VERSION = 2
PLANNERS = {cls.__name__: cls for cls in (BaselinePlanner, PoHPlanner)}


def save(path: str | Path, model: nn.Module, *, size: int | tuple[int, int], options: dict[str, Any],
         notes: dict[str, Any]) -> Path:
    """Write a planner in one step.

    Args:
        path: its folder is made.
        model: a BaselinePlanner or PoHPlanner.
        size, options: `type(model)(size, **options)` is a planner of this shape.
        notes: plain values: what it was trained on, versions, accuracy.

    Raises:
        ValueError: the model is no planner.
    """
    name = type(model).__name__
    if PLANNERS.get(name) is not type(model):
        raise ValueError(f"model must be a {' or '.join(PLANNERS)}, got {name}")
    record = {"format": FORMAT, "version": VERSION, "planner": name, "size": size, "options": options, "notes": notes,
              "model": {key: tensor.cpu() for key, tensor in model.state_dict().items()}}
    return write_atomically(path, lambda file: torch.save(record, file))


def load(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """(planner in eval mode on the CPU, notes).

    Raises:
        FileNotFoundError: no such file. ValueError: it is damaged or holds no weights of this format.

    Example:
        >>> model, notes = load("experiments/results/solve/weights/poh-seed42.pt")
        >>> table = model.policy(tasks.mazes, tasks.start, tasks.goal, passes=200)      # [B, N, 4]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        record = read_archive(path, FORMAT, VERSION)
        with torch.device("meta"):
            model = PLANNERS[record["planner"]](record["size"], **record["options"])
        model.load_state_dict(record["model"], assign=True)
        return model.eval(), record["notes"]
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} is of another planner: {str(error).splitlines()[0]}") from error
