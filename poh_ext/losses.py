"""Planning losses: cross-entropy at several horizons at once, as functions and as modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poh_ext.ops.horizon_ce import horizon_ce

__all__ = ["HorizonMetrics", "MultiHorizonCrossEntropy", "multi_horizon_cross_entropy"]

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_REDUCTIONS = ("mean", "sum", "none", "position_mean")


def _check_tensor(name: str, t, shape: tuple, dtypes: tuple, like: Tensor) -> None:
    """shape: ints are sizes, strings name free ones."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if t.dtype not in dtypes:
        accepted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be {accepted}, got {str(t.dtype).removeprefix('torch.')}")
    if t.dim() != len(shape) or any(not isinstance(s, str) and s != n for s, n in zip(shape, t.shape, strict=True)):
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name} must have shape [{expected}], got {list(t.shape)}")
    if t.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, as the first argument is, got {t.device}")


def _check_options(horizons, label_smoothing, ignore_index, reduction, z_loss, softcap) -> None:
    if isinstance(horizons, bool) or not isinstance(horizons, int):
        raise TypeError(f"horizons must be an int, got {type(horizons).__name__}")
    if horizons < 1:
        raise ValueError(f"horizons must be at least 1, got {horizons}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an int, got {type(ignore_index).__name__}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss must be at least 0, got {z_loss}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be positive, or None for no cap, got {softcap}")


def _check_weights(name: str, weights, shape: tuple, like: Tensor) -> Tensor | None:
    """Weights as a tensor of the dtype `like` is accumulated in, or None; sequences are accepted too."""
    if weights is None:
        return None
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if not isinstance(weights, Tensor):
        if not isinstance(weights, Sequence) or isinstance(weights, str):
            raise TypeError(f"{name} must be a tensor or a sequence of floats, got {type(weights).__name__}")
        weights = torch.tensor(weights, dtype=dtype, device=like.device)
    _check_tensor(name, weights, shape, _FLOATS, like)
    if weights.requires_grad:
        raise ValueError(
            f"{name} must not require a gradient: none is computed for it. "
            'Use reduction="none" and weight the terms yourself to learn the weights'
        )
    return weights.to(dtype)


class HorizonMetrics(NamedTuple):
    """What ``return_metrics=True`` adds to the loss, without gradients; NaN for horizons without terms."""

    accuracy: Tensor  # [K]: the share of terms whose target has the largest logit (at horizon 1: allowed logit)
    loss: Tensor  # [K]: the mean of the terms, without horizon_weights


def multi_horizon_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    horizons: int = 1,
    rows: Tensor | None = None,
    label_smoothing: float = 0.0,
    valid: Tensor | None = None,
    candidates: Tensor | None = None,
    horizon_weights: Tensor | Sequence[float] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    weight: Tensor | Sequence[float] | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_metrics: bool = False,
) -> Tensor | tuple[Tensor, HorizonMetrics]:
    """Cross-entropy of one sequence of logits against its targets 1, 2, ..., K steps ahead, in one pass.

    Position i at horizon k is asked for ``targets[:, i + k]``; a term (i, k) exists where ``i + k < L`` and
    neither its target nor its row is ``ignore_index``. All horizons of a row share one log-sum-exp.

    Args:
        logits: [B, N, V] float32, float64, bfloat16 or float16. Half types are accumulated in float32.
        targets: [B, L] int64, each in [0, V) or ``ignore_index``.
        horizons: K >= 1. K may exceed L - 1: horizons without terms count for nothing.
        rows: [B, L] int64, which of the N rows position i reads (a row may be read often), or ``ignore_index``
            to skip the position. None: row i, and then L <= N.
        label_smoothing: in [0, 1], the share of the target distribution spread evenly over the classes.
        valid: [B, N, V] bool, the classes allowed at horizon 1 of each row. There, the logits of all others
            become -1e4 and the smoothing is spread over the allowed ones; a row without any allows all.
            Horizons 2, 3, ... see the plain logits.
        candidates: [B, N, C] int64, the same set as a list, padded with -1. At most one of the two.
        horizon_weights: [K] floats, the weight of each horizon (default 1). It gets no gradient.
        ignore_index: as in ``F.cross_entropy``, here for targets and rows.
        reduction: "mean": sum of weighted terms / sum of their weights. "sum": of the weighted terms.
            "none": weighted terms, [B, L, K], 0 where skipped. "position_mean": the weighted mean, over the
            (i, k) that occur, of the mean over the batch. Without a term (or any weight) the result is 0.
        weight: [V] floats, a weight of each class, as in ``F.cross_entropy``: "mean" divides by the weights of
            the targets (times those of the horizons), "position_mean" weights the mean over the batch by them.
        z_loss: adds ``z_loss * lse**2`` to each term (times the weight of its target), where lse is the
            log-sum-exp its softmax divides by: it keeps the normaliser near 1 (PaLM, section 5, with 1e-4).
        softcap: replaces the logits z by ``softcap * tanh(z / softcap)`` first (Gemma 2). None: as they are.
        return_metrics: return (loss, :class:`HorizonMetrics`), at the cost of a few compares.

    Returns:
        A scalar, or [B, L, K] for "none". float64 for float64 logits, else float32: also for half types, as
        ``F.cross_entropy`` does under autocast, because a loss rounded to bfloat16 has no third digit. The
        gradient has the dtype of the logits.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, device or range.
        IndexError: a target, row or candidate out of range; names the first. (On CUDA only with
            POH_EXT_CHECKS=1, because looking costs a synchronisation; else by a device assert. Under
            torch.compile without the C++ kernels, by the bounds check of the compiled code.)

    Example:
        >>> logits = torch.randn(2, 9, 9, requires_grad=True)      # a policy over 9 cells, for each cell
        >>> path = torch.tensor([[0, 1, 2, 5], [8, 7, -1, -1]])    # cells on a path, padded
        >>> loss = multi_horizon_cross_entropy(logits, path, horizons=2, rows=path, ignore_index=-1)
        >>> loss.backward()

    With ``horizons=1``, ``rows=None`` and no mask it equals
    ``F.cross_entropy(logits[:, :L - 1].flatten(0, 1), targets[:, 1:].flatten(), ...)``.
    """
    _check_tensor("logits", logits, ("B", "N", "V"), _FLOATS, logits)
    _check_options(horizons, label_smoothing, ignore_index, reduction, z_loss, softcap)
    batch, n_rows, n_classes = logits.shape
    _check_tensor("targets", targets, (batch, "L"), (torch.int64,), logits)
    if rows is not None:
        _check_tensor("rows", rows, tuple(targets.shape), (torch.int64,), logits)
    elif targets.shape[1] > n_rows:
        raise ValueError(f"targets have {targets.shape[1]} positions but logits only {n_rows} rows: pass rows")
    if valid is not None:
        if candidates is not None:
            raise ValueError("valid and candidates say the same: give at most one of the two")
        _check_tensor("valid", valid, (batch, n_rows, n_classes), (torch.bool,), logits)
    elif candidates is not None:
        _check_tensor("candidates", candidates, (batch, n_rows, "C"), (torch.int64,), logits)
    horizon_weights = _check_weights("horizon_weights", horizon_weights, (horizons,), logits)
    weight = _check_weights("weight", weight, (n_classes,), logits)
    used = horizons
    if reduction != "none" and horizons >= targets.shape[1]:  # horizons without terms cost nothing
        used = max(targets.shape[1] - 1, 1)
        horizon_weights = None if horizon_weights is None else horizon_weights[:used]
    loss, measured = horizon_ce(
        logits, targets, rows, valid, candidates, horizon_weights, weight, used, label_smoothing, ignore_index,
        reduction, z_loss, softcap or 0.0, return_metrics,
    )  # fmt: skip
    if not return_metrics:
        return loss
    return loss, HorizonMetrics(*F.pad(measured, (0, horizons - used), value=math.nan).unbind())


class MultiHorizonCrossEntropy(nn.Module):
    """:func:`multi_horizon_cross_entropy` with its options fixed; horizon_weights and weight are buffers.

    Example:
        >>> criterion = MultiHorizonCrossEntropy(horizons=3, label_smoothing=0.1, ignore_index=-1)
        >>> loss = criterion(torch.randn(2, 9, 9), torch.randint(0, 9, (2, 5)))
    """

    def __init__(
        self,
        *,
        horizons: int = 1,
        label_smoothing: float = 0.0,
        horizon_weights: Tensor | Sequence[float] | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        weight: Tensor | Sequence[float] | None = None,
        z_loss: float = 0.0,
        softcap: float | None = None,
        return_metrics: bool = False,
    ):
        super().__init__()
        _check_options(horizons, label_smoothing, ignore_index, reduction, z_loss, softcap)
        self.options = {
            "horizons": horizons,
            "label_smoothing": label_smoothing,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "z_loss": z_loss,
            "softcap": softcap,
            "return_metrics": return_metrics,
        }
        for name, given, shape in (("horizon_weights", horizon_weights, (horizons,)), ("weight", weight, ("V",))):
            like = given if isinstance(given, Tensor) else torch.empty(0)
            self.register_buffer(name, _check_weights(name, given, shape, like))

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        *,
        rows: Tensor | None = None,
        valid: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> Tensor:
        return multi_horizon_cross_entropy(
            logits,
            targets,
            rows=rows,
            valid=valid,
            candidates=candidates,
            horizon_weights=self.horizon_weights,
            weight=self.weight,
            **self.options,
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
