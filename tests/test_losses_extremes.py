"""multi_horizon_cross_entropy without terms, of strided arguments, of extreme logits, NaN and inf."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from loss_cases import compare, problem

from poh_ext import multi_horizon_cross_entropy


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "position_mean"])
@pytest.mark.parametrize("why", ["targets", "rows", "weights", "length", "batch", "no rows", "no classes"])
def test_no_term_gives_zero(reduction, why):
    logits, targets, kwargs = problem(mask="candidates")
    if why == "targets":
        targets.fill_(-1)
    elif why == "rows":
        kwargs["rows"].fill_(-1)
    elif why == "weights":
        kwargs["horizon_weights"] = [0.0]
    elif why == "length":
        targets, kwargs["rows"] = targets[:, :0], kwargs["rows"][:, :0]
    elif why == "batch":
        logits, targets = logits[:0], targets[:0]
        kwargs = {"ignore_index": -1} | {k: kwargs[k][:0] for k in ("rows", "candidates")}
    elif why == "no rows":
        logits = logits[:, :0]
        kwargs["rows"].fill_(-1)
        kwargs["candidates"] = kwargs["candidates"][:, :0]
    else:
        logits = logits[..., :0]
        targets.fill_(-1)
        kwargs["candidates"].fill_(-1)
    logits = logits.detach().requires_grad_()
    loss = multi_horizon_cross_entropy(logits, targets, reduction=reduction, **kwargs)
    assert loss.shape == ((*targets.shape, 1) if reduction == "none" else ())
    assert loss.eq(0).all()
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad.shape == logits.shape and grad.eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
def test_non_contiguous_arguments(dtype, mask):
    logits, targets, kwargs = problem(mask=mask, dtype=dtype)
    options = {"horizons": 2, "label_smoothing": 0.1, "ignore_index": kwargs.pop("ignore_index")}

    def strided(t):
        wide = torch.stack([t, t], -1)
        return wide[..., 0]

    plain = multi_horizon_cross_entropy(logits, targets, **options, **kwargs)
    odd = strided(logits.detach()).requires_grad_()
    assert not odd.is_contiguous()
    got = multi_horizon_cross_entropy(odd, strided(targets), **options, **{k: strided(v) for k, v in kwargs.items()})
    assert torch.equal(got, plain)
    (want,) = torch.autograd.grad(plain, logits)
    (grad,) = torch.autograd.grad(got, odd)
    assert torch.equal(grad, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [None, "valid"])
def test_extreme_logits(dtype, mask):
    big = {torch.float16: 6e4, torch.bfloat16: 1e30, torch.float32: 1e30, torch.float64: 1e30}[dtype]
    logits, targets, kwargs = problem(mask=mask, ignored=0, dtype=dtype)
    logits = logits.detach()
    logits[0] = big
    logits[1, :, ::2] = -big
    logits[2] = -9500  # allowed classes below the -1e4 of the others must still add up right
    compare(logits.requires_grad_(), targets, horizons=2, label_smoothing=0.1, **kwargs)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [5, 33, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_and_inf_propagate_as_in_eager(poison, smoothing, classes, dtype):
    logits = torch.randn(1, 4, classes, generator=torch.Generator().manual_seed(0), dtype=dtype)
    logits[0, 0, classes // 2] = poison  # not the target
    logits[0, 1, 3] = poison  # the target
    logits[0, 2] = poison
    logits.requires_grad_()
    targets = torch.tensor([[0, 1, 3, 2]])
    options = {"label_smoothing": smoothing, "reduction": "none"}
    want = F.cross_entropy(logits[0, :3], targets[0, 1:], **options)
    got = multi_horizon_cross_entropy(logits, targets, **options)[0, :3, 0]
    torch.testing.assert_close(got, want, equal_nan=True)
    (want_grad,) = torch.autograd.grad(want.sum(), logits)
    (grad,) = torch.autograd.grad(got.sum(), logits)
    torch.testing.assert_close(grad, want_grad, equal_nan=True)


def test_nan_in_rows_nobody_reads_stays_there():
    logits, targets, kwargs = problem(ignored=0)
    kwargs["rows"] = kwargs["rows"].clamp(max=4)
    kwargs["rows"][:, -1] = 5  # read by the last position, which has no term
    logits = logits.detach()
    logits[:, 5:] = math.nan
    logits.requires_grad_()
    loss = multi_horizon_cross_entropy(logits, targets, **kwargs)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and grad.isfinite().all() and grad[:, 5:].eq(0).all()


def test_masked_nan_is_replaced():
    logits, targets, kwargs = problem(mask="candidates", ignored=0)
    allowed = (kwargs["candidates"].unsqueeze(-1) == torch.arange(11)).any(2)
    allowed |= ~allowed.any(-1, keepdim=True)
    poisoned = logits.detach().masked_fill(~allowed, math.nan).requires_grad_()
    want = multi_horizon_cross_entropy(logits, targets, label_smoothing=0.1, **kwargs)
    got = multi_horizon_cross_entropy(poisoned, targets, label_smoothing=0.1, **kwargs)
    assert torch.equal(got, want)
    assert torch.equal(*(torch.autograd.grad(v, t)[0] for v, t in [(want, logits), (got, poisoned)]))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "position_mean"])
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
@pytest.mark.parametrize("horizons", [1, 2])
def test_targets_without_weight(reduction, mask, horizons):
    """No divisor is made up where the targets weigh nothing: a mean, and its gradient, is 0."""
    logits, targets, kwargs = problem(mask=mask)
    weight = torch.ones(11)
    weight[4] = 0
    options = {"weight": weight, "horizons": horizons, "label_smoothing": 0.1, "z_loss": 0.01, **kwargs}
    targets[:, 3] = 4  # of one position, so that the others still have a mean
    compare(logits, targets, reduction=reduction, **options)
    targets[targets >= 0] = 4
    compare(logits, targets, reduction=reduction, **options)
    loss, metrics = multi_horizon_cross_entropy(logits, targets, reduction=reduction, return_metrics=True, **options)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    is_mean = reduction in ("mean", "position_mean")
    assert loss.eq(0).all() == grad.eq(0).all() == is_mean
    assert metrics.loss.tolist() == [0] * horizons and metrics.accuracy.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_target_without_weight_beside_smoothing(dtype):
    logits = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]], dtype=dtype, requires_grad=True)
    options = {"weight": [0.0, 1.0], "label_smoothing": 0.1}
    targets = torch.tensor([[1, 0]])
    for reduction, want in [("mean", 0.0), ("position_mean", 0.0), ("sum", 0.05 * math.log1p(math.exp(-1)))]:
        loss = multi_horizon_cross_entropy(logits, targets, reduction=reduction, **options)
        assert loss.item() == pytest.approx(want, rel=1e-6)
    # Horizon 1 has a term without weight, horizon 2 none at all.
    _, metrics = multi_horizon_cross_entropy(logits, targets, horizons=2, return_metrics=True, **options)
    assert metrics.loss[0] == 0 and metrics.loss[1].isnan()
