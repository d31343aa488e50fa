"""Dropout as a CPU kernel: the backward pass makes the mask again from its seed, so that none is kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from poh_ext._backend import has_kernel
from poh_ext.ops._autograd import kernel_serves

__all__ = ["dropout", "has_dropout"]


def has_dropout(x: Tensor) -> bool:
    """Whether `dropout` serves x: on the CPU with the C++ kernels, outside torch.compile (which fuses its own)."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and kernel_serves(x.device, "dropout")


def dropout(x: Tensor, p: float) -> Tensor:
    """x / (1 - p) with probability 1 - p, else 0; p is rounded to 2^-16, and the scale is that of the rounded p.

    torch.nn.functional.dropout draws one number after another on one thread. Here a draw is a hash of the element's
    place, keyed by one 64-bit number from torch's default generator; threads do not change what is drawn.

    Args:
        x: float32, float64, bfloat16 or float16, any shape; see `has_dropout`.
        p: in [0, 1).
    """
    fake = isinstance(x, FakeTensor)  # has no numbers, and a draw beside it would have none
    seed = torch.empty((), dtype=torch.int64, device="cpu")
    return _Dropout.apply(x, p, 0 if fake else int(seed.random_(-(2**63), None)))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p, seed):
        ctx.options = p, seed
        with torch._C._AutoDispatchBelowAutograd():
            return _op(x, p, seed)

    @staticmethod
    def backward(ctx, grad):
        return _Dropout.apply(grad, *ctx.options), None, None  # linear: differentiable again


if has_kernel(torch.device("cpu")):
    _op = torch.ops.poh_ext.dropout.default

    @torch.library.register_fake("poh_ext::dropout")
    def _(x, p, seed):
        return x.new_empty(x.shape)

    def _save(ctx, inputs, output):
        _, *ctx.options = inputs

    torch.library.register_autograd(
        "poh_ext::dropout", lambda ctx, grad: (_op(grad, *ctx.options), None, None), setup_context=_save
    )
