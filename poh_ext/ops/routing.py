"""Routing ops: choose the backend; the kernels' shapes and gradients, side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from poh_ext._backend import has_kernel
from poh_ext.ops._autograd import Twin, first_derivative, kernel_serves, no_second_derivative
from poh_ext.ops.horizon_ce import REDUCTIONS
from poh_ext.reference import routing as reference

__all__ = ["route", "routing_entropy"]


def route(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Weights [..., H] and entropy [...] of checked arguments."""
    if not kernel_serves(logits.device):
        return reference.route(logits, temperature)
    return _compiled_route(logits, temperature) if torch.compiler.is_compiling() else _Route.apply(logits, temperature)


def routing_entropy(logits: Tensor, temperature: float, reduction: str) -> Tensor:
    """Reduced entropy of checked arguments; the weights never reach memory."""
    if not kernel_serves(logits.device):
        return reference.routing_entropy(logits, temperature, reduction)
    arguments = logits, temperature, REDUCTIONS[reduction]
    return _compiled_entropy(*arguments) if torch.compiler.is_compiling() else _RoutingEntropy.apply(*arguments)


def _route_save(ctx, inputs, output):
    logits, ctx.temperature = inputs
    # Weights rounded to half precision are too coarse for the gradient: the kernel makes them anew.
    exact = logits.dtype in (torch.float32, torch.float64)
    ctx.save_for_backward(logits, output[0] if exact else None)
    ctx.set_materialize_grads(False)  # whoever uses one output alone pays for no gradient of the other


def _route_gradient(ctx, grad_weights, grad_entropy):
    return _gradient_of_route(ctx.temperature, grad_weights, grad_entropy, *ctx.saved_tensors)


def _gradient_of_route(temperature, grad_weights, grad_entropy, logits, weights):
    if grad_weights is None and grad_entropy is None:
        return None, None
    if grad_entropy is None:
        grad_entropy = logits.new_zeros(())
    return _backward_twin.either(grad_weights, grad_entropy, 1.0, logits, weights, temperature), None


def _entropy_save(ctx, inputs, output):
    logits, ctx.temperature, reduction = inputs
    rows = logits.numel() // logits.shape[-1]
    ctx.scale = 1.0 / max(rows, 1) if reduction == REDUCTIONS["mean"] else 1.0
    ctx.save_for_backward(logits)


def _entropy_gradient(ctx, grad):
    return _gradient_of_entropy(ctx.scale, ctx.temperature, grad, *ctx.saved_tensors)


def _gradient_of_entropy(scale, temperature, grad, logits):
    return _backward_twin.either(None, grad, scale, logits, None, temperature), None, None


class _Route(torch.autograd.Function):
    """The op's own autograd formula, met directly and its kernels below autograd, as in ops/horizon_ce.py: a step
    of 4 rows costs 29 us instead of 37."""

    @staticmethod
    def forward(ctx, *args):
        with torch._C._AutoDispatchBelowAutograd():
            output = _route(*args)
        _route_save(ctx, args, output)
        return output

    @staticmethod
    def backward(ctx, *grads):
        return first_derivative(_gradient_of_route, ctx.temperature, *grads, *ctx.saved_tensors)


class _RoutingEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        with torch._C._AutoDispatchBelowAutograd():
            output = _entropy(*args)
        _entropy_save(ctx, args, output)
        return output

    @staticmethod
    def backward(ctx, grad):
        return first_derivative(_gradient_of_entropy, ctx.scale, ctx.temperature, grad, *ctx.saved_tensors)


def _fake_route(logits, temperature):
    return logits.new_empty(logits.shape), logits.new_empty(logits.shape[:-1])


def _fake_entropy(logits, temperature, reduction):
    return logits.new_empty(logits.shape[:-1] if reduction == REDUCTIONS["none"] else ())


def _fake_backward(grad_weights, grad_entropy, entropy_scale, logits, weights, temperature):
    return logits.new_empty(logits.shape)


if has_kernel(torch.device("cpu")):
    _route = torch.ops.poh_ext.route.default
    _entropy = torch.ops.poh_ext.routing_entropy.default
    _backward = torch.ops.poh_ext.route_backward.default
    _refuse = no_second_derivative("route (as routing_entropy)")
    torch.library.register_fake("poh_ext::route", _fake_route)
    torch.library.register_fake("poh_ext::routing_entropy", _fake_entropy)
    torch.library.register_fake("poh_ext::route_backward", _fake_backward)
    torch.library.register_autograd("poh_ext::route", _route_gradient, setup_context=_route_save)
    torch.library.register_autograd("poh_ext::routing_entropy", _entropy_gradient, setup_context=_entropy_save)
    torch.library.register_autograd("poh_ext::route_backward", _refuse)
    _backward_twin = Twin(_backward, fake=_fake_backward, backward=_refuse)
    _compiled_route = Twin(_route, fake=_fake_route, save=_route_save, backward=_route_gradient)
    _compiled_entropy = Twin(_entropy, fake=_fake_entropy, save=_entropy_save, backward=_entropy_gradient)
