"""Checkpoints of one training: written in one step, checked when read, the last two kept.

A checkpoint holds what the rest of the training depends on (weights, optimiser, random states, the step, the curve so
far), so that going on from it gives the weights of an uninterrupted run bit for bit. It also holds which training it
is of: one of another run, seed or version is refused by name, and so is a damaged one; the one before it is used.
The files are plain `torch.save` archives of tensors, numbers and strings: `torch.load(path, weights_only=True)`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from poh_ext._files import read_archive, write_atomically
from poh_ext.training.resume import first_difference

__all__ = ["FORMAT", "KEPT", "VERSION", "Checkpoints", "read_archive"]

FORMAT = "poh_ext training checkpoint"
VERSION = 1
KEPT = 2


class Checkpoints:
    """The checkpoints of one training, in a folder that nothing else writes to.

    Args:
        folder: made when the first checkpoint is written.
        identity: of this training: see resume.identity.

    Example:
        >>> checkpoints = Checkpoints(Path("run/checkpoints/poh-seed42"), identity(...))
        >>> checkpoints.save(13, {"model": model.state_dict()})
        >>> checkpoints.load(model)["step"]
        13
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after so many steps (with "model", the planner's state_dict); forget all but the last two."""
        record = {"format": FORMAT, "version": VERSION, "identity": self.identity, "step": step, **state}
        path = write_atomically(self.folder / f"step-{step:08d}.pt", lambda file: torch.save(record, file))
        for old in self.paths()[KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def load(self, model: torch.nn.Module) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, of this training and fits the planner; None if there is none.

        Each one passed over is named on stderr, with the reason.
        """
        for part in self.folder.glob(".step-*.part"):  # of a process that was killed while it wrote
            part.unlink(missing_ok=True)
        paths = self.paths()
        for i, path in enumerate(paths, 1):
            try:
                record = read_archive(path, FORMAT, VERSION)
                self._compare(record, model)
                return record
            except ValueError as error:
                instead = f"trying the one before it, {paths[i].name}" if i < len(paths) else "starting anew"
                print(f"checkpoint {path} {error}; {instead}", file=sys.stderr, flush=True)
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
