"""Batches that are one item repeated: a map that many tasks share is held, moved and pickled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["compact", "is_shared", "moved", "of_each", "packed", "picked"]


def is_shared(t: Tensor) -> bool:
    """Whether [B, ...] is one item B times, B > 1."""
    return t.shape[0] > 1 and t.stride(0) == 0


def of_each(t: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """What becomes of each item of [B, ...]: of a shared one once."""
    if not is_shared(t):
        return change(t)
    one = change(t[:1])
    return one.expand(t.shape[0], *one.shape[1:])


def packed(t: Tensor) -> Tensor:
    """Contiguous, but for the sharing."""
    return of_each(t, Tensor.contiguous)


def picked(t: Tensor, which: Any) -> Tensor:
    """t[which], of a shared item without copies."""
    if isinstance(which, slice) or not is_shared(t):
        return t[which]
    places = torch.arange(t.shape[0], device=t.device)[which]
    return t[:1].expand(len(places), *t.shape[1:])


def moved(t: Tensor, device: torch.device | str) -> Tensor:
    return of_each(t, lambda item: item.to(device))


def compact(state: dict[str, Any]) -> dict[str, Any]:
    """For pickle: tensors that hold no more than what they show, as a view would."""

    def own(t: Any) -> Any:
        if not isinstance(t, Tensor) or t.untyped_storage().nbytes() <= t.numel() * t.element_size():
            return t
        return of_each(t, Tensor.clone)

    return {name: own(value) for name, value in state.items()}
