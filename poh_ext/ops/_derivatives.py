"""What the differentiable operators share: their kernels have a first derivative, backward, and nothing beyond."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch.autograd import forward_ad

from poh_ext._backend import has_kernel

__all__ = ["first_derivative", "kernel_serves", "no_second_derivative"]

_said = False


def kernel_serves(device: torch.device, op: str | None = None) -> bool:
    """True where the compiled kernels of `op` serve, as has_kernel says, and torch asks for no more than they have.

    Under a transform of torch.func (grad, vmap, jvp, jacrev, ...) and in forward-mode differentiation it is False: the
    PyTorch reference, which torch can look into, computes there. That is said once.
    """
    global _said
    if not has_kernel(device, op):
        return False
    if torch.compiler.is_compiling():
        return True
    if torch._C._functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0:
        return True
    if not _said:
        _said = True
        warnings.warn(
            "poh_ext: the PyTorch reference computes under torch.func and forward-mode differentiation, "
            "slower: the kernels have a backward pass only",
            RuntimeWarning,
            stacklevel=4,
        )
    return False


def first_derivative(gradient: Callable, *args):
    """gradient(*args), its kernels called below autograd, unless a second derivative is wanted: then the operator's
    own autograd says that there is none.

    Saved tensors must be read before: torch.utils.checkpoint computes them then, with autograd.
    """
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
