"""multi_horizon_linear_cross_entropy against the dense form of F.linear, in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from poh_ext import MultiHorizonLinearCrossEntropy, multi_horizon_cross_entropy, multi_horizon_linear_cross_entropy
from poh_ext._backend import has_kernel
from tests.cases.backends import DTYPES, needs_kernels, tolerance
from tests.cases.device import DEVICE
from tests.cases.losses import problem, truth

WIDTH = 6


def linear_problem(*, states=None, dtype=torch.float64, bias=True, seed=0, **options):
    """hidden, weight, bias, targets and the options of problem(); states: hidden per horizon."""
    _, targets, kwargs = problem(seed=seed, **options)
    batch, n, classes = options.get("batch", 3), options.get("n", 7), options.get("classes", 11)
    g = torch.Generator().manual_seed(seed + 1)
    shape = (batch, n, WIDTH) if states is None else (batch, n, states, WIDTH)
    tensors = [torch.randn(s, generator=g, dtype=torch.float64) for s in (shape, (classes, WIDTH), (classes,))]
    hidden, weight, bias_ = (t.to(dtype).requires_grad_() for t in tensors)
    return hidden, weight, bias_ if bias else None, targets, kwargs


def dense(
    hidden, weight, bias, targets, *, horizons=1, horizon_weights=None, class_weight=None, reduction="mean", **kwargs
):
    """The same loss from all logits; with a state per horizon, horizon by horizon."""
    logits = F.linear(hidden, weight, bias)
    if hidden.dim() == 3:
        return multi_horizon_cross_entropy(
            logits,
            targets,
            horizons=horizons,
            horizon_weights=horizon_weights,
            weight=class_weight,
            reduction=reduction,
            **kwargs,
        )
    every = [
        multi_horizon_cross_entropy(
            logits[:, :, k],
            targets,
            horizons=horizons,
            horizon_weights=horizon_weights,
            weight=class_weight,
            reduction="none",
            **kwargs,
        )[..., k]
        for k in range(horizons)
    ]
    terms = torch.stack(every, -1)
    if reduction == "none":
        return terms
    # The divisor of "mean" is that of any logits.
    count = multi_horizon_cross_entropy(
        logits[:, :, 0],
        targets,
        horizons=horizons,
        horizon_weights=horizon_weights,
        weight=class_weight,
        reduction="sum",
        **kwargs,
    )
    count = count / multi_horizon_cross_entropy(
        logits[:, :, 0], targets, horizons=horizons, horizon_weights=horizon_weights, weight=class_weight, **kwargs
    )
    return terms.sum() / (1 if reduction == "sum" else count.detach())


def compare(hidden, weight, bias, targets, **kwargs):
    given = [t for t in (hidden, weight, bias) if t is not None]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    want = dense(*exact, targets, **kwargs)
    got = multi_horizon_linear_cross_entropy(hidden, weight, targets, bias=bias, **kwargs)
    assert got.shape == want.shape
    assert got.dtype == (torch.float64 if hidden.dtype == torch.float64 else torch.float32)
    half = hidden.dtype in (torch.bfloat16, torch.float16)  # the logits themselves are rounded, as by F.linear
    close = {"rtol": 2e-2, "atol": 5e-2} if half else tolerance(hidden.dtype)
    torch.testing.assert_close(got.double(), want, **close)
    upstream = torch.rand(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    want_grads = torch.autograd.grad((want * upstream).sum(), [t for t in exact if t is not None])
    grads = torch.autograd.grad((got * upstream.to(got.dtype)).sum(), given)
    for t, grad, want_grad in zip(given, grads, want_grads, strict=True):
        assert grad.dtype == t.dtype and grad.shape == t.shape
        torch.testing.assert_close(grad.double(), want_grad, **close)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "position_mean"])
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
@pytest.mark.parametrize("horizons", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_dense_form(reduction, mask, horizons, bias):
    for rows, smoothing in itertools.product([True, False], [0.0, 0.1]):
        *tensors, kwargs = linear_problem(mask=mask, rows=rows, bias=bias)
        weights = None if horizons == 1 else [1.0, 0.5, 0.25]
        compare(
            *tensors,
            horizons=horizons,
            label_smoothing=smoothing,
            horizon_weights=weights,
            reduction=reduction,
            **kwargs,
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
def test_one_state_per_horizon(reduction, mask):
    *tensors, kwargs = linear_problem(mask=mask, states=3)
    compare(*tensors, horizons=3, label_smoothing=0.1, horizon_weights=[1.0, 0.5, 0.25], reduction=reduction, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [None, "candidates"])
@pytest.mark.parametrize("horizons", [1, 2])
def test_dtypes(dtype, mask, horizons):
    *tensors, kwargs = linear_problem(mask=mask, dtype=dtype)
    compare(*tensors, horizons=horizons, label_smoothing=0.1, **kwargs)


@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
@pytest.mark.parametrize("horizons", [1, 2])
def test_class_weight_z_loss_and_softcap(mask, horizons):
    *tensors, kwargs = linear_problem(mask=mask)
    class_weight = torch.rand(11, dtype=torch.float64) + 0.1
    for reduction in ("mean", "none"):
        compare(
            *tensors,
            horizons=horizons,
            label_smoothing=0.1,
            class_weight=class_weight,
            z_loss=0.01,
            softcap=3.0,
            reduction=reduction,
            **kwargs,
        )


@pytest.mark.parametrize("mask", [None, "candidates"])
def test_metrics(mask):
    hidden, weight, bias, targets, kwargs = linear_problem(mask=mask)
    for horizons in (1, 8):
        options = {"horizons": horizons, "return_metrics": True, **kwargs}
        loss, metrics = multi_horizon_linear_cross_entropy(hidden, weight, targets, bias=bias, **options)
        want, want_metrics = multi_horizon_cross_entropy(F.linear(hidden, weight, bias), targets, **options)
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(tuple(metrics), tuple(want_metrics), equal_nan=True)


def test_many_chunks_and_classes():
    """More rows than one chunk holds, with a wide head."""
    *tensors, kwargs = linear_problem(batch=4, n=300, classes=5000, length=300, dtype=torch.float32, ignored=0.05)
    compare(*tensors, horizons=2, **kwargs)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
@pytest.mark.parametrize("horizons", [1, 3])
def test_more_positions_than_rows(reduction, mask, horizons):
    *tensors, kwargs = linear_problem(n=5, length=23, mask=mask)
    compare(*tensors, horizons=horizons, label_smoothing=0.1, reduction=reduction, **kwargs)
    *tensors, kwargs = linear_problem(n=5, length=23, mask=mask, states=3)
    compare(*tensors, horizons=3, reduction=reduction, **kwargs)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_many_and_repeated_candidates(reduction):
    """More than a warp has lanes; a class that is listed twice counts once."""
    *tensors, kwargs = linear_problem(classes=80)
    candidates = torch.randint(-1, 80, (3, 7, 70), generator=torch.Generator().manual_seed(2))
    candidates[:, 1, 30:] = candidates[:, 1, :40]
    candidates[:, 2] = -1
    compare(*tensors, candidates=candidates, label_smoothing=0.1, softcap=4.0, reduction=reduction, **kwargs)


@pytest.mark.parametrize("mask, horizons", [(None, 1), (None, 2), ("candidates", 1)])
def test_states_of_rows_without_a_term_reach_nothing(mask, horizons):
    """Their NaN neither: a sum over rows must pass them over, not weigh them with 0."""
    hidden, weight, bias, targets, kwargs = linear_problem(mask=mask)
    kwargs["rows"][kwargs["rows"] == 3] = 2
    compare(hidden, weight, bias, targets, horizons=horizons, **kwargs)
    options = {"bias": bias, "horizons": horizons, **kwargs}
    want = multi_horizon_linear_cross_entropy(hidden, weight, targets, **options)
    broken = hidden.detach().clone()
    broken[:, 3] = torch.nan
    broken.requires_grad_()
    got = multi_horizon_linear_cross_entropy(broken, weight, targets, **options)
    assert got == want
    for t in torch.autograd.grad(got, (broken, weight, bias)):
        assert t.isfinite().all()


@pytest.mark.parametrize("why", ["targets", "length", "batch", "no rows", "no classes"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("horizons", [1, 2])
def test_no_term_gives_zero(why, reduction, horizons):
    hidden, weight, bias, targets, kwargs = linear_problem(mask="candidates")
    hidden, weight, bias = hidden.detach(), weight.detach(), bias.detach()
    targets[:] = -1
    if why == "length":
        targets, kwargs["rows"] = targets[:, :0], kwargs["rows"][:, :0]
    elif why == "batch":
        hidden, targets = hidden[:0], targets[:0]
        kwargs |= {k: kwargs[k][:0] for k in ("rows", "candidates")}
    elif why == "no rows":
        hidden, kwargs["candidates"] = hidden[:, :0], kwargs["candidates"][:, :0]
        kwargs["rows"][:] = -1
    elif why == "no classes":
        weight, bias, kwargs["candidates"] = weight[:0], bias[:0], kwargs["candidates"][..., :0]
    tensors = [t.requires_grad_() for t in (hidden, weight, bias)]
    loss = multi_horizon_linear_cross_entropy(
        hidden, weight, targets, bias=bias, horizons=horizons, reduction=reduction, **kwargs
    )
    assert loss.eq(0).all()
    for grad, t in zip(torch.autograd.grad(loss.sum(), tensors), tensors, strict=True):
        assert grad.shape == t.shape and grad.eq(0).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("mask, horizons", [(None, 2), ("candidates", 1)])
def test_gradcheck(reduction, mask, horizons):
    hidden, weight, bias, targets, kwargs = linear_problem(batch=2, n=4, classes=5, length=5, mask=mask)

    def loss(hidden, weight, bias):
        return multi_horizon_linear_cross_entropy(
            hidden, weight, targets, bias=bias, horizons=horizons, label_smoothing=0.2, reduction=reduction, **kwargs
        )

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


def test_backward_twice_with_retained_graph():
    hidden, weight, bias, targets, kwargs = linear_problem()
    loss = multi_horizon_linear_cross_entropy(hidden, weight, targets, bias=bias, **kwargs)
    first = torch.autograd.grad(2 * loss, (hidden, weight, bias), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, weight, bias))
    torch.testing.assert_close(first, tuple(2 * g for g in second))


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight, bias, targets, kwargs = linear_problem()
    loss = multi_horizon_linear_cross_entropy(hidden.detach(), weight, targets, bias=bias.detach(), **kwargs)
    assert torch.autograd.grad(loss, weight)[0].ne(0).any()
    with torch.no_grad():
        assert not multi_horizon_linear_cross_entropy(hidden, weight, targets, bias=bias, **kwargs).requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_fullgraph(reduction):
    hidden, weight, bias, targets, kwargs = linear_problem(mask="candidates", dtype=torch.float32)

    def loss(hidden, weight, bias):
        options = {"bias": bias, "reduction": reduction} | kwargs
        return multi_horizon_linear_cross_entropy(hidden, weight, targets, **options).sum()

    want = loss(hidden, weight, bias)
    got = torch.compile(loss, fullgraph=True)(hidden, weight, bias)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(v, (hidden, weight, bias)) for v in (got, want)]
    torch.testing.assert_close(*grads)


def test_module_form():
    hidden, weight, bias, targets, kwargs = linear_problem()
    ignore = kwargs.pop("ignore_index")
    options = {"horizons": 2, "label_smoothing": 0.1, "class_weight": [0.5] * 11, "ignore_index": ignore}
    criterion = MultiHorizonLinearCrossEntropy(**options).double()
    want = multi_horizon_linear_cross_entropy(hidden, weight, targets, bias=bias, **options, **kwargs)
    torch.testing.assert_close(criterion(hidden, weight, targets, bias=bias, **kwargs), want)
    with pytest.raises(TypeError, match="unexpected keyword"):
        MultiHorizonLinearCrossEntropy(smoothing=0.1)


BAD_CALLS = {
    "hidden type": ({"hidden": None}, TypeError, "hidden must be a tensor, got NoneType"),
    "hidden dtype": ({"hidden": torch.zeros(3, 7, 6)}, TypeError, "hidden must be float64, got float32"),
    "hidden width": (
        {"hidden": torch.zeros(3, 7, 5).double()},
        ValueError,
        r"hidden \[3, 7, 5\] and weight \[11, 6\] must have the same number of features D",
    ),
    "states": ({"hidden": torch.zeros(3, 7, 2, 6).double()}, ValueError, r"shape \[B, N, 1, 6\], got \[3, 7, 2, 6\]"),
    "weight shape": ({"weight": torch.zeros(11).double()}, ValueError, r"weight must have shape \[V, D\], got \[11\]"),
    "bias shape": ({"bias": torch.zeros(6).double()}, ValueError, r"bias must have shape \[11\], got \[6\]"),
    "class_weight": ({"class_weight": [1.0]}, ValueError, r"class_weight must have shape \[11\], got \[1\]"),
    "target": ({"targets": torch.full((3, 6), 11)}, IndexError, r"targets\[0, 0\] is 11, but there are 11 classes"),
    "row": ({"rows": torch.full((3, 6), 7)}, IndexError, r"rows\[0, 0\] is 7, but there are 7 rows"),
    "candidate": ({"candidates": torch.full((3, 7, 2), -2)}, IndexError, r"candidates\[0, 0, 0\] is -2, .*-1 pads"),
    "horizons": ({"horizons": 0}, ValueError, "horizons must be at least 1, got 0"),
}


@pytest.mark.parametrize("change, error, text", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_arguments_are_named(change, error, text):
    hidden, weight, bias, targets, kwargs = linear_problem()
    kwargs |= {"hidden": hidden, "weight": weight, "bias": bias, "targets": targets} | change
    with pytest.raises(error, match=text):
        multi_horizon_linear_cross_entropy(**kwargs)


@needs_kernels
@pytest.mark.parametrize("mask", [None, "candidates"])
def test_opcheck(mask):
    hidden, weight, bias, targets, kwargs = linear_problem(mask=mask)
    given = (targets, kwargs["rows"], None, kwargs.get("candidates"))
    for code, wanted in [(0, 7), (0, 0), (2, 0)]:
        args = (hidden, weight, bias, *given, None, None, 1, 0.1, -1, code, 0.0, 0.0, code == 0, wanted)
        torch.library.opcheck(torch.ops.poh_ext.horizon_linear_ce, args)
    coefficients = torch.ones(6, 1, dtype=torch.float64)
    grad = torch.ones((), dtype=torch.float64)
    args = (grad, hidden.detach(), weight.detach(), None, *given, None, coefficients, 0.1, -1, 0.0, 0.0)
    for wanted in (0, 1, 2, 3):
        torch.library.opcheck(torch.ops.poh_ext.horizon_linear_ce_backward, (*args, wanted))


@pytest.mark.skipif(not has_kernel(DEVICE, "dropout"), reason="watches the C++ kernels for the CPU")
def test_logits_never_exist():
    """No tensor as large as [B, N, V], nor as the logits of the rows read, is made."""
    *tensors, kwargs = linear_problem(batch=4, n=600, classes=5000, length=600, dtype=torch.float32, ignored=0)
    hidden, weight, bias, targets = tensors
    with torch.profiler.profile(profile_memory=True) as seen:
        loss = multi_horizon_linear_cross_entropy(hidden, weight, targets, bias=bias, horizons=2, **kwargs)
        loss.backward()
    allocated = [event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert 0 < max(allocated) < 4 * 600 * 5000 * 4 // 2


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("mask, reduction", [(None, "mean"), (None, "none"), ("candidates", "mean"), ("valid", "sum"),
                                             ("candidates", "none")])  # fmt: skip
def test_only_what_is_trained_gets_a_gradient(trained, mask, reduction):
    *inputs, targets, kwargs = linear_problem(mask=mask)

    def gradients(which):
        given = [t.detach().requires_grad_(i in which) for i, t in enumerate(inputs)]
        loss = multi_horizon_linear_cross_entropy(given[0], given[1], targets, bias=given[2], reduction=reduction,
                                                  **kwargs)  # fmt: skip
        (2 * loss.sum()).backward()
        return [t.grad for t in given]

    found, exact = gradients(trained), gradients((0, 1, 2))
    for i in range(3):
        assert (found[i] is None) == (i not in trained)
        if i in trained:
            torch.testing.assert_close(found[i], exact[i])


@needs_kernels
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"candidates": 4}])
def test_a_frozen_head_costs_no_gradient_of_it(options):
    """Not a tensor as large as the head is made, and nothing is held for it."""
    hidden, weight = torch.randn(1, 64, 8, requires_grad=True), torch.randn(9000, 8)
    if "candidates" in options:
        options = {"candidates": torch.randint(9000, (1, 64, 4))}
    made = []

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(t.shape for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, torch.Tensor))
            return out

    with Made():
        loss = multi_horizon_linear_cross_entropy(hidden, weight, torch.randint(9000, (1, 64)), **options).sum()
        loss.backward()
    # Its transpose is a view, and the logits of the 64 rows are smaller.
    assert hidden.grad is not None and not [s for s in made if s == weight.shape]


def test_gradients_handed_on_unscaled_stay_whole():
    """With an upstream gradient of 1 the saved gradients are returned themselves: they must survive being added to."""
    hidden, weight = torch.randn(2, 9, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    path = torch.randint(9, (2, 6))
    loss = multi_horizon_linear_cross_entropy(hidden, weight, path, rows=path, horizons=2)
    loss.backward(retain_graph=True)
    once = hidden.grad.clone(), weight.grad.clone()
    loss.backward(retain_graph=True)
    (3 * loss).backward()
    torch.testing.assert_close((hidden.grad, weight.grad), (5 * once[0], 5 * once[1]))


@needs_kernels
@pytest.mark.parametrize("factor", [1 / 3, 1.003, 0.7])
@pytest.mark.parametrize("how", ["eager", "batched", "dispatched"])
def test_a_factor_of_the_loss_is_not_rounded_with_the_gradients(factor, how):
    """The saved gradients are bfloat16, the loss and what it is multiplied by float32."""
    targets = torch.randint(200, (1, 771))
    hidden = torch.randn(1, 771, 64).bfloat16().requires_grad_()
    weight = (torch.randn(200, 64) * 0.1).bfloat16().requires_grad_()
    inputs = (hidden, weight, None, targets[..., None], *(None,) * 5)

    def loss():
        if how == "dispatched":
            return torch.ops.poh_ext.horizon_linear_ce(*inputs, 1, 0.0, -100, 0, 0.0, 0.0, False, 3)[0]
        return multi_horizon_linear_cross_entropy(hidden, weight, targets)

    plain = torch.autograd.grad(loss(), (hidden, weight))
    if how == "batched":
        grads = torch.autograd.grad(loss(), (hidden, weight), torch.tensor([factor]), is_grads_batched=True)
        grads = [g[0] for g in grads]
    else:
        grads = torch.autograd.grad(loss() * factor, (hidden, weight))
    for found, g in zip(grads, plain, strict=True):
        assert torch.equal(found, (g.float() * torch.tensor(factor)).bfloat16())


def test_traced_without_values():
    """Of FakeTensors, as estimators of memory use them, and by make_fx: the upstream gradient is not looked at."""
    hidden, weight = torch.randn(1, 8, 16, requires_grad=True), torch.randn(5, 16, requires_grad=True)
    targets = torch.randint(5, (1, 8))

    def gradients(hidden, weight):
        loss = multi_horizon_linear_cross_entropy(hidden, weight, targets.to(hidden.device))
        return torch.autograd.grad(loss, (hidden, weight))

    torch.testing.assert_close(make_fx(gradients)(hidden, weight)(hidden, weight), gradients(hidden, weight))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = [torch.empty(t.shape, requires_grad=True) for t in (hidden, weight)]
        targets = torch.zeros(1, 8, dtype=torch.int64)
        assert [g.shape for g in gradients(*fakes)] == [hidden.shape, weight.shape]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "position_mean"])
@pytest.mark.parametrize("mask, horizons", [(None, 1), (None, 2), ("valid", 2), ("candidates", 1)])
def test_targets_without_weight(reduction, mask, horizons):
    """A mean over targets that weigh nothing is 0, and so are its gradients; a sum has no divisor."""
    hidden, weight, bias, targets, kwargs = linear_problem(mask=mask)
    targets[targets >= 0] = 4
    class_weight = torch.ones(11)
    class_weight[4] = 0
    options = {"class_weight": class_weight, "horizons": horizons, "label_smoothing": 0.1, **kwargs}
    loss, metrics = multi_horizon_linear_cross_entropy(
        hidden, weight, targets, bias=bias, reduction=reduction, return_metrics=True, **options
    )
    assert metrics.loss.tolist() == [0] * horizons
    if reduction in ("sum", "none"):
        return compare(hidden, weight, bias, targets, reduction=reduction, **options)
    assert loss == 0
    for grad in torch.autograd.grad(loss, (hidden, weight, bias)):
        assert grad.eq(0).all()


@pytest.mark.parametrize("mask, horizons", [(None, 1), (None, 2), ("valid", 2), ("candidates", 1)])
@pytest.mark.parametrize("ignore_index", [0, 5, -100])
def test_which_rows_are_skipped(mask, horizons, ignore_index):
    """As in the dense form, here against the logits of every position, gathered."""
    hidden, weight, bias, targets, kwargs = linear_problem(mask=mask, ignore_index=ignore_index)
    rows = kwargs.pop("rows")
    rows[0, 1] = -1
    options = {"bias": bias, "horizons": horizons, "label_smoothing": 0.1, "reduction": "none", **kwargs}
    got = multi_horizon_linear_cross_entropy(hidden, weight, targets, rows=rows, **options)
    along, read = torch.arange(3)[:, None], rows.clamp(min=0)
    options |= {name: kwargs[name][along, read] for name in ("valid", "candidates") if name in kwargs}
    want = multi_horizon_linear_cross_entropy(hidden[along, read], weight, targets, **options)
    want = torch.where(rows[..., None] < 0, 0, want)
    torch.testing.assert_close(got, want)
    tensors = (hidden, weight, bias)
    torch.testing.assert_close(*(torch.autograd.grad(t.sum(), tensors) for t in (got, want)))


@pytest.mark.parametrize("mask, horizons", [("valid", 1), ("valid", 2), ("candidates", 1), ("candidates", 2)])
@pytest.mark.parametrize("shift", [-5000.0, -2e4, -1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_disallowed_classes_count_for_nothing_at_any_scale(mask, horizons, shift, dtype):
    """Against the definition, with the bias moving all logits."""
    hidden, weight, bias, targets, kwargs = linear_problem(mask=mask, dtype=dtype)
    bias = (bias.detach() + shift).requires_grad_()
    tensors = (hidden, weight, bias)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    options = {"horizons": horizons, "label_smoothing": 0.1, "z_loss": 1e-9, **kwargs}
    want = truth(F.linear(*exact), targets, **options)
    got = multi_horizon_linear_cross_entropy(hidden, weight, targets, bias=bias, **options)
    # In float32 the logits themselves are rounded, by 1/32 at 1e6.
    close = tolerance(dtype) if dtype == torch.float64 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(got.double(), want, **close)
    for grad, want_grad in zip(torch.autograd.grad(got, tensors), torch.autograd.grad(want, exact), strict=True):
        torch.testing.assert_close(grad.double(), want_grad, **close)


def test_closed_forms_of_low_logits_with_candidates():
    hidden = torch.ones(1, 3, 1, requires_grad=True)
    weight = torch.tensor([[0.0], [-20000.0], [-20001.0], [0.0]], requires_grad=True)
    candidates = torch.tensor([[[1, 2]] * 3])
    terms = multi_horizon_linear_cross_entropy(hidden, weight, torch.tensor([[0, 1, 3]]), candidates=candidates,
                                               reduction="none")  # fmt: skip
    assert terms.flatten().tolist() == pytest.approx([0.3132617, 10000.3132617, 0])
    (grad,) = torch.autograd.grad(terms[0, 0, 0], weight)
    assert grad.flatten().tolist() == pytest.approx([0, -0.2689414, 0.2689414, 0])
