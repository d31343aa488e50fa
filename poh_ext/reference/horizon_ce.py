"""Multi-horizon cross-entropy in plain PyTorch: the fallback, and the oracle of the kernels' tests.

Shapes are checked by poh_ext.losses; here stand only the checks that must look at the data.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED_LOGIT = -1e4  # what a class that is not allowed at horizon 1 gets instead of its logit

_CHECK_CUDA = os.environ.get("POH_EXT_CHECKS", "0") == "1"


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _readable(t: Tensor) -> bool:
    """True where looking at the values is possible (not under compile or vmap) and not a costly sync (CUDA)."""
    if torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(t):
        return False
    return not t.is_cuda or _CHECK_CUDA


def _raise_first(name: str, t: Tensor, bad: Tensor, what: str) -> None:
    if _readable(t) and bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        raise IndexError(f"{name}{place} is {int(t[tuple(place)])}, but {what}")


def check_indices(targets, rows, candidates, n_rows: int, n_classes: int, ignore_index: int) -> None:
    """Raise IndexError for the first target, row or candidate out of range; the kernels say the same."""
    ignored = f" (ignore_index is {ignore_index})"
    bad = ((targets < 0) | (targets >= n_classes)) & (targets != ignore_index)
    _raise_first("targets", targets, bad, f"there are {n_classes} classes{ignored}")
    if rows is not None:
        bad = ((rows < 0) | (rows >= n_rows)) & (rows != ignore_index)
        _raise_first("rows", rows, bad, f"there are {n_rows} rows{ignored}")
    if candidates is not None:
        bad = (candidates < -1) | (candidates >= n_classes)
        _raise_first("candidates", candidates, bad, f"there are {n_classes} classes (-1 pads)")


def gather_terms(targets: Tensor, rows: Tensor | None, horizons: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The class asked for by every term and whether the term occurs: int64 and bool [B, L, horizons].

    The class is 0 where the term does not occur, so that it can be used as an index.
    """
    # One column more than needed: unfold wants a window even where there is no position.
    padded = F.pad(targets, (0, horizons + 1), value=ignore_index)
    asked = padded[:, 1:].unfold(1, horizons, 1)[:, : targets.shape[1]]
    occurs = asked != ignore_index
    if rows is not None:
        occurs = occurs & (rows != ignore_index).unsqueeze(-1)
    return torch.where(occurs, asked, 0), occurs


def gather_rows(t: Tensor, rows: Tensor | None, length: int, ignore_index: int) -> Tensor:
    """t [B, N, ...] -> [B, length, ...]: the row each position reads (row 0 where the position is skipped)."""
    if rows is None:
        return t[:, :length]
    index = torch.where(rows == ignore_index, 0, rows)
    index = index.reshape(*index.shape, *[1] * (t.dim() - 2)).expand(*index.shape, *t.shape[2:])
    return t.gather(1, index)


def allowed_classes(valid, candidates, rows, length: int, n_classes: int, ignore_index: int) -> Tensor | None:
    """bool [B, length, V]: the classes allowed at horizon 1, all of them where none is; None without a mask."""
    if valid is not None:
        allowed = gather_rows(valid, rows, length, ignore_index)
    elif candidates is not None:
        listed = gather_rows(candidates, rows, length, ignore_index)
        # One class more than there are takes the padding, and is cut off again.
        index = torch.where(listed < 0, n_classes, listed)
        wide = torch.zeros(*listed.shape[:2], n_classes + 1, dtype=torch.bool, device=listed.device)
        allowed = wide.scatter(-1, index, True)[..., :n_classes]
    else:
        return None
    return allowed | ~allowed.any(-1, keepdim=True)


def reduce_terms(terms: Tensor, occurs: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    """Weight and reduce terms [B, L, K] (0 where they do not occur), see losses.multi_horizon_cross_entropy."""
    weight = occurs.to(terms.dtype)
    if weights is not None:
        weight = weight * weights.to(terms)
        terms = terms * weights.to(terms)
    if reduction == "none":
        return terms
    if reduction == "sum":
        return terms.sum()
    if reduction == "position_mean":
        count = occurs.sum(0).clamp(min=1).to(terms.dtype)
        terms, weight = terms / count, weight / count
    total = weight.sum()
    # No term, or none of weight: 0, not 0 / 0.
    return terms.sum() / torch.where(total == 0, 1, total)


def cross_entropy_terms(logits: Tensor, asked: Tensor, allowed: Tensor | None, label_smoothing: float) -> Tensor:
    """The unweighted loss of every term, [B, L, K]; logits [B, L, V] are those of the row each position reads."""

    def terms(logits, asked, allowed):
        logp = logits.log_softmax(-1)
        nll = -logp.gather(-1, asked)
        if label_smoothing == 0:
            return nll
        if allowed is None:
            smooth = -logp.sum(-1, keepdim=True) / logits.shape[-1]
        else:
            smooth = -torch.where(allowed, logp, 0).sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True)
        return (1 - label_smoothing) * nll + label_smoothing * smooth

    if allowed is None:
        return terms(logits, asked, None)
    first = terms(torch.where(allowed, logits, MASKED_LOGIT), asked[..., :1], allowed)
    if asked.shape[-1] == 1:
        return first
    return torch.cat([first, terms(logits, asked[..., 1:], None)], -1)


def horizon_ce(
    logits: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    valid: Tensor | None,
    candidates: Tensor | None,
    horizon_weights: Tensor | None,
    horizons: int,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """Arguments as in losses.multi_horizon_cross_entropy, checked there; any device, differentiable."""
    n_rows, n_classes = logits.shape[1:]
    check_indices(targets, rows, candidates, n_rows, n_classes, ignore_index)
    length = targets.shape[1]
    asked, occurs = gather_terms(targets, rows, horizons, ignore_index)
    if logits.numel() == 0 or length == 0:  # no row or no class, so (as checked) no term
        nothing = logits.sum().to(accumulate_dtype(logits.dtype)) * 0
        return reduce_terms(nothing + torch.zeros_like(asked, dtype=nothing.dtype), occurs, None, reduction)
    read = gather_rows(logits, rows, length, ignore_index).to(accumulate_dtype(logits.dtype))
    # A position without terms reads nothing: its NaN must reach neither the loss nor the gradient.
    read = torch.where(occurs.any(-1, keepdim=True), read, 0)
    allowed = allowed_classes(valid, candidates, rows, length, n_classes, ignore_index)
    terms = cross_entropy_terms(read, asked, allowed, label_smoothing)
    return reduce_terms(torch.where(occurs, terms, 0), occurs, horizon_weights, reduction)
