"""What the gradient kernels of all operators share: they run below autograd, and there is no gradient of theirs."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["first_derivative", "no_second_derivative"]


def first_derivative(gradient: Callable, *args):
    """gradient(*args), its kernels called below autograd, unless a second derivative is wanted: then the operator's
    own autograd says that there is none."""
    if torch.is_grad_enabled():
        return gradient(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return gradient(*args)


def no_second_derivative(name: str) -> Callable:
    """The autograd formula of a gradient kernel: an error that says what to do."""

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"{name} has no second derivative in its C++ kernel: set POH_EXT_BACKEND=reference to differentiate twice"
        )

    return refuse
