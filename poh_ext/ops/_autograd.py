"""What the differentiable operators share: where the kernels serve, and how torch differentiates and compiles them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from poh_ext._backend import has_kernel

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


_LIBRARY = torch.library.Library("poh_ext", "FRAGMENT")


class Twin:
    """`op` with its floats in one float64 tensor [n] on the CPU, its last argument; called with the arguments of `op`.

    Args:
        op: an operator of poh_ext, with kernels.
        fake, save, backward: as they are registered for `op`. `save` and `backward` are given 0-dimensional tensors
            for the floats.
    """

    def __init__(self, op: torch._ops.OpOverload, *, fake: Callable, backward: Callable, save: Callable | None = None):
        self.op, self.fake, self.save, self.backward = op, fake, save, backward
        arguments, returns = str(op._schema).split("(", 1)[1].split(") -> ")
        given = arguments.split(", ")
        self.floats = [i for i, argument in enumerate(given) if argument.startswith("float ")]
        kept = [argument for i, argument in enumerate(given) if i not in self.floats]
        name = op._schema.name.removeprefix("poh_ext::") + "_scalars"
        _LIBRARY.define(f"{name}({', '.join([*kept, 'Tensor scalars'])}) -> {returns}")
        _LIBRARY.impl(name, lambda *args: op(*self._full(args, args[-1].tolist())), "CompositeExplicitAutograd")
        torch.library.register_fake(f"poh_ext::{name}", lambda *args: fake(*self._full(args, [0.0] * len(self.floats))))
        torch.library.register_autograd(
            f"poh_ext::{name}", self._backward, setup_context=self._save if save is not None else None
        )
        self.twin = getattr(torch.ops.poh_ext, name).default

    def __call__(self, *args):
        rest = [arg for i, arg in enumerate(args) if i not in self.floats]
        # As a factor: this is how torch.compile takes a number without fixing it.
        scalars = [torch.ones((), dtype=torch.float64, device="cpu") * args[i] for i in self.floats]
        return self.twin(*rest, torch.stack(scalars))

    def either(self, *args):
        """`op`, or the twin where a float is a tensor, as in a backward pass of the twin's."""
        return self(*args) if any(isinstance(args[i], Tensor) for i in self.floats) else self.op(*args)

    def _full(self, args, values) -> list:
        full = list(args[:-1])
        for i, value in zip(self.floats, values, strict=True):
            full.insert(i, value)
        return full

    def _save(self, ctx, inputs, output) -> None:
        assert self.save is not None
        self.save(ctx, self._full(inputs, inputs[-1].unbind()), output)

    def _backward(self, ctx, *grads):
        found = self.backward(ctx, *grads)
        return *(g for i, g in enumerate(found) if i not in self.floats), None
