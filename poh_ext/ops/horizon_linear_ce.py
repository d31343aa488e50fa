"""Linear multi-horizon cross-entropy: the kernels as a torch op, or the PyTorch reference where there are none.

csrc/horizon_ce/ops.h says how. The logits of all rows never exist: those of at most a chunk of the rows that are
read do. With one horizon and candidates, only the logits of the candidates are formed.
"""

from __future__ import annotations

import torch

from poh_ext._backend import has_kernel
from poh_ext.ops._autograd import Twin, first_derivative, kernel_serves, no_second_derivative
from poh_ext.ops.horizon_ce import REDUCTIONS
from poh_ext.reference import horizon_linear_ce as reference
from poh_ext.reference.horizon_ce import accumulate_dtype, readable

__all__ = ["horizon_linear_ce"]


def horizon_linear_ce(hidden, weight, bias, targets, rows, valid, candidates, horizon_weights, class_weight,
                      horizons, label_smoothing, ignore_index, reduction, z_loss, softcap, metrics):  # fmt: skip
    """Arguments and results as in reference.horizon_linear_ce.horizon_linear_ce."""
    tensors = (hidden, weight, bias, targets, rows, valid, candidates, horizon_weights, class_weight)
    if not kernel_serves(hidden.device):
        options = (horizons, label_smoothing, ignore_index, reduction, z_loss, softcap, metrics)
        return reference.horizon_linear_ce(*tensors, *options)
    # One pass gives the loss and its gradients, unless the gradient of each term is still to come; float16 waits
    # too, because only then does it know the scale that keeps small gradients from becoming 0.
    at_once = torch.is_grad_enabled() and reduction != "none" and hidden.dtype != torch.float16
    wanted = _wanted(t is not None and t.requires_grad for t in (hidden, weight, bias)) if at_once else 0
    options = (horizons, label_smoothing, ignore_index, REDUCTIONS[reduction], z_loss, softcap, metrics, wanted)
    call = _compiled if torch.compiler.is_compiling() else _HorizonLinearCE.apply
    loss, _, measured, *_ = call(*tensors, *options)
    return loss, measured


def _wanted(flags) -> int:
    """Which of the gradients of hidden, weight and bias are wanted, as a number whose bits they are."""
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def _has(wanted: int) -> tuple[bool, bool, bool]:
    return bool(wanted & 1), bool(wanted & 2), bool(wanted & 4)


def _fake(hidden, weight, bias, targets, rows, valid, candidates, horizon_weights, class_weight, horizons,
          label_smoothing, ignore_index, reduction, z_loss, softcap, metrics, wanted):  # fmt: skip
    dtype = accumulate_dtype(hidden.dtype)
    loss = hidden.new_empty((*targets.shape[:2], horizons) if reduction == REDUCTIONS["none"] else (), dtype=dtype)
    coefficients = hidden.new_empty((targets.shape[1], horizons), dtype=dtype)
    measured = hidden.new_empty((3, horizons if metrics else 0), dtype=dtype)
    return loss, coefficients, measured, *_fake_gradients(hidden, weight, bias, wanted)


def _fake_gradients(hidden, weight, bias, wanted):
    given = zip((hidden, weight, bias), _has(wanted), strict=True)
    return tuple(hidden.new_empty(t.shape if flag else 0) for t, flag in given)


def _fake_backward(grad, hidden, weight, bias, *others):
    return _fake_gradients(hidden, weight, bias, others[-1])


def _save(ctx, inputs, output):
    hidden, weight, bias, targets, rows, valid, candidates, _, class_weight, *options = inputs
    _, smoothing, ignore_index, _, z_loss, softcap, _, ctx.at_once = options  # the gradients that are there
    _, coefficients, _, *grads = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.options = smoothing, ignore_index, z_loss, softcap
    if ctx.at_once:
        ctx.save_for_backward(*grads)
    else:
        ctx.save_for_backward(hidden, weight, bias, targets, rows, valid, candidates, class_weight, coefficients)


def _backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 17
    wanted = ctx.at_once or _wanted(ctx.needs_input_grad[:3])
    if ctx.at_once:
        grads = [_scaled(g, grad) for g in ctx.saved_tensors]
    else:
        grads = _backward_twin.either(grad, *ctx.saved_tensors, *ctx.options, wanted)
    return _those(wanted, grads)


def _those(wanted, grads):
    """The gradients of all arguments: those wanted of the first three, no other."""
    return *(g if flag else None for g, flag in zip(grads, _has(wanted), strict=True)), *(None,) * 14


def _scaled(g, factor):
    """g times the loss's own gradient, which has more digits than a bfloat16 g: they must not be rounded away first."""
    return (g.to(factor.dtype) * factor).to(g.dtype)


def _scale(g, factor):
    """`_scaled` in place, without a copy as large as g."""
    if g.dtype == factor.dtype or not g.is_cuda:  # on the CPU torch multiplies a tensor and a number in full
        return g.mul_(factor)
    for part in g.view(-1).split(1 << 22):
        part.copy_(_scaled(part, factor))
    return g


def _is_one(grad):
    """Whether the gradient is seen to be 1. Looking at a CUDA tensor would wait for it; what is traced has no value."""
    return not grad.is_cuda and readable(grad) and not torch._C._len_torch_dispatch_stack() and grad.item() == 1


_BATCHED = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor


class _HorizonLinearCE(torch.autograd.Function):
    """The op's own autograd formula, met directly, as in ops/horizon_ce.py.

    The gradients that the forward pass made are handed out once, without a copy as large as hidden. A second backward
    pass, or one that is to be differentiated (whose kernel refuses that), computes them from the saved inputs.
    """

    @staticmethod
    def forward(ctx, *args):
        with torch._C._AutoDispatchBelowAutograd(), torch._C._DisableAutocast():
            loss, coefficients, measured, *grads = _op(*args)
        *_, smoothing, ignore_index, _, z_loss, softcap, _, wanted = args
        ctx.mark_non_differentiable(coefficients, measured)
        ctx.set_materialize_grads(False)
        ctx.options = smoothing, ignore_index, z_loss, softcap
        ctx.ready = grads if wanted else None
        ctx.save_for_backward(*args[:7], args[8], coefficients)
        return loss, coefficients, measured

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 17
        ready, ctx.ready = ctx.ready, None
        wanted = _wanted(ctx.needs_input_grad[:3])
        if ready is None or torch.is_grad_enabled():
            with torch._C._DisableAutocast():
                grads = first_derivative(_op_backward, grad, *ctx.saved_tensors, *ctx.options, wanted)
        elif any(f(grad) for f in _BATCHED):  # is_grads_batched, jacobian(vectorize=True)
            grads = [_scaled(g, grad) for g in ready]
        elif _is_one(grad):
            grads = ready
        else:
            grads = [_scale(g, grad) for g in ready]
        return _those(wanted, grads)


if has_kernel(torch.device("cpu")):
    _op = torch.ops.poh_ext.horizon_linear_ce.default
    _op_backward = torch.ops.poh_ext.horizon_linear_ce_backward.default
    torch.library.register_fake("poh_ext::horizon_linear_ce", _fake)
    torch.library.register_autograd("poh_ext::horizon_linear_ce", _backward, setup_context=_save)
    torch.library.register_fake("poh_ext::horizon_linear_ce_backward", _fake_backward)
    refusal = no_second_derivative("multi_horizon_linear_cross_entropy")
    torch.library.register_autograd("poh_ext::horizon_linear_ce_backward", refusal)
    _backward_twin = Twin(_op_backward, fake=_fake_backward, backward=refusal)
    _compiled = Twin(_op, fake=_fake, save=_save, backward=_backward)
