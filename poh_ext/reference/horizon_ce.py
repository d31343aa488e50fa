"""Multi-horizon cross-entropy in plain PyTorch: the fallback, and the oracle of the kernels' tests.

Shapes are checked by poh_ext.losses; here stand only the checks that must look at the data.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_CHECK_CUDA = os.environ.get("POH_EXT_CHECKS", "0") == "1"


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def readable(t: Tensor) -> bool:
    """True where there are values to look at (not in compile, torch.func, on meta, fake) and no costly sync (CUDA)."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if t.is_meta or isinstance(t, FakeTensor):
        return False
    return not t.is_cuda or _CHECK_CUDA


def raise_first(name: str, t: Tensor, bad: Tensor, what: str, *values) -> None:
    """values: for the braces of `what`. They are put there late: a size that is a symbol would become a constant."""
    if readable(t) and bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        raise IndexError(f"{name}{place} is {int(t[tuple(place)])}, but {what.format(*values)}")


def skips_row(rows: Tensor, ignore_index: int) -> Tensor:
    """Where `rows` names no row but skips the position.

    It holds no classes: an ignore_index that could be one, as the number 0 of a padding, skips no row.
    """
    return rows == -1 if ignore_index >= 0 else (rows == -1) | (rows == ignore_index)


def check_targets(name: str, targets: Tensor, n_classes: int, ignore_index: int) -> None:
    bad = ((targets < 0) | (targets >= n_classes)) & (targets != ignore_index)
    raise_first(name, targets, bad, "there are {} classes (ignore_index is {})", n_classes, ignore_index)


def check_candidates(candidates: Tensor, n_classes: int) -> None:
    bad = (candidates < -1) | (candidates >= n_classes)
    raise_first("candidates", candidates, bad, "there are {} classes (-1 pads)", n_classes)


def check_indices(targets, rows, candidates, n_rows: int, n_classes: int, ignore_index: int) -> None:
    """Raise IndexError for the first target, row or candidate out of range; the kernels say the same."""
    check_targets("targets", targets, n_classes, ignore_index)
    if rows is not None:
        bad = ((rows < 0) | (rows >= n_rows)) & ~skips_row(rows, ignore_index)
        also = f", and so does the ignore_index {ignore_index}" if ignore_index < -1 else ""
        raise_first("rows", rows, bad, "there are {} rows (-1 skips a position{})", n_rows, also)
    if candidates is not None:
        check_candidates(candidates, n_classes)


def asked_table(
    targets: Tensor, segments: Tensor | None, offsets: Sequence[int], positions: int, ignore_index: int
) -> Tensor:
    """The class that each position asks for at each offset, [B, positions, K], ignore_index where there is none.

    targets and segments are [B, L], L >= positions. A target in another segment than its position is none.
    """
    # Offsets beyond every target need no more room than one. (Small ones are left: a symbolic L must not be compared.)
    offsets = [o if o < 1 << 16 else min(o, targets.shape[1]) for o in offsets]
    outside = max(0, positions + max(offsets) - targets.shape[1])
    # Not F.pad, which takes the value as a float: an ignore_index beyond 2^53 would become another number.
    wide = torch.cat([targets, targets.new_full((targets.shape[0], outside), ignore_index)], 1)
    table = torch.stack([wide[:, o : o + positions] for o in offsets], -1)
    if segments is None:
        return table
    wide = torch.cat([segments, segments.new_zeros(segments.shape[0], outside)], 1)
    same = torch.stack([wide[:, o : o + positions] == segments[:, :positions] for o in offsets], -1)
    return torch.where(same, table, ignore_index)


def gather_terms(targets: Tensor, rows: Tensor | None, horizons: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The class asked for by every term and whether the term occurs: int64 and bool [B, L, horizons].

    The class is 0 where the term does not occur, so that it can be used as an index. targets may be an asked_table.
    """
    if targets.dim() == 2:
        targets = asked_table(targets, None, range(1, horizons + 1), targets.shape[1], ignore_index)
    asked = targets
    occurs = asked != ignore_index
    if rows is not None:
        occurs = occurs & ~skips_row(rows, ignore_index).unsqueeze(-1)
    return torch.where(occurs, asked, 0), occurs


def gather_rows(t: Tensor, rows: Tensor | None, length: int, ignore_index: int) -> Tensor:
    """t [B, N, ...] -> [B, length, ...]: the row each position reads (row 0 where the position is skipped)."""
    if rows is None:
        return t[:, :length]
    index = torch.where(skips_row(rows, ignore_index), 0, rows)
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


def mean_of(total: Tensor, weight: Tensor) -> Tensor:
    """The mean of terms from their sum and their weight; 0 where there is no term, or none of weight."""
    return torch.where(weight == 0, 0, total / torch.where(weight == 0, 1, weight))


def reduce_terms(terms: Tensor, weight: Tensor, horizon_weights: Tensor | None, reduction: str) -> Tensor:
    """Weight and reduce terms [B, L, K], see losses.multi_horizon_cross_entropy.

    terms and weight, the class weight of the target of each, are 0 where no term occurs.
    """
    by_horizon = terms.new_ones(()) if horizon_weights is None else horizon_weights.to(terms)
    # A horizon of no weight counts for nothing, even where a term of it is infinite.
    weighed = terms if horizon_weights is None else torch.where(by_horizon == 0, 0, terms * by_horizon)
    if reduction == "none":
        return weighed
    if reduction == "sum":
        return weighed.sum()
    if reduction == "position_mean":
        total = weight.sum(0)
        weighed = mean_of(weighed.sum(0), total)
        weight = (total != 0).to(terms.dtype)
    return mean_of(weighed.sum(), (weight * by_horizon).sum())


def disallowed_below(top: Tensor) -> Tensor:
    """How far the logit of a target that is not allowed lies below top, the largest allowed logit.

    It is -1e4 or, below a top of -5000, top - 1e4; no gradient flows into it.
    """
    return torch.where(top < -5000, -1e4, -1e4 - top)


def cross_entropy_terms(
    logits: Tensor,
    asked: Tensor,
    allowed: Tensor | None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """The loss of every term, [B, L, K]; logits [B, L, V] are those of the row each position reads."""

    def terms(logits, asked, allowed):
        if allowed is not None:
            logits = torch.where(allowed, logits, -torch.inf)
        logp = logits.log_softmax(-1)
        weight = 1 if class_weight is None else class_weight[asked]
        loss = -logp.gather(-1, asked)
        if allowed is not None or z_loss != 0:
            # The log-sum-exp in two parts: their sum is too coarse to take the softmax of its gradient from.
            top = logits.detach().amax(-1, keepdim=True)
            log_sum = (logits - top).logsumexp(-1, keepdim=True)
        if allowed is not None:
            loss = torch.where(allowed.gather(-1, asked), loss, log_sum - disallowed_below(top))
        loss = loss * weight
        if label_smoothing != 0:
            every = -logp if class_weight is None else -logp * class_weight
            if allowed is None:
                smooth = every.sum(-1, keepdim=True) / logits.shape[-1]
            else:
                smooth = torch.where(allowed, every, 0).sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True)
            loss = (1 - label_smoothing) * loss + label_smoothing * smooth
        if z_loss != 0:
            lse = top + log_sum
            loss = loss + z_loss * weight * lse * lse  # in this order: its square may be infinite where the weight is 0
        return loss

    if allowed is None:
        return terms(logits, asked, None)
    first = terms(logits, asked[..., :1], allowed)
    if asked.shape[-1] == 1:
        return first
    return torch.cat([first, terms(logits, asked[..., 1:], None)], -1)


def measure(logits, asked, occurs, allowed, terms, weight) -> Tensor:
    """[3, K]: the share of terms whose target has the largest (allowed) logit, their mean loss, and their weight."""
    known = torch.where(logits.isnan(), -torch.inf, logits)  # to argmax a NaN is the largest
    correct = known.argmax(-1, keepdim=True) == asked
    if allowed is not None:
        first = torch.where(allowed, known, -torch.inf)
        largest = allowed & (first == first.amax(-1, keepdim=True))  # also where all allowed ones are -inf
        first = largest.to(torch.uint8).argmax(-1, keepdim=True) == asked[..., :1]
        correct = torch.cat([first, correct[..., 1:]], -1)
    correct = correct & ~logits.gather(-1, asked).isnan()
    correct = (correct & occurs).sum((0, 1)).to(terms.dtype)
    count = occurs.sum((0, 1))
    mean = torch.where(count == 0, torch.nan, mean_of(terms.sum((0, 1)), weight.sum((0, 1))))
    return torch.stack([correct / count, mean, weight.sum((0, 1))])


def loss_of_read(
    read: Tensor | None,
    nothing: Tensor,
    asked: Tensor,
    occurs: Tensor,
    allowed: Tensor | None,
    horizon_weights: Tensor | None,
    class_weight: Tensor | None,
    label_smoothing: float,
    reduction: str,
    z_loss: float,
    softcap: float,
    metrics: bool,
) -> tuple[Tensor, Tensor]:
    """Loss and metrics from the logits of the row each position reads.

    read is [B, L, V], or [B, L, K, V] where each horizon has logits of its own, in the dtype to accumulate in; or
    None where there is no row or no class and so (as checked) no term: then `nothing`, a 0 that depends on the
    inputs, stands for each.
    """
    z_loss, softcap = z_loss * 1.0, softcap * 1.0  # an int may be too large for a tensor
    if read is None:
        terms = torch.zeros_like(asked, dtype=accumulate_dtype(nothing.dtype)) + nothing
        unmeasured = terms.new_full((3, terms.shape[-1] if metrics else 0), torch.nan)
        unmeasured[2] = 0
        return reduce_terms(terms, torch.zeros_like(terms), None, reduction), unmeasured
    if softcap != 0:
        read = softcap * torch.tanh(read / softcap)
    if read.dim() == 3:
        parts = [(read, asked, occurs, allowed)]
    else:
        split = zip(read.unbind(2), asked.split(1, -1), occurs.split(1, -1), strict=True)
        parts = [(*part, allowed if k == 0 else None) for k, part in enumerate(split)]
    each, weights, measures = [], [], [read.new_empty(3, 0)]
    for z, asked, occurs, allowed in parts:
        if allowed is not None:
            allowed = allowed | ~occurs[..., :1]  # a mask without a term says nothing, not even NaN
        term = cross_entropy_terms(z, asked, allowed, class_weight, label_smoothing, z_loss)
        each.append(torch.where(occurs, term, 0))
        weights.append(occurs.to(z.dtype) if class_weight is None else torch.where(occurs, class_weight[asked], 0))
        if metrics:
            measures.append(measure(z.detach(), asked, occurs, allowed, each[-1].detach(), weights[-1]))
    loss = reduce_terms(torch.cat(each, -1), torch.cat(weights, -1), horizon_weights, reduction)
    return loss, torch.cat(measures, -1)


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
    """Arguments as in losses.multi_horizon_cross_entropy, checked there; any device, differentiable.

    targets may be an asked_table, too. softcap 0 is none. Returns the loss and measure(), which is [3, 0] without
    `metrics`.
    """
    n_rows, n_classes = logits.shape[1:]
    check_indices(targets, rows, candidates, n_rows, n_classes, ignore_index)
    length = targets.shape[1]
    asked, occurs = gather_terms(targets, rows, horizons, ignore_index)
    read = allowed = None
    if logits.numel() and length:
        read = gather_rows(logits, rows, length, ignore_index).to(accumulate_dtype(logits.dtype))
        # A position without terms reads nothing: its NaN must reach neither the loss nor the gradient.
        read = torch.where(occurs.any(-1, keepdim=True), read, 0)
        allowed = allowed_classes(valid, candidates, rows, length, n_classes, ignore_index)
    return loss_of_read(
        read, logits[:0].sum(), asked, occurs, allowed, horizon_weights, class_weight, label_smoothing, reduction,
        z_loss, softcap, metrics,
    )  # fmt: skip
