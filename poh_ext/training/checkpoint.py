"""Checkpoints of one training: written in one step, checked when read, the last two kept.

A checkpoint holds what the rest of the training depends on (weights, optimiser, random states, the step, the curve so
far), so that going on from it gives the weights of an uninterrupted run bit for bit. It also holds which training it
is of: one of another run, seed or version is refused by name, and so is a damaged one; the one before it is used.
The files are plain `torch.save` archives of tensors, numbers and strings: `torch.load(path, weights_only=True)`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from poh_ext._files import read_archive, write_atomically
from poh_ext.results import plain
from poh_ext.training.checks import flag
from poh_ext.training.presets import solver_identity

__all__ = [
    "FORMAT",
    "KEPT",
    "VERSION",
    "Checkpoints",
    "first_difference",
    "first_misfit",
    "identity",
    "random_state",
    "read_archive",
    "restore_random_state",
]

FORMAT = "poh_ext training checkpoint"
VERSION = 1
KEPT = 2
_HEAD = ("format", "version", "identity", "step")
# No result depends on these. Device and precision are compared as what was chosen, not as asked: see _COMPARED. What
# quick and precision mean for the solver rows: see presets.solver_identity.
NOT_COMPARED = ("output", "overwrite", "resume", "dry_run", "quick", "preset", "cpu", "device", "precision",
                "save_weights", "tensorboard", "ray")  # fmt: skip
# Parts of the environment that decide results.
_COMPARED = (("device",), ("precision",), ("versions", "torch"), ("versions", "poh_ext"), ("hardware", "cpu"),
             ("hardware", "gpu"), ("hardware", "threads"), ("processes",), ("backend_info",))  # fmt: skip


class Checkpoints:
    """The checkpoints of one training, in a folder that nothing else writes to.

    Args:
        folder: made when the first checkpoint is written.
        identity: of this training: see `identity`.

    Examples:
        >>> checkpoints = Checkpoints(Path("run/checkpoints/poh-seed42"), identity(...))
        >>> checkpoints.save(13, {"model": model.state_dict()})
        >>> checkpoints.load(model)["step"]
        13
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity
        self._passed_over: set[Path] = set()  # by `load`, until a whole one is written

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after so many steps (with "model", the planner's state_dict); forget all but it and the one
        before it, and what `load` passed over."""
        head = dict(zip(_HEAD, (FORMAT, VERSION, self.identity, step), strict=True))
        record = {**head, **state}
        path = write_atomically(self.folder / f"step-{step:08d}.pt", lambda file: torch.save(record, file))
        usable = [other for other in self.paths() if other not in self._passed_over | {path}]
        for old in (self._passed_over | {*usable[KEPT - 1 :]}) - {path}:
            old.unlink(missing_ok=True)
        self._passed_over = set()
        return path

    def load(
        self, model: torch.nn.Module, misfit: Callable[[dict[str, Any]], str | None] = lambda state: None
    ) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, of this training and fits the planner; None if there is none.

        Each one passed over is named on stderr, with the reason.

        Args:
            misfit: says what else keeps the state, as it was given to `save`, from being used.
        """
        for part in self.folder.glob(".step-*.part"):  # of a process that was killed while it wrote
            part.unlink(missing_ok=True)
        paths = self.paths()
        for i, path in enumerate(paths, 1):
            try:
                record = read_archive(path, FORMAT, VERSION)
                self._compare(record, model)
                if found := misfit({key: value for key, value in record.items() if key not in _HEAD}):
                    raise ValueError(f"is damaged: {found}")
                return record
            except ValueError as error:
                instead = f"trying the one before it, {paths[i].name}" if i < len(paths) else "starting anew"
                print(f"checkpoint {path} {error}; {instead}", file=sys.stderr, flush=True)
                self._passed_over.add(path)
        return None

    def paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*.pt"), reverse=True)

    def remove(self) -> None:
        """The training is finished and recorded: its checkpoints are of no use."""
        for path in (*self.folder.glob(".step-*.part"), *self.paths()):
            path.unlink(missing_ok=True)
        for folder in (self.folder, self.folder.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _compare(self, record: dict[str, Any], model: torch.nn.Module) -> None:
        try:
            different = first_difference(record["identity"], self.identity)
            shapes = {name: tensor.shape for name, tensor in record["model"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"is damaged: it lacks {error}") from error
        if different is not None:
            raise ValueError(f"is of another training: {different}")
        if shapes != {name: tensor.shape for name, tensor in model.state_dict().items()}:
            raise ValueError("is of another planner: its weights have other names or shapes")


def first_misfit(found: Any, like: Any, name: str = "it") -> str | None:
    """What keeps a value of a checkpoint from standing where `like` stands, in words; None if nothing does.

    A dict has the keys of `like`, a list its length if it has any, a tensor its shape and type. All else has its type,
    where a whole number also serves as a float.
    """
    if isinstance(like, torch.Tensor) and isinstance(found, torch.Tensor):
        if (found.shape, found.dtype) == (like.shape, like.dtype):
            return None
        return f"{name} is {list(found.shape)} of {found.dtype}, not {list(like.shape)} of {like.dtype}"
    if not (type(found) is type(like) or (isinstance(like, float) and type(found) is int)):
        return f"{name} is a {type(found).__name__}, not a {type(like).__name__}"
    if isinstance(like, dict):
        if other := found.keys() ^ like.keys():
            return f"{name} {'lacks' if min(map(str, other)) in map(str, like) else 'has'} {min(map(str, other))}"
        parts = ((found[key], value, str(key)) for key, value in like.items())
    elif isinstance(like, list) and like:
        if len(found) != len(like):
            return f"{name} has {len(found)} items, not {len(like)}"
        parts = ((a, b, f"{name}[{i}]") for i, (a, b) in enumerate(zip(found, like, strict=True)))
    else:
        return None
    return next((misfit for a, b, part in parts if (misfit := first_misfit(a, b, part))), None)


def identity(experiment: str, config: dict[str, Any], environment: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """What decides the results of a run, or with `parts` (row=..., seed=...) of a part of it, as plain values."""
    deciding = {name: value for name, value in config.items() if name not in NOT_COMPARED} | solver_identity(config)
    compared = {" ".join(path): _at(environment, path) for path in _COMPARED}
    everything = plain({"experiment": experiment, "parts": parts, "config": deciding, "environment": compared})
    return json.loads(json.dumps(everything))  # torch.__version__ is a str only by inheritance


def first_difference(earlier: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What makes one `identity` another one than that of this run, in words; None if nothing does."""
    if earlier["experiment"] != now["experiment"]:
        return f"it is {earlier['experiment']!r}, not {now['experiment']!r}"
    for name, value in now["parts"].items():
        if earlier["parts"].get(name) != value:
            return f"{name} was {_show(earlier['parts'].get(name))}, not {_show(value)}"
    then, config = earlier["config"], now["config"]
    for name in dict.fromkeys((*config, *then)):
        if name not in then or name not in config:
            return f"{flag(name)} is known to one of the two versions only"
        if then[name] != config[name]:
            return f"{flag(name)} was {_show(then[name])}, not {_show(config[name])}"
    for name, value in now["environment"].items():
        if earlier["environment"].get(name) != value:
            return f"{name} was {_show(earlier['environment'].get(name))}, not {_show(value)}"
    return None


def _at(record: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if not isinstance(v, dict))
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the random generators of the CPU and of the device, as CPU tensors."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
