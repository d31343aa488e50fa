"""Maze generation: the compiled kernel where there is one, else the PyTorch reference."""

from __future__ import annotations

import torch
from torch import Tensor

from poh_ext._backend import has_kernel
from poh_ext.reference import maze_generate as reference

__all__ = ["generate_mazes"]


def generate_mazes(indices: Tensor, seed: int, height: int, width: int, algorithm: str) -> Tensor:
    """Mazes `indices` int64 [B] of `seed` -> passages uint8 [B, H, W]."""
    if has_kernel(indices.device):
        return torch.ops.poh_ext.generate_mazes(indices.contiguous(), seed, height, width, algorithm)
    return reference.generate_mazes(indices, seed, height, width, algorithm)


if has_kernel(torch.device("cpu")):

    @torch.library.register_fake("poh_ext::generate_mazes")
    def _(indices, seed, height, width, algorithm):
        return indices.new_empty((indices.shape[0], height, width), dtype=torch.uint8)
