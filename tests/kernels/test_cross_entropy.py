"""cross_entropy and linear_cross_entropy against torch's own: its published samples, and grids in float64."""

import itertools
import re
import warnings

import pytest
import torch
import torch.nn.functional as F

import poh_ext
from poh_ext import cross_entropy, linear_cross_entropy
from tests.cases.backends import DTYPES, tolerance

OWN = {"nn.functional.cross_entropy": cross_entropy, "nn.functional.linear_cross_entropy": linear_cross_entropy}
HALF = {torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}, torch.float16: {"rtol": 2e-3, "atol": 2e-3}}

pytestmark = pytest.mark.filterwarnings("ignore:poh_ext. F.cross_entropy computes for targets")


def wide(x):
    return x.detach().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OWN)
def test_samples_that_torch_publishes(name, dtype, note):
    """The OpInfo samples that torch tests its own functions with, values and gradients."""
    pytest.importorskip("expecttest")
    samples = pytest.importorskip("torch.testing._internal.common_methods_invocations").op_db
    found = [op for op in samples if op.name == name]
    if not found:
        pytest.skip(f"this torch has no {name}")
    equal = refused = 0
    for sample in found[0].sample_inputs("cpu", dtype, requires_grad=True):
        args, kwargs = (sample.input, *sample.args), dict(sample.kwargs)
        options = kwargs.pop("options", None)  # how torch divides its work
        if name.endswith("linear_cross_entropy") and args[1].dim() > 2:
            with pytest.raises(ValueError, match=r"linear_weight must have shape \[C, D\]"):
                OWN[name](*args, **kwargs)
            refused += 1
            continue
        loss = OWN[name](*args, **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert loss.dtype == found[0].op(*args, **kwargs, **({} if options is None else {"options": options})).dtype
        leaf = wide(args[0]).requires_grad_()
        exact = found[0].op(leaf, *map(wide, args[1:]), **{k: wide(v) for k, v in kwargs.items()})
        if exact.isnan().any():  # everything is ignored
            assert loss == 0
        else:
            (grad,) = torch.autograd.grad(loss.sum(), args[0])
            (want,) = torch.autograd.grad(exact.sum(), leaf)
            assert grad.dtype == dtype
            for a, b in ((loss.double(), exact), (grad.double(), want)):
                if name.endswith("linear_cross_entropy") and dtype in HALF:  # which rounds its logits
                    assert (a - b).norm() <= 0.03 * b.norm() + 0.02
                else:
                    torch.testing.assert_close(a, b, **HALF.get(dtype, tolerance(dtype)))
        equal += 1
    note(f"{name} {dtype}: {equal} of torch's samples agree, {refused} with a head of more dimensions are refused")
    assert equal > 20


SHAPES = [(7,), (5, 7), (4, 7, 3), (2, 7, 3, 4), (64, 7), (0, 7), (2, 7, 0)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_ignored_targets(reduction, smoothing, weighted, dtype):
    generator = torch.Generator().manual_seed(0)
    for shape, ignore_index in itertools.product(SHAPES, (-100, 0, 3)):
        x = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2).to(dtype).requires_grad_()
        places = shape[2:] if len(shape) == 1 else (shape[0], *shape[2:])
        target = torch.randint(7, places, generator=generator)
        weight = torch.rand(7, generator=generator, dtype=torch.float64).to(dtype) if weighted else None
        options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": smoothing}
        loss = cross_entropy(x, target, weight, **options)
        plain = F.cross_entropy(x, target, weight, **options)
        assert loss.dtype == plain.dtype and loss.shape == plain.shape
        leaf = wide(x).requires_grad_()
        exact = F.cross_entropy(leaf, target, None if weight is None else weight.double(), **options)
        if reduction == "mean" and exact.isnan():
            assert loss == 0 and not torch.autograd.grad(loss, x)[0].any()
            continue
        near = HALF.get(dtype, tolerance(dtype))
        torch.testing.assert_close(loss.double(), exact, **near)
        for a, b in zip(torch.autograd.grad(loss.sum(), x), torch.autograd.grad(exact.sum(), leaf), strict=True):
            torch.testing.assert_close(a.double(), b, **near)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("places", [(), (6,), (3, 5), (2, 3, 4), (0,)])
def test_linear_is_that_of_the_logits(places, reduction, bias):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, head, shift = randn(*places, 5), randn(9, 5), randn(9) if bias else None
    target = torch.randint(9, places, generator=generator)
    leaves = [t for t in (x, head, shift) if t is not None]
    for options in ({}, {"label_smoothing": 0.1, "ignore_index": 2}, {"weight": torch.rand(9, generator=generator)}):
        loss = linear_cross_entropy(x, head, target, shift, reduction=reduction, **options)
        flat = F.linear(x, head, shift).reshape(-1, 9)
        exact = F.cross_entropy(flat, target.reshape(-1), reduction=reduction,
                                **{k: wide(v) for k, v in options.items()})  # fmt: skip
        if exact.isnan().any():
            assert loss == 0
            continue
        torch.testing.assert_close(loss, exact.reshape(loss.shape), rtol=1e-11, atol=1e-11)
        assert loss.shape == (target.shape if reduction == "none" else ())
        for a, b in zip(torch.autograd.grad(loss.sum(), leaves), torch.autograd.grad(exact.sum(), leaves), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("form", ["dense", "linear"])
@pytest.mark.parametrize("extra", [{"z_loss": 0.01}, {"softcap": 3.0}, {"z_loss": 0.1, "softcap": 2.0}])
def test_masks_and_options_are_those_of_the_planning_loss(form, extra):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    head = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(9, (3, 4), generator=generator)
    candidates = torch.randint(-1, 9, (3, 4, 3), generator=generator)
    valid = torch.rand(3, 4, 9, generator=generator) < 0.5
    for mask in ({}, {"valid": valid}, {"candidates": candidates}):
        want = poh_ext.multi_horizon_linear_cross_entropy(
            x, head, target, horizons=[0], label_smoothing=0.1, reduction="none", **mask, **extra
        )[..., 0]
        if form == "linear":
            loss = linear_cross_entropy(x, head, target, reduction="none", label_smoothing=0.1, **mask, **extra)
        else:  # the classes come second
            moved = {k: v.movedim(-1, 1) for k, v in mask.items()}
            logits = F.linear(x, head).movedim(-1, 1)
            loss = cross_entropy(logits, target, reduction="none", label_smoothing=0.1, **moved, **extra)
        torch.testing.assert_close(loss, want)


def test_int32_targets_and_metrics():
    x, target = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 0.0]]), torch.tensor([1, 1, -100], dtype=torch.int32)
    loss, metrics = cross_entropy(x, target, return_metrics=True)
    torch.testing.assert_close(loss, F.cross_entropy(x, target.long()))
    assert metrics.accuracy.tolist() == [0.5] and metrics.weight.tolist() == [2.0]
    torch.testing.assert_close(metrics.loss[0], loss)
    weight = torch.tensor([1.0, 3.0])
    assert cross_entropy(x, target, weight, return_metrics=True)[1].weight.tolist() == [6.0]


def test_probabilities_go_to_torch_and_that_is_said_once(monkeypatch):
    monkeypatch.setattr(poh_ext.cross_entropy.__globals__["warnings"], "warn", lambda *a, **k: said.append(a))
    monkeypatch.setitem(poh_ext.cross_entropy.__globals__, "_said", False)
    said = []
    x, target = torch.randn(5, 4, requires_grad=True), torch.rand(5, 4)
    for _ in range(2):
        torch.testing.assert_close(cross_entropy(x, target), F.cross_entropy(x, target))
    assert len(said) == 1 and "F.cross_entropy computes for targets that are probabilities" in said[0][0]
    head = torch.randn(4, 5)
    soft = torch.rand(2, 3, 4)
    states = torch.randn(2, 3, 5)
    want = F.cross_entropy(F.linear(states, head).flatten(0, 1), soft.flatten(0, 1))
    torch.testing.assert_close(linear_cross_entropy(states, head, soft), want)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_gives_float32_as_torch_does(compiled):
    x, target = torch.randn(6, 9).bfloat16().requires_grad_(), torch.randint(9, (6,))
    call = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager") if compiled else cross_entropy
    with torch.autocast(x.device.type, torch.bfloat16):
        loss = call(x, target)
        assert loss.dtype == F.cross_entropy(x, target).dtype == torch.float32
    loss.backward()
    assert x.grad.dtype == torch.bfloat16


def test_compiles_whole_and_agrees():
    x, head = torch.randn(6, 9, requires_grad=True), torch.randn(9, 5, requires_grad=True)
    states, target = torch.randn(6, 5), torch.randint(9, (6,))
    for call in (lambda: cross_entropy(x, target, label_smoothing=0.1),
                 lambda: linear_cross_entropy(states, head, target)):  # fmt: skip
        torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(), call())


X, Y = torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)
BAD = {
    "input": (lambda: cross_entropy([1.0], Y), TypeError, "input must be a tensor, got list"),
    "no classes": (lambda: cross_entropy(torch.zeros(()), Y), ValueError, r"input must have shape \[C\], .* got \[\]"),
    "integers": (lambda: cross_entropy(X.long(), Y), TypeError, "input must be float32 or float64 or .*, got int64"),
    "target shape": (lambda: cross_entropy(X, Y[:3]), ValueError, r"target must have shape \[4\], got \[3\]"),
    "target dtype": (lambda: cross_entropy(X, Y.short()), TypeError, "target must be int64 or int32, got int16"),
    "class 5": (lambda: cross_entropy(X, Y + torch.tensor([0, 0, 5, 9])), IndexError,
                r"target\[2\] is 5, but there are 5 classes \(ignore_index is -100\)"),
    "class at [1, 2]": (lambda: cross_entropy(torch.zeros(2, 5, 3), torch.tensor([[0, 1, 2], [3, 4, -1]])), IndexError,
                        r"target\[1, 2\] is -1, but there are 5 classes"),
    "one place": (lambda: cross_entropy(X[0], Y[0] + 7), IndexError, r"target.* is 7, but there are 5 classes"),
    "floats": (lambda: cross_entropy(X, Y.float()), ValueError,
               "target of dtype torch.float32 must be probabilities in the shape of input"),
    "reduction": (lambda: cross_entropy(X, Y, reduction="position_mean"), ValueError,
                  "reduction must be one of mean, sum, none, got 'position_mean'"),
    "weight": (lambda: cross_entropy(X, Y, torch.ones(4)), ValueError, r"weight must have shape \[5\], got \[4\]"),
    "ignore_index": (lambda: cross_entropy(X, Y, ignore_index=None), TypeError, "ignore_index must be an int"),
    "smoothing": (lambda: cross_entropy(X, Y, label_smoothing=2), ValueError, r"label_smoothing must be in \[0, 1\]"),
    "two masks": (lambda: cross_entropy(X, Y, valid=X > 0, candidates=Y[:, None]), ValueError, "at most one of"),
    "valid": (lambda: cross_entropy(X, Y, valid=X[:3] > 0), ValueError, r"valid must have shape \[4, 5\], got \[3"),
    "candidates": (lambda: cross_entropy(X, Y, candidates=Y), ValueError, r"candidates must have shape \[4, n\], got"),
    "C = 0": (lambda: cross_entropy(X[:, :0], Y), ValueError, "input must have a class at least"),
    "probabilities": (lambda: cross_entropy(X, X, z_loss=0.1), ValueError, "z_loss needs targets that are classes"),
    "head": (lambda: linear_cross_entropy(X, torch.zeros(9, 4), Y), ValueError, "same number of features D"),
    "head dtype": (lambda: linear_cross_entropy(X, torch.zeros(9, 5).double(), Y), TypeError, "input must be float64"),
    "bias": (lambda: linear_cross_entropy(X, torch.zeros(9, 5), Y, Y), TypeError, "linear_bias must be float32"),
    "linear target": (lambda: linear_cross_entropy(X, torch.zeros(9, 5), Y[None]), ValueError, "target must have"),
    "linear class": (lambda: linear_cross_entropy(X, torch.zeros(9, 5), Y + 9), IndexError, r"target\[0\] is 9, but"),
}  # fmt: skip


@pytest.mark.parametrize("call, error, text", BAD.values(), ids=BAD)
def test_bad_arguments_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("place, shape", [((2, 1, 3), (3, 2, 4)), ((123, 1), (300, 2))])
def test_a_candidate_out_of_range_is_named_by_its_place(place, shape):
    candidates = torch.zeros(shape, dtype=torch.int64)
    candidates[place] = 7
    logits = torch.randn(shape[0], 5, *shape[2:])
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
    with pytest.raises(IndexError, match=re.escape(f"candidates{list(place)} is 7, but there are 5 classes (-1 pads)")):
        cross_entropy(logits, target, candidates=candidates)
    moved = candidates.movedim(1, -1)
    place = (place[0], *place[2:], place[1])
    with pytest.raises(IndexError, match=re.escape(f"candidates{list(place)} is 7, but there are 5 classes")):
        linear_cross_entropy(torch.randn(*target.shape, 3), torch.randn(5, 3), target, candidates=moved)
