"""Multi-horizon cross-entropy: the C++ kernel as a torch op, or the PyTorch reference where there is none."""

from __future__ import annotations

import torch
from torch import Tensor

from poh_ext._backend import has_kernel
from poh_ext.reference import horizon_ce as reference

__all__ = ["horizon_ce"]

REDUCTIONS = {"mean": 0, "sum": 1, "none": 2, "position_mean": 3}  # as in csrc/cpu/horizon_ce_reduce.h


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
    if not has_kernel(logits.device):
        options = (horizons, label_smoothing, ignore_index, reduction, z_loss, softcap, metrics)
        return reference.horizon_ce(*tensors, *options)
    options = (horizons, label_smoothing, ignore_index, REDUCTIONS[reduction], z_loss, softcap, metrics)
    call = _op if torch.compiler.is_compiling() else _HorizonCE.apply
    loss, _, _, measured = call(*tensors, *options)
    return loss, measured


def _fake(logits, targets, rows, valid, candidates, horizon_weights, class_weight, horizons, label_smoothing,
          ignore_index, reduction, z_loss, softcap, metrics):  # fmt: skip
    dtype = reference.accumulate_dtype(logits.dtype)
    batch, length = targets.shape
    shape = (batch, length, horizons) if reduction == REDUCTIONS["none"] else ()
    shapes = shape, (2, batch, logits.shape[1], 2), (length, horizons), (2, horizons if metrics else 0)
    return tuple(logits.new_empty(s, dtype=dtype) for s in shapes)


def _save(ctx, inputs, output):
    logits, targets, rows, valid, candidates, _, class_weight, _, smoothing, ignore_index, _, z_loss, cap, _ = inputs
    _, lse, coefficients, metrics = output
    ctx.mark_non_differentiable(lse, coefficients, metrics)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, rows, valid, candidates, class_weight, lse, coefficients)
    ctx.options = smoothing, ignore_index, z_loss, cap


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 14
    return _op_backward(grad, *ctx.saved_tensors, *ctx.options), *(None,) * 13


class _HorizonCE(torch.autograd.Function):
    """The op's own autograd formula, met directly: through the dispatcher it costs 50 us more a step."""

    @staticmethod
    def forward(*args):
        return _op(*args)

    setup_context = staticmethod(_save)
    backward = staticmethod(_backward)


def _fake_backward(grad, logits, *_):
    return logits.new_empty(logits.shape)


def _no_second_derivative(ctx, *grads):
    raise RuntimeError(
        "multi_horizon_cross_entropy has no second derivative in its C++ kernel: "
        "set POH_EXT_BACKEND=reference to differentiate twice"
    )


if has_kernel(torch.device("cpu")):
    _op = torch.ops.poh_ext.horizon_ce.default
    _op_backward = torch.ops.poh_ext.horizon_ce_backward.default
    torch.library.register_fake("poh_ext::horizon_ce", _fake)
    torch.library.register_autograd("poh_ext::horizon_ce", _backward, setup_context=_save)
    torch.library.register_fake("poh_ext::horizon_ce_backward", _fake_backward)
    torch.library.register_autograd("poh_ext::horizon_ce_backward", _no_second_derivative)
