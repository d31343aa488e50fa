"""Multi-horizon cross-entropy: the C++ kernel as a torch op, or the PyTorch reference where there is none."""

from __future__ import annotations

import torch
from torch import Tensor

from poh_ext._backend import has_kernel
from poh_ext.ops._autograd import Twin, first_derivative, kernel_serves, no_second_derivative
from poh_ext.reference import horizon_ce as reference

__all__ = ["horizon_ce"]

REDUCTIONS = {"mean": 0, "sum": 1, "none": 2, "position_mean": 3}  # as in csrc/common/tensors.h


def horizon_ce(
    logits: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    valid: Tensor | None,
    candidates: Tensor | None,
    horizon_weights: Tensor | None,
    class_weight: Tensor | None,
    horizons: int,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
    z_loss: float,
    softcap: float,
    metrics: bool,
) -> tuple[Tensor, Tensor]:
    """Arguments and results as in reference.horizon_ce.horizon_ce."""
    tensors = (logits, targets, rows, valid, candidates, horizon_weights, class_weight)
    if not kernel_serves(logits.device):
        return reference.horizon_ce(
            *tensors, horizons, label_smoothing, ignore_index, reduction, z_loss, softcap, metrics
        )
    options = (horizons, label_smoothing, ignore_index, REDUCTIONS[reduction], z_loss, softcap, metrics)
    if torch.compiler.is_compiling():
        loss, _, _, measured = _compiled(*tensors, *options)
        return loss, measured
    return _HorizonCE.apply(*tensors, *options)


def _fake(logits, targets, rows, valid, candidates, horizon_weights, class_weight, horizons, label_smoothing,
          ignore_index, reduction, z_loss, softcap, metrics):  # fmt: skip
    dtype = reference.accumulate_dtype(logits.dtype)
    batch, length = targets.shape[:2]
    shape = (batch, length, horizons) if reduction == REDUCTIONS["none"] else ()
    shapes = shape, (2, batch, logits.shape[1], 2), (length, horizons), (3, horizons if metrics else 0)
    return tuple(logits.new_empty(s, dtype=dtype) for s in shapes)


def _save(ctx, inputs, output):
    logits, targets, rows, valid, candidates, _, class_weight, _, smoothing, ignore_index, _, z_loss, cap, _ = inputs
    _, lse, coefficients, metrics = output
    ctx.mark_non_differentiable(lse, coefficients, metrics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, rows, valid, candidates, class_weight, lse, coefficients)
    ctx.options = smoothing, ignore_index, z_loss, cap


_NO_GRADIENT = (None,) * 13  # of all arguments but the logits


def _gradient(options, grad, *saved):
    return _backward_twin.either(grad, *saved, *options), *_NO_GRADIENT


def _backward(ctx, grad, *_):
    return (None, *_NO_GRADIENT) if grad is None else _gradient(ctx.options, grad, *ctx.saved_tensors)


class _HorizonCE(torch.autograd.Function):
    """The op's own autograd formula, met directly. Through the dispatcher a step costs 50 us more: its autograd is
    in Python and hands each of the 14 arguments back and forth. For the same reason the kernels are called below
    autograd here, and there is no setup_context, before which torch binds the arguments by inspect.signature."""

    @staticmethod
    def forward(ctx, *args):
        with torch._C._AutoDispatchBelowAutograd():
            output = _op(*args)
        _save(ctx, args, output)
        return output[0], output[3]

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return None, *_NO_GRADIENT
        return first_derivative(_gradient, ctx.options, grad, *ctx.saved_tensors)


def _fake_backward(grad, logits, *_):
    return logits.new_empty(logits.shape)


if has_kernel(torch.device("cpu")):
    _op = torch.ops.poh_ext.horizon_ce.default
    _op_backward = torch.ops.poh_ext.horizon_ce_backward.default
    torch.library.register_fake("poh_ext::horizon_ce", _fake)
    torch.library.register_autograd("poh_ext::horizon_ce", _backward, setup_context=_save)
    torch.library.register_fake("poh_ext::horizon_ce_backward", _fake_backward)
    _refuse = no_second_derivative("multi_horizon_cross_entropy")
    torch.library.register_autograd("poh_ext::horizon_ce_backward", _refuse)
    _backward_twin = Twin(_op_backward, fake=_fake_backward, backward=_refuse)
    _compiled = Twin(_op, fake=_fake, save=_save, backward=_backward)
