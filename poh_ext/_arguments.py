"""Checks of plain arguments shared by mazes, tasks and rollouts, and the device they are worked on."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch

from poh_ext._backend import has_kernel

__all__ = ["MAX_CELLS", "check_int", "check_size", "one_as_slice", "work_device"]

MAX_CELLS = 2**26  # the kernels pack a cell and four bits into an int32


def one_as_slice(which, length: int):
    """Any other index as it is; an integer of any library (negative: from the end) as the slice that holds just that
    item of `length`, or IndexError if there is none.

    Raises TypeError for True and False, and for None, which would add a dimension.
    """
    if isinstance(which, bool) or which is None:
        raise TypeError(f"an index must be an int, a slice, a tensor or a list of ints, got {which!r}")
    several = isinstance(which, torch.Tensor) and (which.dim() > 0 or which.dtype == torch.bool)
    if several or isinstance(which, (slice, list)):
        return which
    try:
        index = operator.index(which)
    except TypeError:
        return which
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of range for {length} mazes")
    index %= length
    return slice(index, index + 1)


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) of a size given as int or (H, W); each at least 1."""
    try:
        pair = (size, size) if not isinstance(size, Sequence) else tuple(size)
        height, width = (operator.index(s) for s in pair)
    except (TypeError, ValueError):
        raise TypeError(f"size must be an int or (height, width), got {size!r}") from None
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1, got {size!r}")
    if height * width > MAX_CELLS:
        raise ValueError(f"size must be at most {MAX_CELLS} cells, got {size!r}")
    return height, width


def check_int(name: str, value: int, low: int, high: int = 2**63 - 1) -> int:
    """`value` as an int in [low, high]."""
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
    return value


def work_device(device: torch.device | str) -> torch.device:
    """Where mazes for `device` are made: kernels on the CPU beat the PyTorch reference on any accelerator."""
    device = torch.device(device)
    return torch.device("cpu") if not has_kernel(device) and has_kernel(torch.device("cpu")) else device
