"""Files of trained planners: what to build, its weights, and plain notes on where they come from.

A file is safetensors (https://huggingface.co/docs/safetensors): any reader of the format gets the tensors, under the
names of the planner's state_dict; the rest is JSON in its metadata under "poh_ext". It is checked when it is read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poh_ext._files import digest, write_atomically
from poh_ext._optional import require
from poh_ext.models.base import Planner
from poh_ext.models.planners import PLANNERS

__all__ = ["VERSION", "load", "save"]

KEY = "poh_ext"  # one entry of the metadata, because the order of several would not be the same in every file
VERSION = 3
DTYPES = {torch.float32, torch.float64, torch.float16, torch.bfloat16}
CLASSES = {cls.__name__: cls for cls in PLANNERS.values()}


def save(path: str | Path, model: Planner, *, notes: dict[str, Any]) -> Path:
    """Write a planner in one step. Needs safetensors (the extra `experiments`).

    Args:
        path: the file to write; its folder is made.
        model: a BaselinePlanner or PoHPlanner.
        notes: a dict that JSON can hold, for example of training data, versions and accuracy.

    Returns:
        The path of the file.

    Raises:
        ValueError: the model is no planner.
        ImportError: safetensors is missing.
    """
    name = type(model).__name__
    if CLASSES.get(name) is not type(model):
        raise ValueError(f"model must be a {' or '.join(CLASSES)}, got {name}")
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    height, width = model.size
    record = {
        "version": VERSION,
        "planner": name,
        "size": height if height == width else [height, width],
        "options": model.config.keywords(),
        "notes": notes,
        "sha256": digest(weights),
    }
    return write_atomically(path, require("safetensors.torch").save(weights, {KEY: json.dumps(record)}))


def load(path: str | Path) -> tuple[Planner, dict[str, Any]]:
    """Read a planner that `save` wrote. Needs safetensors (the extra `experiments`).

    Returns:
        The planner, in eval mode on the CPU, and its notes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds no planner.
        ImportError: safetensors is missing.

    Examples:
        >>> model, notes = load("experiments/results/solve/weights/poh-seed42.safetensors")
        >>> table = model.policy(tasks.mazes, tasks.start, tasks.goal, passes=200)      # [B, N, 4]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'it is a folder, not a file' if Path(path).is_dir() else 'no such file'}")
    try:
        record, weights = _read(path)
        if record["options"]["depth"] > len(weights):  # before they are made, which a made-up number would not end
            raise ValueError(f"is of another planner: {len(weights)} tensors, {record['options']['depth']} blocks")
        with torch.device("meta"):
            model = CLASSES[record["planner"]](record["size"], **record["options"])
        model.load_state_dict(weights, assign=True)
        return model.eval(), record["notes"]
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} is of another planner: {str(error).splitlines()[0]}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {}).get(KEY, "null"))
            # Copies, because the tensors of the file are its pages, which change when it is overwritten.
            weights = {key: file.get_tensor(key).clone() for key in file.keys()}
    except (safetensors.SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"is damaged or no safetensors file: {error}") from error
    if not isinstance(record, dict) or "version" not in record:
        raise ValueError(f"holds no planner: its metadata has no {KEY!r}")
    if record["version"] != VERSION:
        raise ValueError(f"has version {record['version']!r}; this poh_ext reads {VERSION}")
    if record["sha256"] != digest(weights):
        raise ValueError("is damaged: the checksum of its weights is wrong")
    kinds = {tensor.dtype for tensor in weights.values()}
    if len(kinds) > 1 or not kinds <= DTYPES:
        given, accepted = (", ".join(sorted(map(str, each))).replace("torch.", "") for each in (kinds, DTYPES))
        raise ValueError(f"holds no planner: its weights are {given}; one of {accepted} is accepted")
    return record, weights
