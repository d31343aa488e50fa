"""Drop-in forms of torch's cross-entropies, on the kernels of the planning losses: one horizon, which is 0."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from poh_ext._checks import (
    FLOATS,
    INDICES,
    autocast_together,
    autocasts,
    check_one_mask,
    check_options,
    check_tensor,
    check_weights,
    check_whole,
    listed,
    named_by_its_place,
)
from poh_ext._options import ClassOptions
from poh_ext.losses import HorizonMetrics, metrics_of
from poh_ext.ops.horizon_ce import horizon_ce
from poh_ext.ops.horizon_linear_ce import horizon_linear_ce

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["cross_entropy", "linear_cross_entropy"]

_REDUCTIONS = ("mean", "sum", "none")
_said = False


@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | Sequence[float] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    return_metrics: Literal[False] = False,
    **options: Unpack[ClassOptions],
) -> Tensor: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | Sequence[float] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    return_metrics: Literal[True],
    **options: Unpack[ClassOptions],
) -> tuple[Tensor, HorizonMetrics]: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | Sequence[float] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    return_metrics: bool,
    **options: Unpack[ClassOptions],
) -> Tensor | tuple[Tensor, HorizonMetrics]: ...
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | Sequence[float] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    valid: Tensor | None = None,
    candidates: Tensor | None = None,
    return_metrics: bool = False,
) -> Tensor | tuple[Tensor, HorizonMetrics]:
    """``F.cross_entropy``, fused: the same arguments, values, gradients and dtypes, in one pass over the logits.

    One thing differs: where every target is ignored or of weight 0, "mean" is 0 with gradients of 0, and not NaN; and
    an ignored row has a gradient of 0 whatever its logits are, NaN too.

    Args:
        input: logits (C), (N, C) or (N, C, d1, ...), float32, float64, bfloat16 or float16. Half types are accumulated
            in float32. (N, C) is the fast form: others are copied to it.
        target: int64 or int32 classes in [0, C), or ``ignore_index``, of shape (), (N) or (N, d1, ...). Probabilities
            of classes, in the shape and dtype of ``input``, go to ``F.cross_entropy`` itself, which is said once.
        weight: [C] floats, not negative, a weight of each class. It gets no gradient.
        ignore_index: the target that is skipped.
        reduction: "mean" (over the weights of the targets), "sum", or "none".
        label_smoothing: in [0, 1].
        z_loss: adds ``z_loss * logsumexp**2`` to each term (times the weight of its target), as PaLM did with 1e-4.
        softcap: replaces the logits z by ``softcap * tanh(z / softcap)`` first (Gemma 2).
        valid: bool, of the shape of ``input``: the classes that are allowed. Softmax and smoothing run over them alone.
        candidates: the same as a list, int64 (n), (N, n) or (N, n, d1, ...), padded with -1. Give at most one of the
            two. More in `multi_horizon_cross_entropy`.
        return_metrics: return (loss, `HorizonMetrics`), whose fields have one element.

    Returns:
        A scalar, or the shape of ``target`` for "none", in the dtype of ``input`` (float32 under autocast).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
        IndexError: a target or candidate is out of range; as `multi_horizon_cross_entropy` on CUDA.

    Examples:
        >>> logits, labels = torch.randn(8, 1000, requires_grad=True), torch.randint(1000, (8,))
        >>> poh_ext.cross_entropy(logits, labels).backward()        # was: F.cross_entropy(logits, labels).backward()
    """
    ignore_index = _check(ignore_index, reduction, label_smoothing, z_loss, softcap, return_metrics)
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a tensor, got {type(input).__name__}")
    if input.dim() == 0:
        raise ValueError("input must have shape [C], [N, C] or [N, C, d1, ...], got []")
    check_tensor("input", input, tuple(input.shape), FLOATS, input)
    axis = min(1, input.dim() - 1)
    weights = check_weights("weight", weight, (input.shape[axis],), input)
    if isinstance(target, Tensor) and target.is_floating_point():
        _refuse(z_loss=z_loss, softcap=softcap, valid=valid, candidates=candidates, return_metrics=return_metrics)
        return _of_probabilities(input, target, weights, ignore_index, reduction, label_smoothing)
    asked = _asked(target, valid, candidates, tuple(input.shape), axis, input)
    rows = input.movedim(axis, -1).reshape(*asked.targets.shape[:2], input.shape[axis])
    options = (1, label_smoothing, ignore_index, reduction, z_loss, softcap or 0.0, return_metrics)
    with named_by_its_place("target", target, input.shape[axis], ignore_index, candidates):
        loss, measured = horizon_ce(rows, asked.targets, None, asked.valid, asked.candidates, None, weights, *options)
    return _finish(loss, measured, target, input, return_metrics)


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | Sequence[float] | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    return_metrics: Literal[False] = False,
    **options: Unpack[ClassOptions],
) -> Tensor: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | Sequence[float] | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    return_metrics: Literal[True],
    **options: Unpack[ClassOptions],
) -> tuple[Tensor, HorizonMetrics]: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | Sequence[float] | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    return_metrics: bool,
    **options: Unpack[ClassOptions],
) -> Tensor | tuple[Tensor, HorizonMetrics]: ...
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | Sequence[float] | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    valid: Tensor | None = None,
    candidates: Tensor | None = None,
    return_metrics: bool = False,
) -> Tensor | tuple[Tensor, HorizonMetrics]:
    """``cross_entropy(F.linear(input, linear_weight, linear_bias), target, ...)``, without forming all logits.

    Names, values, gradients and dtypes are those of ``F.linear_cross_entropy`` (torch 2.13), whose ``options`` on how
    to divide its work there are none of. The logits of a chunk of rows exist at a time. With ``candidates``, only the
    columns of the candidates are computed.

    Args:
        input: [..., D] states before the head, float32, float64, bfloat16 or float16. Under autocast, input,
            linear_weight and linear_bias are cast together, as F.linear casts.
        linear_weight: [C, D], of the dtype of ``input``.
        target: [...] int64 or int32 classes in [0, C), or ``ignore_index``.
        linear_bias: [C], of the dtype of ``input``, or None.
        valid, candidates: [..., C] bool, or [..., n] int64 padded with -1, as in `cross_entropy`.
        weight, ignore_index, reduction, label_smoothing, z_loss, softcap, return_metrics: as in
            `cross_entropy`. ``ignore_index=None`` is -100, as in torch.

    Returns:
        The same as `cross_entropy`.

    Raises:
        TypeError, ValueError, IndexError: under the same conditions as `cross_entropy`.

    Examples:
        >>> hidden, head = torch.randn(4, 16, 32), torch.nn.Linear(32, 1000)
        >>> labels = torch.randint(1000, (4, 16))
        >>> poh_ext.linear_cross_entropy(hidden, head.weight, labels, head.bias).backward()
    """
    ignore_index = _check(
        -100 if ignore_index is None else ignore_index, reduction, label_smoothing, z_loss, softcap, return_metrics
    )
    given = input
    input, linear_weight, linear_bias = autocast_together(input, linear_weight, linear_bias)
    check_tensor("linear_weight", linear_weight, ("C", "D"), FLOATS, linear_weight)
    classes, width = linear_weight.shape
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a tensor, got {type(input).__name__}")
    if input.dim() == 0 or input.shape[-1] != width:
        raise ValueError(
            f"input {list(input.shape)} and linear_weight {list(linear_weight.shape)} must have the same "
            "number of features D, in their last dimension: linear_weight is [C, D], as in nn.Linear"
        )
    check_tensor("input", input, tuple(input.shape), (linear_weight.dtype,), linear_weight)
    if linear_bias is not None:
        check_tensor("linear_bias", linear_bias, (classes,), (linear_weight.dtype,), linear_weight)
    weights = check_weights("weight", weight, (classes,), input)
    if isinstance(target, Tensor) and target.is_floating_point():
        _refuse(z_loss=z_loss, softcap=softcap, valid=valid, candidates=candidates, return_metrics=return_metrics)
        logits = F.linear(input, linear_weight, linear_bias)
        check_tensor("target", target, tuple(logits.shape), FLOATS, logits)
        flat = (logits, target) if logits.dim() < 3 else (logits.flatten(0, -2), target.flatten(0, -2))
        loss = _of_probabilities(*flat, weights, ignore_index, reduction, label_smoothing)
        return loss.reshape(logits.shape[:-1]) if reduction == "none" else loss
    asked = _asked(target, valid, candidates, (*input.shape[:-1], classes), input.dim() - 1, input)
    rows = input.reshape(*asked.targets.shape[:2], width)
    options = (1, label_smoothing, ignore_index, reduction, z_loss, softcap or 0.0, return_metrics)
    with named_by_its_place("target", target, classes, ignore_index, candidates):
        loss, measured = horizon_linear_ce(
            rows,
            linear_weight,
            linear_bias,
            asked.targets,
            None,
            asked.valid,
            asked.candidates,
            None,
            weights,
            *options,
        )
    return _finish(loss, measured, target, given, return_metrics)


class _Asked(NamedTuple):
    """targets [B, N, 1], valid [B, N, C] and candidates [B, N, n], as the backends take them."""

    targets: Tensor
    valid: Tensor | None
    candidates: Tensor | None


def _asked(target, valid, candidates, shape: tuple[int, ...], axis: int, like: Tensor) -> _Asked:
    """From the arguments, whose classes are counted along `axis` of `shape`, and which are checked here."""
    before, classes, after = shape[:axis], shape[axis], shape[axis + 1 :]
    check_tensor("target", target, (*before, *after), INDICES, like)
    if classes == 0 and target.numel():
        raise ValueError(f"{'input' if like.shape == shape else 'linear_weight'} must have a class at least, got none")
    check_one_mask(valid, candidates)
    batch, length = _split(target.shape)
    if valid is not None:
        check_tensor("valid", valid, shape, (torch.bool,), like)
        valid = valid.movedim(axis, -1).reshape(batch, length, classes)
    if candidates is not None:
        check_tensor("candidates", candidates, (*before, "n", *after), INDICES, like)
        lists = candidates.long().movedim(axis, -1)
        candidates = listed(lists.reshape(batch, length, lists.shape[-1]))
    return _Asked(target.long().reshape(batch, length, 1), valid, candidates)


def _split(shape: Sequence[int]) -> tuple[int, int]:
    """B and N of the [B, N] that the kernels are given for targets of `shape`.

    Sequences of any length would do. The kernels do some sums over both: neither is to be long.
    """
    number = math.prod(shape)
    if torch.compiler.is_compiling():  # the sizes may be symbols, which have no divisors to look for
        return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, number)
    batch = math.gcd(number, 64) or 1
    return batch, number // batch


def _check(ignore_index, reduction, label_smoothing, z_loss, softcap, return_metrics) -> int:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    return check_options(1, label_smoothing, ignore_index, reduction, z_loss, softcap, return_metrics).ignore_index


def _refuse(**given) -> None:
    """Options that F.cross_entropy, which serves targets that are probabilities, does not have."""
    for name, value in given.items():
        if value is not None and value is not False and not (isinstance(value, (float, int)) and value == 0):
            raise ValueError(f"{name} needs targets that are classes, got probabilities of classes")


def _of_probabilities(logits, target, weights, ignore_index, reduction, label_smoothing) -> Tensor:
    global _said
    check_whole("target", target)
    if target.shape != logits.shape:
        raise ValueError(
            f"target of dtype {target.dtype} must be probabilities in the shape of input, {list(logits.shape)}, got "
            f"{list(target.shape)}; classes are int64 or int32"
        )
    if not _said:
        _said = True
        warnings.warn(
            "poh_ext: F.cross_entropy computes for targets that are probabilities, slower", RuntimeWarning, stacklevel=3
        )
    return F.cross_entropy(
        logits,
        target,
        None if weights is None else weights.to(logits.dtype),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def _finish(loss: Tensor, measured: Tensor, target: Tensor, given: Tensor, return_metrics: bool):
    loss = loss if autocasts(given.device.type) else loss.to(given.dtype)
    loss = loss.reshape(target.shape) if loss.dim() else loss
    return (loss, metrics_of(measured, None, 1)) if return_metrics else loss
