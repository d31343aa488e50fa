"""Neighbour attention: the kernels as torch ops, or the PyTorch reference where there are none."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from poh_ext._backend import has_kernel
from poh_ext.ops._autograd import first_derivative, kernel_serves, no_second_derivative
from poh_ext.reference import neighbor_attention as reference

__all__ = ["neighbor_attention", "neighbor_attention_flop", "neighbor_attention_packed"]


def neighbor_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    candidates: Tensor,
    bias: Tensor | None,
    key_offset: Tensor | None,
    value_offset: Tensor | None,
) -> Tensor:
    """Checked arguments as in reference.neighbor_attention -> [B, H, N, Dh], laid out as [B, N, H, Dh]."""
    tables = bias, key_offset, value_offset
    if not kernel_serves(q.device, "neighbor_attention"):
        return reference.neighbor_attention(q, k, v, candidates, *tables)
    graph = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (q, k, v, *tables))
    if graph and not torch.compiler.is_compiling():
        return _Separate.apply(q, k, v, candidates, *tables).transpose(1, 2)
    return _op(q, k, v, candidates, *tables, graph)[0].transpose(1, 2)


def neighbor_attention_packed(
    qkv: Tensor, candidates: Tensor, bias: Tensor | None, key_offset: Tensor | None, value_offset: Tensor | None
) -> Tensor:
    """The same of one tensor [B, N, 3, H, Dh] -> [B, N, H, Dh]. Its gradient comes back in one piece too: taken apart
    outside, it would be stacked anew, which costs a third of the backward pass."""
    q, k, v = _apart(qkv)
    tables = bias, key_offset, value_offset
    graph = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (qkv, *tables))
    if graph and not torch.compiler.is_compiling() and kernel_serves(qkv.device, "neighbor_attention"):
        return _Packed.apply(qkv, candidates, *tables)
    return neighbor_attention(q, k, v, candidates, *tables).transpose(1, 2)


def neighbor_attention_flop(batch: int, heads: int, n_cells: int, d_head: int, slots: int) -> int:
    """Arithmetic of the forward pass (1 multiply-add = 2 FLOP): a product with a key and one with a value for each
    slot, absent ones too. As torch counts attention, what is only added (bias and offsets) and the softmax are not
    counted; the backward pass, which has four products for these two, is twice this."""
    return 2 * 2 * slots * d_head * batch * heads * n_cells


def _apart(qkv: Tensor) -> tuple[Tensor, ...]:
    """[B, N, 3, H, Dh] -> three views [B, H, N, Dh]."""
    return qkv.permute(2, 0, 3, 1, 4).unbind()


def _fake(q, k, v, candidates, bias, key_offset, value_offset, save):
    batch, heads, n_cells, d_head = q.shape
    shape = (batch, heads, candidates.shape[2] + 1, n_cells) if save else (0,)
    weights = q.new_empty(shape, dtype=reference.accumulate_dtype(q.dtype))
    return q.new_empty(batch, n_cells, heads, d_head), weights


def _fake_backward(grad, q, k, v, candidates, bias, key_offset, value_offset, weights):
    batch, heads, n_cells, d_head = q.shape
    tables = (weights.new_empty(0 if t is None else t.shape) for t in (bias, key_offset, value_offset))
    return q.new_empty(batch, n_cells, 3, heads, d_head), *tables


def _save(ctx, inputs, output):
    *tensors, save = inputs
    weights = output[1]
    if not save:
        raise RuntimeError("neighbor_attention needs save=True where a gradient is wanted")
    ctx.mark_non_differentiable(weights)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, weights)


def _gradients(grad, q, k, v, candidates, bias, key_offset, value_offset, weights):
    """(packed gradient [B, N, 3, H, Dh], gradients of the tables in their dtypes or None)"""
    tables = bias, key_offset, value_offset
    packed, *found = _op_backward(grad, q, k, v, candidates, *tables, weights)
    return packed, *(None if t is None else g.to(t.dtype) for t, g in zip(tables, found, strict=True))


def _backward(ctx, grad, _=None):
    if grad is None:
        return (None,) * 8
    packed, *tables = _gradients(grad, *ctx.saved_tensors)
    return *_apart(packed), None, *tables, None


class _Separate(torch.autograd.Function):
    """The op's own autograd formula, met directly and its kernels below autograd, as in ops/horizon_ce.py."""

    @staticmethod
    def forward(ctx, *args):
        with torch._C._AutoDispatchBelowAutograd():
            out, weights = _op(*args, True)
        ctx.save_for_backward(*args, weights)
        return out

    @staticmethod
    def backward(ctx, grad):
        packed, *tables = first_derivative(_gradients, grad, *ctx.saved_tensors)
        return *_apart(packed), None, *tables


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, *args):
        with torch._C._AutoDispatchBelowAutograd():
            out, weights = _op(*_apart(qkv), *args, True)
        ctx.save_for_backward(qkv, *args, weights)
        return out

    @staticmethod
    def backward(ctx, grad):
        qkv, *saved = ctx.saved_tensors
        packed, *tables = first_derivative(_gradients, grad, *_apart(qkv), *saved)
        return packed, None, *tables


if has_kernel(torch.device("cpu")):
    _op = torch.ops.poh_ext.neighbor_attention.default
    _op_backward = torch.ops.poh_ext.neighbor_attention_backward.default
    torch.library.register_fake("poh_ext::neighbor_attention", _fake)
    torch.library.register_autograd("poh_ext::neighbor_attention", _backward, setup_context=_save)
    torch.library.register_fake("poh_ext::neighbor_attention_backward", _fake_backward)
    torch.library.register_autograd("poh_ext::neighbor_attention_backward", no_second_derivative("neighbor_attention"))

    @register_flop_formula(torch.ops.poh_ext.neighbor_attention)
    def _(q, k, v, candidates, *args, **kwargs):
        return neighbor_attention_flop(*q, candidates[2] + 1)

    @register_flop_formula(torch.ops.poh_ext.neighbor_attention_backward)
    def _(grad, q, k, v, candidates, *args, **kwargs):
        return 2 * neighbor_attention_flop(*q, candidates[2] + 1)
