"""Linear multi-horizon cross-entropy in plain PyTorch: gathers the rows read, then the reference of the dense form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from poh_ext.reference.horizon_ce import (
    accumulate_dtype,
    allowed_classes,
    check_indices,
    gather_rows,
    gather_terms,
    loss_of_read,
)


def horizon_linear_ce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
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
    """Arguments as in losses.multi_horizon_linear_cross_entropy, checked there; [B, L, V] logits at most.

    targets and softcap as in horizon_ce. Returns the loss and the metrics [3, K], [3, 0] without `metrics`.
    """
    n_rows, n_classes, length = hidden.shape[1], weight.shape[0], targets.shape[1]
    check_indices(targets, rows, candidates, n_rows, n_classes, ignore_index)
    asked, occurs = gather_terms(targets, rows, horizons, ignore_index)
    read = None
    if hidden.shape[0] * n_rows * n_classes * length > 0:
        state = gather_rows(hidden, rows, length, ignore_index)
        is_read = occurs.any(-1, keepdim=True) if hidden.dim() == 3 else occurs.unsqueeze(-1)
        read = F.linear(torch.where(is_read, state, 0), weight, bias).to(accumulate_dtype(hidden.dtype))
    allowed = allowed_classes(valid, candidates, rows, length, n_classes, ignore_index) if read is not None else None
    nothing = hidden[:0].sum() + weight[:0].sum()
    nothing = nothing if bias is None else nothing + bias[:0].sum()
    return loss_of_read(
        read, nothing, asked, occurs, allowed, horizon_weights, class_weight, label_smoothing, reduction, z_loss,
        softcap, metrics,
    )  # fmt: skip
