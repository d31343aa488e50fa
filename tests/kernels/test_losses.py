"""multi_horizon_cross_entropy against F.cross_entropy, one term at a time, in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from poh_ext import MultiHorizonCrossEntropy, multi_horizon_cross_entropy
from tests.cases.backends import DTYPES, KERNELS, needs_kernels
from tests.cases.losses import compare, problem


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "position_mean"])
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("horizons", [1, 3])
@pytest.mark.parametrize("rows", [True, False])
def test_equals_the_definition(reduction, mask, smoothing, horizons, rows):
    logits, targets, kwargs = problem(mask=mask, rows=rows)
    weights = None if horizons == 1 else [1.0, 0.5, 0.25]
    compare(
        logits,
        targets,
        horizons=horizons,
        label_smoothing=smoothing,
        reduction=reduction,
        horizon_weights=weights,
        **kwargs,
    )


@pytest.mark.parametrize("reduction", ["mean", "none", "position_mean"])
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
@pytest.mark.parametrize("horizons", [1, 2])
@pytest.mark.parametrize("ignore_index", [0, 5, -1, -100])
@pytest.mark.parametrize("weighted", [False, True])
def test_which_rows_are_skipped(reduction, mask, horizons, ignore_index, weighted):
    """-1 and a negative ignore_index are; an ignore_index that is a class leaves the row of its number alone."""
    logits, targets, kwargs = problem(mask=mask, ignore_index=ignore_index)
    if ignore_index >= 0:
        assert (kwargs["rows"] == ignore_index).any()
    kwargs["rows"][0, 1] = -1
    if weighted:
        kwargs["weight"] = torch.arange(1.0, 12.0, dtype=torch.float64)
    compare(logits, targets, horizons=horizons, label_smoothing=0.1, reduction=reduction, **kwargs)


def test_row_0_is_read_where_class_0_is_a_padding():
    logits = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets, rows = torch.tensor([[0, 2, 1, 0]]), torch.tensor([[0, 1, 0, 0]])
    loss, metrics = multi_horizon_cross_entropy(logits, targets, rows=rows, ignore_index=0, return_metrics=True)
    want = F.cross_entropy(logits[0], torch.tensor([2, 1]))
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(metrics.loss, want[None])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 64, 100, 1500])
def test_dtypes_and_widths(dtype, mask, classes):
    logits, targets, kwargs = problem(batch=2, classes=classes, mask=mask, dtype=dtype)
    compare(logits, targets, horizons=2, label_smoothing=0.1, **kwargs)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "position_mean"])
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
@pytest.mark.parametrize("extra", ["weight", "z_loss", "softcap", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_class_weight_z_loss_and_softcap(reduction, mask, extra, dtype):
    logits, targets, kwargs = problem(mask=mask, dtype=dtype)
    weight = torch.rand(11, generator=torch.Generator().manual_seed(2), dtype=dtype) + 0.1
    extras = {"weight": weight, "z_loss": 0.01, "softcap": 4.0}
    if extra != "all":
        extras = {extra: extras[extra]}
    compare(logits, targets, horizons=2, label_smoothing=0.1, reduction=reduction, **extras, **kwargs)


@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
def test_metrics(mask):
    logits, targets, kwargs = problem(mask=mask, batch=6, length=7, classes=4)
    logits = logits.detach().round().requires_grad_()  # with ties: the first class wins, as in argmax
    options = {"horizons": 9, "label_smoothing": 0.1, "horizon_weights": [2.0] * 9} | kwargs
    loss, metrics = multi_horizon_cross_entropy(logits, targets, return_metrics=True, **options)
    torch.testing.assert_close(loss, multi_horizon_cross_entropy(logits, targets, **options))
    assert loss.requires_grad and not metrics.accuracy.requires_grad and not metrics.loss.requires_grad
    for k in range(1, 10):
        options |= {"horizons": k, "horizon_weights": [0.0] * (k - 1) + [1.0]}
        want = multi_horizon_cross_entropy(logits, targets, **options)
        hits = []
        for b, i in itertools.product(range(6), range(7 - k)):
            row, y = kwargs["rows"][b, i], targets[b, i + k]
            if row < 0 or y < 0:
                continue
            z = logits[b, row].detach()
            if k == 1 and mask == "valid" and kwargs["valid"][b, row].any():
                z = z.masked_fill(~kwargs["valid"][b, row], -torch.inf)
            if k == 1 and mask == "candidates" and (kwargs["candidates"][b, row] >= 0).any():
                listed = [c in kwargs["candidates"][b, row].tolist() for c in range(4)]
                z = z.masked_fill(~torch.tensor(listed), -torch.inf)
            hits.append(float(z.argmax() == y))
        accuracy = sum(hits) / len(hits) if hits else math.nan
        assert metrics.accuracy[k - 1].item() == pytest.approx(accuracy, nan_ok=True)
        assert metrics.loss[k - 1].item() == pytest.approx(want.item() if hits else math.nan, nan_ok=True)


def test_plain_form_is_torch_cross_entropy():
    logits, targets, _ = problem(rows=False, ignore_index=-100)
    for reduction, smoothing in itertools.product(["mean", "sum"], [0.0, 0.3]):
        want = F.cross_entropy(
            logits[:, :5].flatten(0, 1), targets[:, 1:].flatten(), label_smoothing=smoothing, reduction=reduction
        )
        got = multi_horizon_cross_entropy(logits, targets, label_smoothing=smoothing, reduction=reduction)
        torch.testing.assert_close(got, want)


def test_closed_forms():
    uniform = torch.zeros(1, 2, 8, dtype=torch.float64)
    targets = torch.tensor([[0, 3]])
    assert multi_horizon_cross_entropy(uniform, targets).item() == pytest.approx(math.log(8))
    candidates = torch.tensor([[[3, 5, 3, -1], [-1, -1, -1, -1]]])
    loss = multi_horizon_cross_entropy(uniform, targets, candidates=candidates, label_smoothing=0.1)
    assert loss.item() == pytest.approx(math.log(2))  # a class listed twice counts once
    disallowed = multi_horizon_cross_entropy(uniform, targets, candidates=torch.tensor([[[5], [5]]]))
    assert disallowed.item() == pytest.approx(1e4)


@pytest.mark.parametrize("mask", ["valid", "candidates"])
def test_disallowed_logits_get_no_gradient_at_horizon_1(mask):
    logits, targets, kwargs = problem(mask=mask, ignored=0)
    (grad,) = torch.autograd.grad(multi_horizon_cross_entropy(logits, targets, label_smoothing=0.1, **kwargs), logits)
    allowed = kwargs.get("valid")
    if allowed is None:
        allowed = (kwargs["candidates"].unsqueeze(-1) == torch.arange(11)).any(2)
    allowed = allowed | ~allowed.any(-1, keepdim=True)
    assert grad[~allowed].eq(0).all()
    assert grad[allowed].ne(0).any()


def test_horizons_beyond_the_sequence_count_for_nothing():
    logits, targets, kwargs = problem(mask="valid")
    for reduction in ["mean", "sum", "position_mean"]:
        near = multi_horizon_cross_entropy(logits, targets, horizons=5, reduction=reduction, **kwargs)
        far = multi_horizon_cross_entropy(logits, targets, horizons=40, reduction=reduction, **kwargs)
        torch.testing.assert_close(far, near)
    assert multi_horizon_cross_entropy(logits, targets, horizons=40, reduction="none", **kwargs).shape == (3, 6, 40)


@pytest.mark.parametrize("reduction", ["mean", "none", "position_mean"])
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
def test_gradcheck(reduction, mask):
    logits, targets, kwargs = problem(batch=2, n=4, classes=5, length=5, mask=mask)

    def loss(z):
        return multi_horizon_cross_entropy(
            z, targets, horizons=2, label_smoothing=0.2, reduction=reduction, horizon_weights=[1.0, 0.5], **kwargs
        )

    assert torch.autograd.gradcheck(loss, (logits,))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_result_does_not_depend_on_threads(threads):
    logits, targets, kwargs = problem(batch=8, n=64, classes=300, length=64, mask="valid", dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (before, threads):
            torch.set_num_threads(count)
            loss = multi_horizon_cross_entropy(logits, targets, horizons=3, label_smoothing=0.1, **kwargs)
            results.append((loss, *torch.autograd.grad(loss, logits)))
    finally:
        torch.set_num_threads(before)
    if KERNELS:
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    else:
        torch.testing.assert_close(*results)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("mask", [None, "candidates"])
def test_compile_fullgraph(reduction, mask):
    logits, targets, kwargs = problem(mask=mask, dtype=torch.float32)

    def loss(z, y):
        return multi_horizon_cross_entropy(z, y, horizons=2, label_smoothing=0.1, reduction=reduction, **kwargs).sum()

    want = loss(logits, targets)
    got = torch.compile(loss, fullgraph=True)(logits, targets)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(v, logits)[0] for v in (got, want)))


def test_module_form():
    logits, targets, kwargs = problem(mask="valid")
    ignore = kwargs.pop("ignore_index")
    options = {
        "horizons": 3,
        "label_smoothing": 0.1,
        "horizon_weights": [1.0, 0.5, 0.1],
        "ignore_index": ignore,
        "reduction": "position_mean",
    }
    criterion = MultiHorizonCrossEntropy(**options)
    want = multi_horizon_cross_entropy(logits, targets, **options, **kwargs)
    torch.testing.assert_close(criterion(logits, targets, **kwargs), want)
    assert MultiHorizonCrossEntropy(weight=[1.0] * 11)(logits, targets.clamp(min=0)).isfinite()
    assert "horizons=3" in repr(criterion) and "horizon_weights" in dict(criterion.named_buffers())


def test_double_backward():
    logits, targets, kwargs = problem()
    (grad,) = torch.autograd.grad(multi_horizon_cross_entropy(logits, targets, **kwargs), logits, create_graph=True)
    if KERNELS:
        with pytest.raises(RuntimeError, match="second derivative"):
            grad.square().sum().backward()
    else:
        grad.square().sum().backward()


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
def test_opcheck(mask, dtype):
    logits, targets, kwargs = problem(mask=mask, dtype=dtype)
    masks = kwargs.get("valid"), kwargs.get("candidates")
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    weights = torch.tensor([1.0, 0.5], dtype=accumulate)
    weight = torch.rand(11, dtype=accumulate)
    for code in range(4):
        args = (logits, targets, kwargs["rows"], *masks, weights, weight, 2, 0.1, -1, code, 0.1, 5.0, code == 0)
        torch.library.opcheck(torch.ops.poh_ext.horizon_ce, args)
    args = (logits.detach(), targets, kwargs["rows"], *masks)
    _, lse, coefficients, _ = torch.ops.poh_ext.horizon_ce(*args, weights, weight, 2, 0.1, -1, 0, 0.0, 0.0, False)
    args = (torch.ones((), dtype=accumulate), *args, weight, lse, coefficients, 0.1, -1, 0.0, 0.0)
    torch.library.opcheck(torch.ops.poh_ext.horizon_ce_backward, args)
