"""multi_horizon_cross_entropy against F.cross_entropy, one term at a time, in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, KERNELS, needs_kernels, tolerance

from poh_ext import MultiHorizonCrossEntropy, multi_horizon_cross_entropy


def truth(logits, targets, *, horizons=1, rows=None, label_smoothing=0.0, valid=None, candidates=None,
          horizon_weights=None, ignore_index=-100, reduction="mean", weight=None, z_loss=0.0, softcap=None):
    """The definition, term by term. Masked smoothing is F.cross_entropy with a class distribution."""
    batch, length = targets.shape
    classes = logits.shape[-1]
    weights = [1.0] * horizons if horizon_weights is None else [float(w) for w in horizon_weights]
    weight = torch.ones(classes, dtype=torch.float64) if weight is None else weight.double()
    terms, shares = {}, {}
    for b, i, k in itertools.product(range(batch), range(length), range(1, horizons + 1)):
        if i + k >= length or targets[b, i + k] == ignore_index:
            continue
        row = i if rows is None else int(rows[b, i])
        if rows is not None and row == ignore_index:
            continue
        z, y = logits[b, row].double(), targets[b, i + k]
        allowed = torch.ones(classes, dtype=torch.bool)
        if k == 1 and valid is not None and valid[b, row].any():
            allowed = valid[b, row]
        if k == 1 and candidates is not None and (candidates[b, row] >= 0).any():
            allowed = torch.tensor([c in candidates[b, row].tolist() for c in range(classes)])
        target = allowed.double() * (label_smoothing / int(allowed.sum()))
        target = target + (1 - label_smoothing) * F.one_hot(y, classes).double()
        if softcap is not None:
            z = softcap * torch.tanh(z / softcap)
        z = z.masked_fill(~allowed, -1e4)
        terms[b, i, k] = F.cross_entropy(z, target, weight=weight, reduction="sum")
        terms[b, i, k] += z_loss * weight[y] * z.logsumexp(-1) ** 2
        shares[b, i, k] = weight[y]
    if reduction == "none":
        out = torch.zeros(batch, length, horizons, dtype=torch.float64)
        for (b, i, k), term in terms.items():
            out[b, i, k - 1] = weights[k - 1] * term
        return out
    nothing = logits.double().sum() * 0
    if reduction == "position_mean":
        places = {}
        for (b, i, k), term in terms.items():
            places.setdefault((i, k), []).append((term, shares[b, i, k]))
        terms = {(0, i, k): sum(t for t, _ in found) / sum(s for _, s in found) for (i, k), found in places.items()}
        shares = dict.fromkeys(terms, 1.0)
    total = sum((weights[k - 1] * term for (_, _, k), term in terms.items()), nothing)
    if reduction == "sum":
        return total
    divisor = sum(weights[k - 1] * share for (_, _, k), share in shares.items())
    return total / divisor if divisor else nothing


def problem(batch=3, n=7, classes=11, length=6, *, mask=None, rows=True, ignored=0.2, ignore_index=-1, seed=0,
            dtype=torch.float64):
    """Random logits and targets, with duplicate and skipped rows, skipped targets and rows that allow no class."""
    g = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(batch, n, classes, generator=g, dtype=torch.float64)).to(dtype)
    targets = torch.randint(classes, (batch, length), generator=g)
    targets[torch.rand(targets.shape, generator=g) < ignored] = ignore_index
    kwargs = {"ignore_index": ignore_index}
    if rows:
        kwargs["rows"] = torch.randint(n, (batch, length), generator=g)
        kwargs["rows"][torch.rand(targets.shape, generator=g) < ignored] = ignore_index
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


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "position_mean"])
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("horizons", [1, 3])
@pytest.mark.parametrize("rows", [True, False])
def test_equals_the_definition(reduction, mask, smoothing, horizons, rows):
    logits, targets, kwargs = problem(mask=mask, rows=rows)
    weights = None if horizons == 1 else [1.0, 0.5, 0.25]
    compare(logits, targets, horizons=horizons, label_smoothing=smoothing, reduction=reduction,
            horizon_weights=weights, **kwargs)


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
        want = F.cross_entropy(logits[:, :5].flatten(0, 1), targets[:, 1:].flatten(),
                               label_smoothing=smoothing, reduction=reduction)
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


@pytest.mark.parametrize("reduction", ["mean", "none", "position_mean"])
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
def test_gradcheck(reduction, mask):
    logits, targets, kwargs = problem(batch=2, n=4, classes=5, length=5, mask=mask)

    def loss(z):
        return multi_horizon_cross_entropy(z, targets, horizons=2, label_smoothing=0.2, reduction=reduction,
                                           horizon_weights=[1.0, 0.5], **kwargs)

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
    options = {"horizons": 3, "label_smoothing": 0.1, "horizon_weights": [1.0, 0.5, 0.1], "ignore_index": ignore,
               "reduction": "position_mean"}
    criterion = MultiHorizonCrossEntropy(**options)
    want = multi_horizon_cross_entropy(logits, targets, **options, **kwargs)
    torch.testing.assert_close(criterion(logits, targets, **kwargs), want)
    assert MultiHorizonCrossEntropy(weight=[1.0] * 11)(logits, targets.clamp(min=0)).isfinite()
    assert "horizons=3" in repr(criterion) and "horizon_weights" in dict(criterion.named_buffers())


BAD_CALLS = {
    "logits type": ({"logits": [1.0]}, TypeError, "logits must be a tensor, got list"),
    "logits dtype": ({"logits": torch.zeros(3, 7, 11, dtype=torch.int64)}, TypeError, "logits must be float32"),
    "logits shape": ({"logits": torch.zeros(7, 11)}, ValueError, r"logits must have shape \[B, N, V\], got \[7, 11\]"),
    "targets dtype": ({"targets": torch.zeros(3, 6, dtype=torch.int32)}, TypeError, "targets must be int64, got int32"),
    "targets batch": ({"targets": torch.zeros(2, 6, dtype=torch.int64)}, ValueError, r"targets must have shape \[3, L"),
    "targets device": ({"targets": torch.zeros(3, 6, dtype=torch.int64, device="meta")}, ValueError, "on cpu, as the"),
    "rows shape": ({"rows": torch.zeros(3, 5, dtype=torch.int64)}, ValueError, r"rows must have shape \[3, 6\]"),
    "rows dtype": ({"rows": torch.zeros(3, 6)}, TypeError, "rows must be int64"),
    "too long": ({"rows": None, "targets": torch.zeros(3, 8, dtype=torch.int64)}, ValueError, "8 positions .* 7 rows"),
    "horizons": ({"horizons": 0}, ValueError, "horizons must be at least 1, got 0"),
    "horizons type": ({"horizons": 1.0}, TypeError, "horizons must be an int, got float"),
    "horizons bool": ({"horizons": True}, TypeError, "horizons must be an int, got bool"),
    "smoothing": ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\], got 1.5"),
    "smoothing nan": ({"label_smoothing": math.nan}, ValueError, "label_smoothing"),
    "ignore_index": ({"ignore_index": None}, TypeError, "ignore_index must be an int"),
    "reduction": ({"reduction": "avg"}, ValueError, "reduction must be one of mean, sum, .* got 'avg'"),
    "valid shape": ({"valid": torch.ones(3, 7, 10, dtype=torch.bool)}, ValueError, r"valid must have shape \[3, 7, 11"),
    "valid dtype": ({"valid": torch.ones(3, 7, 11)}, TypeError, "valid must be bool"),
    "candidates": ({"candidates": torch.zeros(3, 6, 4, dtype=torch.int64)}, ValueError, "candidates must have shape"),
    "both masks": ({"valid": torch.ones(3, 7, 11, dtype=torch.bool),
                    "candidates": torch.zeros(3, 7, 4, dtype=torch.int64)}, ValueError, "at most one of the two"),
    "weights number": ({"horizon_weights": [1.0, 2.0]}, ValueError, r"horizon_weights must have shape \[1\], got \[2"),
    "weights type": ({"horizon_weights": 2.0}, TypeError, "horizon_weights must be a tensor or a sequence"),
    "weights dtype": ({"horizon_weights": torch.tensor([1])}, TypeError, "horizon_weights must be float32"),
    "weights grad": ({"horizon_weights": torch.ones(1, requires_grad=True)}, ValueError, "must not require a gradient"),
    "weight number": ({"weight": [1.0]}, ValueError, r"weight must have shape \[11\], got \[1\]"),
    "weight grad": ({"weight": torch.ones(11, requires_grad=True)}, ValueError, "weight must not require a gradient"),
    "z_loss": ({"z_loss": -1.0}, ValueError, "z_loss must be at least 0, got -1.0"),
    "softcap": ({"softcap": 0.0}, ValueError, "softcap must be positive, or None for no cap, got 0.0"),
    "target high": ({"targets": (3, 11)}, IndexError, r"targets\[1, 4\] is 11, but there are 11 classes"),
    "target low": ({"targets": (3, -7)}, IndexError, r"targets\[1, 4\] is -7, .*ignore_index is -1"),
    "row high": ({"rows": (2, 7)}, IndexError, r"rows\[1, 4\] is 7, but there are 7 rows"),
    "row low": ({"rows": (2, -2)}, IndexError, r"rows\[1, 4\] is -2, but there are 7 rows"),
    "candidate": ({"candidates": (3, 11)}, IndexError, r"candidates\[1, 4, 2\] is 11, but there are 11 classes"),
    "candidate low": ({"candidates": (3, -2)}, IndexError, r"candidates\[1, 4, 2\] is -2, .*-1 pads"),
}


@pytest.mark.parametrize("change, error, text", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_arguments_are_named(change, error, text):
    logits, targets, kwargs = problem()
    kwargs |= {"logits": logits, "targets": targets}
    for name, value in change.items():
        if isinstance(value, tuple):  # good everywhere, but bad at [1, 4] and later
            good, bad = value
            t = torch.full((3, 7, 4) if name == "candidates" else (3, 6), good)
            t[(1, 4, 2)[: t.dim()]] = bad
            t[2] = bad
            value = t
        kwargs[name] = value
    with pytest.raises(error, match=text):
        multi_horizon_cross_entropy(**kwargs)


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
    weights = torch.tensor([1.0, 0.5])
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.rand(11, dtype=accumulate)
    for code in range(4):
        args = (logits, targets, kwargs["rows"], *masks, weights, weight, 2, 0.1, -1, code, 0.1, 5.0, code == 0)
        torch.library.opcheck(torch.ops.poh_ext.horizon_ce, args)
    args = (logits.detach(), targets, kwargs["rows"], *masks)
    _, lse, coefficients, _ = torch.ops.poh_ext.horizon_ce(*args, weights, weight, 2, 0.1, -1, 0, 0.0, 0.0, False)
    args = (torch.ones((), dtype=accumulate), *args, weight, lse, coefficients, 0.1, -1, 0.0, 0.0)
    torch.library.opcheck(torch.ops.poh_ext.horizon_ce_backward, args)
