"""PyTorch reference of the routing ops: the fallback where no kernel is, and the oracle of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["route", "routing_entropy"]


def _scores(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tempered scores, largest of each row at 0, in the accumulation dtype; and their softmax."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    # As a number of their dtype it must be neither 0 nor infinite: 0 / 0 and -inf / inf are NaN.
    range_of = torch.finfo(scores.dtype)
    temperature = torch.sym_min(torch.sym_max(temperature, range_of.tiny), range_of.max)
    if scores.shape[-1]:  # amax has no answer for empty rows
        scores = (scores - scores.detach().amax(-1, keepdim=True)) / temperature
    return scores, scores.softmax(-1)


def _entropy(scores: Tensor, weights: Tensor) -> Tensor:
    """lse - sum p z, which needs no log p. Both terms are >= 0 on shifted scores, so the entropy is too."""
    # A score of -inf has p = 0, and 0 * -inf is NaN: its term is 0, in the forward and in the gradient.
    finite = scores.masked_fill(scores == -torch.inf, 0)
    return scores.logsumexp(-1) - (weights * finite).sum(-1)


def route(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scores, weights = _scores(logits, temperature)
    return weights.to(logits.dtype), _entropy(scores, weights).to(logits.dtype)


def routing_entropy(logits: Tensor, temperature: float, reduction: str) -> Tensor:
    entropy = _entropy(*_scores(logits, temperature))
    if reduction == "mean":
        # As with cross_entropy over no terms here: 0, not NaN.
        entropy = entropy.mean() if entropy.numel() else entropy.sum()
    elif reduction == "sum":
        entropy = entropy.sum()
    return entropy.to(logits.dtype)
