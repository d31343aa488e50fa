"""The definition of the multi-horizon loss, in float64, and problems to hold it against."""

import itertools

import torch
import torch.nn.functional as F

from poh_ext import multi_horizon_cross_entropy
from tests.cases.backends import tolerance


def truth(
    logits,
    targets,
    *,
    horizons=1,
    rows=None,
    label_smoothing=0.0,
    valid=None,
    candidates=None,
    horizon_weights=None,
    ignore_index=-100,
    reduction="mean",
    weight=None,
    z_loss=0.0,
    softcap=None,
    segments=None,
):
    """The definition, term by term: F.cross_entropy of the allowed logits with a class distribution over them."""
    batch, length = targets.shape
    classes = logits.shape[-1]
    offsets = range(1, horizons + 1) if isinstance(horizons, int) else horizons
    positions = length if rows is not None else min(length, logits.shape[1])
    weights = [1.0] * len(offsets) if horizon_weights is None else [float(w) for w in horizon_weights]
    weight = torch.ones(classes, dtype=torch.float64) if weight is None else weight.double()
    terms, shares = {}, {}
    for b, i, (k, offset) in itertools.product(range(batch), range(positions), enumerate(offsets, 1)):
        if i + offset >= length or targets[b, i + offset] == ignore_index:
            continue
        if segments is not None and segments[b, i] != segments[b, i + offset]:
            continue
        row = i if rows is None else int(rows[b, i])
        if row < 0:
            continue
        z, y = logits[b, row].double(), targets[b, i + offset]
        allowed = torch.ones(classes, dtype=torch.bool)
        if k == 1 and valid is not None and valid[b, row].any():
            allowed = valid[b, row]
        if k == 1 and candidates is not None and (candidates[b, row] >= 0).any():
            allowed = torch.tensor([c in candidates[b, row].tolist() for c in range(classes)])
        target = allowed.double() * (label_smoothing / int(allowed.sum()))
        target = target + (1 - label_smoothing) * F.one_hot(y, classes).double()
        if softcap is not None:
            z = softcap * torch.tanh(z / softcap)
        z = z[allowed]
        terms[b, i, k] = F.cross_entropy(z, target[allowed], weight=weight[allowed], reduction="sum")
        terms[b, i, k] += z_loss * weight[y] * z.logsumexp(-1) ** 2
        if not allowed[y]:  # its logit is -1e4, or 1e4 below the largest where that is below -5000
            top = z.max().detach()
            below = -1e4 - top if top >= -5000 else -1e4
            terms[b, i, k] += (1 - label_smoothing) * weight[y] * ((z - top).logsumexp(-1) - below)
        shares[b, i, k] = weight[y]
    if reduction == "none":
        out = torch.zeros(batch, positions, len(offsets), dtype=torch.float64)
        for (b, i, k), term in terms.items():
            out[b, i, k - 1] = weights[k - 1] * term
        return out
    nothing = logits.double().sum() * 0
    if reduction == "position_mean":
        places = {}
        for (b, i, k), term in terms.items():
            places.setdefault((i, k), []).append((term, shares[b, i, k]))
        places = {place: found for place, found in places.items() if any(s for _, s in found)}
        terms = {(0, i, k): sum(t for t, _ in found) / sum(s for _, s in found) for (i, k), found in places.items()}
        shares = dict.fromkeys(terms, 1.0)
    total = sum((weights[k - 1] * term for (_, _, k), term in terms.items()), nothing)
    if reduction == "sum":
        return total
    divisor = sum(weights[k - 1] * share for (_, _, k), share in shares.items())
    return total / divisor if divisor else nothing


def problem(
    batch=3,
    n=7,
    classes=11,
    length=6,
    *,
    mask=None,
    rows=True,
    ignored=0.2,
    ignore_index=-1,
    seed=0,
    dtype=torch.float64,
):
    """Random logits and targets, with duplicate and skipped rows, skipped targets and rows that allow no class."""
    g = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(batch, n, classes, generator=g, dtype=torch.float64)).to(dtype)
    targets = torch.randint(classes, (batch, length), generator=g)
    targets[torch.rand(targets.shape, generator=g) < ignored] = ignore_index
    kwargs = {"ignore_index": ignore_index}
    if rows:
        kwargs["rows"] = torch.randint(n, (batch, length), generator=g)
        kwargs["rows"][torch.rand(targets.shape, generator=g) < ignored] = min(ignore_index, -1)
    if mask == "valid":
        kwargs["valid"] = torch.rand(batch, n, classes, generator=g) < 0.4
        kwargs["valid"][:, ::3] = False
    if mask == "candidates":
        kwargs["candidates"] = torch.randint(-1, classes, (batch, n, 4), generator=g)
        kwargs["candidates"][:, ::3] = -1
    return logits.requires_grad_(), targets, kwargs


def compare(logits, targets, **kwargs):
    """Value and gradient equal those of the definition."""
    exact = logits.detach().double().requires_grad_()
    want = truth(exact, targets, **kwargs)
    got = multi_horizon_cross_entropy(logits, targets, **kwargs)
    assert got.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert got.shape == want.shape
    torch.testing.assert_close(got.double(), want, **tolerance(logits.dtype))
    upstream = torch.rand(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    (want_grad,) = torch.autograd.grad((want * upstream).sum(), exact)
    (grad,) = torch.autograd.grad((got * upstream.to(got.dtype)).sum(), logits)
    assert grad.dtype == logits.dtype
    torch.testing.assert_close(grad.double(), want_grad, **tolerance(logits.dtype, grad=True))
