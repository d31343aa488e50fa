"""Soft choice among heads: softmax weights and their entropy, fused and differentiable."""

from __future__ import annotations

import math
from numbers import Real

from torch import Tensor

from poh_ext._checks import FLOATS, check_whole
from poh_ext.ops import routing as ops

__all__ = ["route", "routing_entropy"]

# The sum of weights of heads is 1 up to this: weights may have been averaged and saved in bfloat16, whose steps near 1
# are 0.004.
SUM_TOLERANCE = 0.02
_REDUCTIONS = ("mean", "sum", "none")


def _check(logits: Tensor, temperature: float) -> float:
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a tensor, got {type(logits).__name__}")
    check_whole("logits", logits)
    if logits.dtype not in FLOATS:
        raise TypeError(f"logits must be float32, float64, bfloat16 or float16, got {logits.dtype}")
    if logits.dim() < 1 or logits.shape[-1] < 1:
        raise ValueError(f"logits must have shape [..., H] with H >= 1, got {tuple(logits.shape)}")
    if isinstance(temperature, bool) or not isinstance(temperature, Real):
        raise TypeError(f"temperature must be a number, got {type(temperature).__name__}")
    if not 0 < temperature < math.inf:  # not math.isfinite: a compiled graph may hold the number as a symbol
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    return float(temperature)


def route(logits: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Softmax weights over the last dimension and their entropy, in one pass forward and one backward.

    With z = logits / temperature, weights = softmax(z) and entropy = -sum(weights * ln(weights)). The entropy is
    computed as logsumexp(z) - sum(weights * z), which takes no logarithm of zero. A logit of -inf has weight 0 and
    adds nothing to the entropy. NaN, +inf and rows of -inf alone give NaN, as softmax does.

    Args:
        logits: [..., H], float32, float64, bfloat16 or float16. Sums run in float32 (float64 for float64).
        temperature: positive number. Above 1 it flattens the weights, below 1 it sharpens them.

    Returns:
        weights [..., H] and entropy [...] in nats, both in the dtype of logits and differentiable.

    Raises:
        TypeError: logits is not a tensor of one of these dtypes, or temperature is not a number.
        ValueError: logits has no last dimension or an empty one, or temperature is not positive and finite.

    Examples:
        >>> weights, entropy = poh_ext.route(torch.zeros(2, 4))
        >>> weights[0], entropy[0]                  # uniform over 4 heads: ln 4 nats
        (tensor([0.2500, 0.2500, 0.2500, 0.2500]), tensor(1.3863))
    """
    return ops.route(logits, _check(logits, temperature))


def routing_entropy(logits: Tensor, *, temperature: float = 1.0, reduction: str = "mean") -> Tensor:
    """Entropy in nats of softmax(logits / temperature) over the last dimension, as in `route`.

    The weights are not written to memory. "mean" and "sum" reduce in the same pass, in an order that does not depend
    on the number of threads.

    Args:
        logits: [..., H], float32, float64, bfloat16 or float16.
        temperature: positive number.
        reduction: "mean" over all leading dimensions (0 if there are no rows), "sum", or "none".

    Returns:
        A scalar, or [...] for "none", in the dtype of logits and differentiable.

    Raises:
        TypeError, ValueError: under the same conditions as `route`; ValueError also for an unknown reduction.

    Examples:
        >>> poh_ext.routing_entropy(torch.zeros(32, 144, 6))
        tensor(1.7918)
    """
    temperature = _check(logits, temperature)
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    return ops.routing_entropy(logits, temperature, reduction)
