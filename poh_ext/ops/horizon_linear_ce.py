"""Linear multi-horizon cross-entropy on kernels: matrix products of some rows at a time, the loss's kernel on each.
Here for the CPU; for CUDA in csrc/horizon_ce/cuda_linear.cu, where how many rows are read is not known to the host.

The logits of all rows never exist: those of at most a chunk of the rows that are read do, and are overwritten by
their gradient. With one horizon and candidates, only the logits of the candidates are formed.
"""

from __future__ import annotations

import torch

from poh_ext._backend import has_kernel
from poh_ext.ops._compiled import Twin
from poh_ext.ops._derivatives import first_derivative, kernel_serves, no_second_derivative
from poh_ext.ops.horizon_ce import REDUCTIONS
from poh_ext.reference import horizon_linear_ce as reference
from poh_ext.reference.horizon_ce import accumulate_dtype

__all__ = ["horizon_linear_ce"]

# Logits of a chunk: 8 MB stay in the caches between product and loss, but fewer than 512 rows make slow products.
_CHUNK_BYTES, _CHUNK_ROWS = 1 << 23, 512


def _is_served(device: torch.device) -> bool:
    """True if kernels serve the whole op (CUDA) or the parts that it is composed of below (CPU)."""
    return kernel_serves(device, "horizon_linear_ce") or kernel_serves(device, "horizon_ce_chunk")


def horizon_linear_ce(hidden, weight, bias, targets, rows, valid, candidates, horizon_weights, class_weight,
                      horizons, label_smoothing, ignore_index, reduction, z_loss, softcap, metrics):  # fmt: skip
    """Arguments and results as in reference.horizon_linear_ce.horizon_linear_ce."""
    tensors = (hidden, weight, bias, targets, rows, valid, candidates, horizon_weights, class_weight)
    if not _is_served(hidden.device):
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


def _each_row(hidden, weight, bias, targets, rows, valid, candidates, class_weight, upstream, coefficients, terms,
              correct, label_smoothing, ignore_index, z_loss, softcap, wanted):  # fmt: skip
    """Write terms [B, L, K] and correct; with upstream return the gradients of hidden, weight and bias, those that are
    not wanted empty: a frozen head costs neither their time nor their memory."""
    ops = torch.ops.poh_ext
    n_rows, horizons = hidden.shape[1], terms.shape[2]
    states = hidden.shape[2] if hidden.dim() == 4 else 1
    # Not -1: a size cannot be inferred where states have no elements.
    flat = hidden.reshape(hidden.shape[0] * n_rows * states, hidden.shape[-1]).contiguous()
    weight = weight.contiguous()
    classes = weight.shape[0]
    options = (label_smoothing, ignore_index, z_loss, softcap)
    read = ops.horizon_ce_read(targets, rows, candidates, n_rows, classes, horizons, states, ignore_index)
    grad_hidden = grad_weight = grad_bias = None
    if upstream is not None:
        of_hidden, of_weight, of_bias = _has(wanted)
        grad_hidden = ops.large_zeros(flat) if of_hidden else None
        grad_weight = ops.large_zeros(weight.new_empty(weight.shape, dtype=terms.dtype)) if of_weight else None
        grad_bias = bias.new_zeros(bias.shape, dtype=terms.dtype) if of_bias else None
    if candidates is not None and horizons == 1 and candidates.shape[2] < classes:
        listed = (candidates.reshape(-1, candidates.shape[2])[read] >= 0).any(1)
        ops.horizon_ce_candidates(
            flat, weight, bias, read[listed], targets, rows, candidates, class_weight, upstream, coefficients, terms,
            correct, grad_hidden, grad_weight, grad_bias, n_rows, *options,
        )  # fmt: skip
        read = read[~listed]  # these allow every class
    length = max(_CHUNK_BYTES // max(1, classes * flat.element_size()), _CHUNK_ROWS)
    for part in read.split(length) if len(read) else ():
        state = flat.index_select(0, part)
        logits = torch.mm(state, weight.t()) if bias is None else torch.addmm(bias, state, weight.t())
        ops.horizon_ce_chunk(
            logits, part, targets, rows, valid, candidates, class_weight, upstream, coefficients, terms, correct,
            n_rows, states, *options,
        )  # fmt: skip
        if upstream is None:
            continue
        if grad_hidden is not None:
            grad_hidden.index_copy_(0, part, torch.mm(logits, weight))
        if grad_weight is not None and grad_weight.dtype == logits.dtype:
            grad_weight.addmm_(logits.t(), state)
        elif grad_weight is not None:
            grad_weight += torch.mm(logits.t(), state)
        if grad_bias is not None:
            grad_bias += logits.sum(0, dtype=grad_bias.dtype)
    found = zip((grad_hidden, grad_weight, grad_bias), (hidden, weight, bias), strict=True)
    return tuple(flat.new_empty(0) if g is None else g.view(t.shape).to(t.dtype) for g, t in found)


def _forward(hidden, weight, bias, targets, rows, valid, candidates, horizon_weights, class_weight, horizons,
             label_smoothing, ignore_index, reduction, z_loss, softcap, metrics, wanted):  # fmt: skip
    ops = torch.ops.poh_ext
    n_rows, classes = hidden.shape[1], weight.shape[0]
    terms = hidden.new_zeros(*targets.shape, horizons, dtype=accumulate_dtype(hidden.dtype))
    correct = torch.zeros_like(terms, dtype=torch.uint8) if metrics else None
    shape = (n_rows, classes, ignore_index, reduction)
    coefficients = ops.horizon_ce_coefficients(terms, targets, rows, horizon_weights, class_weight, *shape)
    upstream = terms.new_ones(()) if wanted else None
    grads = _each_row(hidden, weight, bias, targets, rows, valid, candidates, class_weight, upstream, coefficients,
                      terms, correct, label_smoothing, ignore_index, z_loss, softcap, wanted)  # fmt: skip
    loss, measured = ops.horizon_ce_finish(terms, correct, coefficients, targets, rows, class_weight, *shape)
    return loss, coefficients, measured, *grads


def _backward_op(grad, hidden, weight, bias, targets, rows, valid, candidates, class_weight, coefficients,
                 label_smoothing, ignore_index, z_loss, softcap, wanted):  # fmt: skip
    terms = coefficients.new_zeros(*targets.shape, coefficients.shape[1])
    return _each_row(hidden, weight, bias, targets, rows, valid, candidates, class_weight, grad.contiguous(),
                     coefficients, terms, None, label_smoothing, ignore_index, z_loss, softcap, wanted)  # fmt: skip


def _fake(hidden, weight, bias, targets, rows, valid, candidates, horizon_weights, class_weight, horizons,
          label_smoothing, ignore_index, reduction, z_loss, softcap, metrics, wanted):  # fmt: skip
    dtype = accumulate_dtype(hidden.dtype)
    loss = hidden.new_empty((*targets.shape, horizons) if reduction == REDUCTIONS["none"] else (), dtype=dtype)
    coefficients = hidden.new_empty((targets.shape[1], horizons), dtype=dtype)
    measured = hidden.new_empty((2, horizons if metrics else 0), dtype=dtype)
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
        grads = [g * grad.to(g.dtype) for g in ctx.saved_tensors]
    else:
        grads = _backward_twin.either(grad, *ctx.saved_tensors, *ctx.options, wanted)
    return _those(wanted, grads)


def _those(wanted, grads):
    """The gradients of all arguments: those wanted of the first three, no other."""
    return *(g if flag else None for g, flag in zip(grads, _has(wanted), strict=True)), *(None,) * 14


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
            grads = [g * grad.to(g.dtype) for g in ready]
        elif grad.is_cuda or grad.item() != 1:  # looking at a CUDA tensor would wait for it
            grads = [g.mul_(grad.to(g.dtype)) for g in ready]
        else:
            grads = ready
        return _those(wanted, grads)


if has_kernel(torch.device("cpu")):
    _op = torch.ops.poh_ext.horizon_linear_ce.default
    _op_backward = torch.ops.poh_ext.horizon_linear_ce_backward.default
    if has_kernel(torch.device("cpu"), "horizon_ce_chunk"):
        torch.library.impl("poh_ext::horizon_linear_ce", "CPU")(_forward)
        torch.library.impl("poh_ext::horizon_linear_ce_backward", "CPU")(_backward_op)
    torch.library.register_fake("poh_ext::horizon_linear_ce", _fake)
    torch.library.register_autograd("poh_ext::horizon_linear_ce", _backward, setup_context=_save)
    torch.library.register_fake("poh_ext::horizon_linear_ce_backward", _fake_backward)
    refusal = no_second_derivative("multi_horizon_linear_cross_entropy")
    torch.library.register_autograd("poh_ext::horizon_linear_ce_backward", refusal)
    _backward_twin = Twin(_op_backward, fake=_fake_backward, backward=refusal)
    _compiled = Twin(_op, fake=_fake, save=_save, backward=_backward)
