"""What a user would write or import instead of poh_ext: the other side of every timing.

These are the fast eager forms. They are written separately from `poh_ext.reference`, which defines the results and
checks its input. Each takes the arguments of the poh_ext function that it is compared with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from poh_ext._optional import require

EXTRA = "gpu-bench"  # brings the packages of other projects, whose kernels are for GPUs


def take_rows(t, rows):
    """t [B, N, V], rows [B, L] -> [B, L, V], by index_select on the flattened rows, the fastest eager gather."""
    start = torch.arange(0, t.size(0) * t.size(1), t.size(1), device=t.device)[:, None]
    return t.flatten(0, 1).index_select(0, (rows.clamp_min(0) + start).flatten()).unflatten(0, rows.shape)


def eager_cross_entropy(logits, targets, *, horizons, rows=None, label_smoothing=0.0, candidates=None, valid=None):
    """Multi-horizon loss, vectorised: rows are gathered once, one log-sum-exp serves all horizons (mean, pad -1)."""
    read = logits[:, : targets.size(1)] if rows is None else take_rows(logits, rows)
    read = read.float() if read.dtype in (torch.float16, torch.bfloat16) else read
    live_rows = (targets if rows is None else rows) >= 0
    masked = candidates is not None or valid is not None
    if horizons > 1 or not masked:
        lse, mean = torch.logsumexp(read, -1), read.mean(-1)
    total = count = 0.0
    for k in range(1, horizons + 1):
        target = F.pad(targets[:, k:], (0, min(k, targets.size(1))), value=-1)
        live = (target >= 0) & live_rows
        index = target.clamp_min(0)[..., None]
        if k == 1 and masked:
            allowed = valid_mask(candidates, logits.size(-1)) if valid is None else valid
            allowed = allowed[:, : targets.size(1)] if rows is None else take_rows(allowed, rows)
            log_p = F.log_softmax(read.masked_fill(~allowed, -1e4), -1)
            smooth = -(log_p * allowed).sum(-1) / allowed.sum(-1)
            nll = -log_p.gather(-1, index)[..., 0]
        else:
            smooth = lse - mean
            nll = lse - read.gather(-1, index)[..., 0]
        term = (1 - label_smoothing) * nll + label_smoothing * smooth
        total = total + torch.where(live, term, 0).sum()
        count = count + live.sum()
    return total / count


def per_horizon_cross_entropy(logits, targets, *, horizons, rows=None, label_smoothing=0.0, candidates=None):
    """The plain loop: gather, mask and `F.cross_entropy` again for every horizon (mean over all terms, pad -1)."""
    total, count = 0.0, 0
    for k in range(1, horizons + 1):
        target = targets[:, k:]
        read = logits[:, : target.size(1)]
        if rows is not None:
            at = rows[:, : target.size(1)]
            target = target.where(at >= 0, -1)
            read = take_rows(logits, at)
        if k == 1 and candidates is not None:
            raise ValueError("F.cross_entropy smooths over all classes: no equal form with candidates")
        total = total + F.cross_entropy(
            read.flatten(0, 1), target.flatten(), ignore_index=-1, label_smoothing=label_smoothing, reduction="sum"
        )
        count = count + (target >= 0).sum()
    return total / count


def valid_mask(candidates: torch.Tensor, classes: int) -> torch.Tensor:
    """[B, N, C] candidate lists padded with -1 -> [B, N, classes] bool."""
    one_past = torch.zeros(*candidates.shape[:2], classes + 1, dtype=torch.bool, device=candidates.device)
    one_past.scatter_(2, candidates.where(candidates >= 0, classes), True)
    return one_past[..., :classes].contiguous()


def eager_linear_cross_entropy(hidden, weight, targets, **options):
    """The full logits, then the eager loss."""
    return eager_cross_entropy(F.linear(hidden, weight), targets, **options)


def torch_linear_cross_entropy(hidden, weight, targets, *, horizons, label_smoothing=0.0):
    """`F.linear_cross_entropy` once per horizon (PyTorch >= 2.13). Every row is read, so it has no `rows`."""
    total, count = 0.0, 0
    for k in range(1, horizons + 1):
        target = targets[:, k:].flatten()
        read = hidden[:, : targets.size(1) - k].flatten(0, 1)
        options = {"ignore_index": -1, "label_smoothing": label_smoothing, "reduction": "sum"}
        total = total + F.linear_cross_entropy(read, weight, target, **options)
        count = count + (target >= 0).sum()
    return total / count


def linear_then_cross_entropy(input, weight, target):
    """All logits, then torch's loss."""
    return F.cross_entropy(F.linear(input, weight), target)


def chunked_linear_cross_entropy(input, weight, target):
    """torch's own linear_cross_entropy in chunks of its choice (PyTorch >= 2.13)."""
    return F.linear_cross_entropy(input, weight, target, options=torch.nn.LinearCrossEntropyOptions())


def liger_cross_entropy(input, target, *, label_smoothing=0.0):
    """Liger-Kernel's. It writes the gradient over the logits that it is given, so it is given a copy."""
    functional = require("liger_kernel.transformers.functional", EXTRA)
    return functional.liger_cross_entropy(input.clone(), target, label_smoothing=label_smoothing)


def liger_linear_cross_entropy(input, weight, target):
    """Liger-Kernel's, by chunks of rows whose logits it forms."""
    functional = require("liger_kernel.transformers.functional", EXTRA)
    return functional.liger_fused_linear_cross_entropy(input, weight, target)


def cut_linear_cross_entropy(input, weight, target, *, filter_eps=None):
    """cut-cross-entropy's, which never forms logits; for half types.

    filter_eps: "high" (its default) leaves out what is small of the gradients, None nothing.
    """
    return require("cut_cross_entropy", EXTRA).linear_cross_entropy(input, weight, target, filter_eps=filter_eps)


def eager_route(logits, temperature):
    """Softmax weights and their entropy in nats."""
    log_p = F.log_softmax(logits / temperature, -1)
    weights = log_p.exp()
    return weights, -(weights * log_p).sum(-1)
