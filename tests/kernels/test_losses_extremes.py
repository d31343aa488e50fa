"""multi_horizon_cross_entropy without terms, of strided arguments, of extreme logits, NaN and inf."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F

from poh_ext import cross_entropy, multi_horizon_cross_entropy
from tests.cases.backends import DTYPES, reference
from tests.cases.losses import compare, problem


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
    logits[2] = -9500  # near the -1e4 of a target that is not allowed
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


def test_masked_nan_does_not_count():
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


@pytest.mark.parametrize("backend", [contextlib.nullcontext, reference])
@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
@pytest.mark.parametrize("horizons", [1, 2])
def test_the_weight_of_a_class_that_is_no_target_does_not_count(value, mask, horizons, backend):
    """As 1 / bincount gives it. Only label smoothing looks at it. A mean over infinite weights is NaN, not 0."""
    logits, targets, kwargs = problem(mask=mask)
    targets[targets == 4] = 5
    found = []
    for other in (1.0, value):
        weight = torch.ones(11)
        weight[4] = other
        with backend():
            loss = multi_horizon_cross_entropy(logits, targets, horizons=horizons, weight=weight, **kwargs)
        found.append((loss.detach(), torch.autograd.grad(loss, logits)[0]))
    assert found[0][1].isfinite().all()
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    with backend():
        options = {"horizons": horizons, "weight": weight, **kwargs}
        if mask is None:
            assert not multi_horizon_cross_entropy(logits, targets, label_smoothing=0.1, **options).isfinite()
        targets[:, 2:5] = 4
        loss, metrics = multi_horizon_cross_entropy(logits, targets, return_metrics=True, **options)
        assert loss.isnan() and metrics.loss[0].isnan()
        assert multi_horizon_cross_entropy(logits, targets, reduction="position_mean", **options).isnan()


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


@pytest.mark.parametrize("scale", [-5001.0, -9999.0, -2e4, -1e6, 1e6])
@pytest.mark.parametrize("mask", ["valid", "candidates"])
@pytest.mark.parametrize("horizons", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_disallowed_classes_count_for_nothing_at_any_scale(scale, mask, horizons, dtype):
    """Far from 0, and among other logits that are much larger or not finite."""
    logits, targets, kwargs = problem(mask=mask)
    logits = (logits.detach() + scale).to(dtype)
    weight = torch.arange(1.0, 12.0, dtype=torch.float64)
    options = {"horizons": horizons, "label_smoothing": 0.1, "weight": weight, "z_loss": 1e-9, **kwargs}
    compare(logits.requires_grad_(), targets, **options)
    if horizons == 1:
        allowed = kwargs.get("valid")
        if allowed is None:
            allowed = (kwargs["candidates"].unsqueeze(-1) == torch.arange(11)).any(2)
        allowed = allowed | ~allowed.any(-1, keepdim=True)
        plain = multi_horizon_cross_entropy(logits, targets, **options)
        for other in (0.0, 1e9, math.inf, -math.inf, math.nan):
            changed = logits.detach().masked_fill(~allowed, other).requires_grad_()
            loss = multi_horizon_cross_entropy(changed, targets, **options)
            assert torch.equal(loss, plain)
            assert torch.equal(*(torch.autograd.grad(v, t, retain_graph=True)[0]
                                 for v, t in [(loss, changed), (plain, logits)]))  # fmt: skip


@pytest.mark.parametrize("mask", ["valid", "candidates"])
@pytest.mark.parametrize("top", [0.0, 3e4, -4999.0, -5001.0, -2e4, -1e30])
@pytest.mark.parametrize("more", [0, 20])
def test_closed_forms_of_low_logits(mask, top, more):
    """Two allowed classes, 1 apart (the same at 1e30), and `more` far below them; targets that are allowed and not."""
    allowed = [1, 2, *range(4, 4 + more)]
    logits = torch.zeros(1, 3, 40)
    logits[..., allowed] = min(top - 1000, 2 * top)
    logits[..., 1], logits[..., 2] = top, top - 1
    logits.requires_grad_()
    valid = torch.zeros(1, 3, 40, dtype=torch.bool)
    valid[..., allowed] = True
    kwargs = {"valid": valid} if mask == "valid" else {"candidates": torch.tensor(allowed).expand(1, 3, -1)}
    terms, metrics = multi_horizon_cross_entropy(logits, torch.tensor([[0, 1, 3]]), reduction="none",
                                                 return_metrics=True, **kwargs)  # fmt: skip
    gap = 1.0 if abs(top) < 1e9 else 0.0
    log_sum = math.log1p(math.exp(-gap))
    distance = 1e4 if top < -5000 else 1e4 + top
    assert terms[0, 0].item() == pytest.approx(log_sum, rel=1e-5)
    assert terms[0, 1].item() == pytest.approx(log_sum + distance, rel=1e-6)
    assert metrics.accuracy == 0.5
    (grad,) = torch.autograd.grad(terms.sum(), logits)
    p = math.exp(-log_sum)
    assert grad[0, 0, 1:3].tolist() == pytest.approx([p - 1, 1 - p], abs=1e-6)
    assert grad[0, 1, 1:3].tolist() == pytest.approx([p, 1 - p], abs=1e-6)  # no hit on the target
    assert grad[..., 3:].eq(0).all() and grad[..., 0].eq(0).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mask", ["valid", "candidates"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("many", [False, True])
def test_nan_and_inf_under_a_mask_are_those_of_the_allowed_logits(poison, mask, smoothing, dtype, many):
    """As F.cross_entropy of the allowed logits has them: in one of them, in the target, in all."""
    allowed = torch.arange(0, 40, 2) if many else torch.tensor([0, 4, 6])
    logits = torch.randn(1, 4, 40, generator=torch.Generator().manual_seed(0), dtype=dtype)
    logits[0, 0, 6], logits[0, 1, 4], logits[0, 2, allowed] = poison, poison, poison
    logits[0, :, 1::2] = 3 * poison
    logits.requires_grad_()
    valid = torch.zeros(1, 4, 40, dtype=torch.bool)
    valid[..., allowed] = True
    kwargs = {"valid": valid} if mask == "valid" else {"candidates": allowed.expand(1, 4, -1)}
    options = {"label_smoothing": smoothing, "reduction": "none"}
    got = multi_horizon_cross_entropy(logits, torch.tensor([[0, 4, 4, 6]]), **options, **kwargs)[0, :3, 0]
    places = torch.tensor([(allowed == y).nonzero().item() for y in (4, 4, 6)])
    want = F.cross_entropy(logits[0, :3, allowed], places, **options)
    torch.testing.assert_close(got, want, equal_nan=True)
    (want_grad,) = torch.autograd.grad(want.sum(), logits)
    (grad,) = torch.autograd.grad(got.sum(), logits)
    torch.testing.assert_close(grad, want_grad, equal_nan=True)


def test_a_mask_without_a_term_at_horizon_1_says_nothing():
    """Its row allows only -inf; the term at horizon 2 sees all logits."""
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, :2] = -math.inf
    logits.requires_grad_()
    candidates, rows = torch.tensor([[[0, 1]] * 3]), torch.tensor([[0, -1, -1]])
    loss = multi_horizon_cross_entropy(logits, torch.tensor([[0, -1, 2]]), horizons=2, rows=rows,
                                       candidates=candidates, ignore_index=-1)  # fmt: skip
    assert loss.item() == pytest.approx(math.log(2))
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad[0, 0], torch.tensor([0, 0, -0.5, 0.5]))


@pytest.mark.parametrize("backend", [contextlib.nullcontext, reference])
def test_a_class_without_weight_has_no_z_loss_either(backend):
    """Though the square of its log-sum-exp is infinite."""
    with backend():
        loss = cross_entropy(torch.tensor([[1e30, 0.0]]), torch.tensor([0]), [0.0, 1.0], reduction="none", z_loss=1e-3)
    assert loss.tolist() == [0.0]


@pytest.mark.parametrize("backend", [contextlib.nullcontext, reference])
@pytest.mark.parametrize("target, right", [(0, 0.0), (1, 1.0)])
def test_the_largest_of_allowed_logits_that_are_all_minus_infinity_is_allowed(target, right, backend):
    logits, valid = torch.tensor([[-math.inf, -math.inf, 1.0]]), torch.tensor([[False, True, False]])
    with backend():
        _, metrics = cross_entropy(logits, torch.tensor([target]), valid=valid, return_metrics=True)
    assert metrics.accuracy.item() == right


@pytest.mark.parametrize("backend", [contextlib.nullcontext, reference])
def test_offsets_beyond_every_target_cost_nothing(backend):
    logits, targets, kwargs = problem(mask=None)
    with backend():
        near = multi_horizon_cross_entropy(logits, targets, horizons=(1,), reduction="none", **kwargs)
        far = multi_horizon_cross_entropy(logits, targets, horizons=(1, 2**31 - 1), reduction="none", **kwargs)
    assert torch.equal(far[..., :1], near) and not far[..., 1].any()
