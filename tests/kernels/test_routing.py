"""route and routing_entropy against float64 softmax, closed forms and numerical gradients."""

import contextlib
import math

import pytest
import torch

from poh_ext import route, routing_entropy
from poh_ext._backend import has_kernel
from poh_ext.reference import routing as reference
from tests.cases.backends import KERNELS
from tests.cases.backends import reference as by_reference

needs_kernel = pytest.mark.skipif(not KERNELS, reason="no kernels here: there is no custom op to check")
# Rows across SIMD lanes (up to 64 heads), full and partial tiles; long rows in pieces of 512.
SHAPES = [(3, 5), (16, 4), (33, 64), (2, 3, 6), (7,), (1,), (5, 1), (3, 65), (2, 1500), (4, 512)]
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 5e-6, "atol": 5e-6},
    torch.bfloat16: {"rtol": 1e-2, "atol": 4e-3},
    torch.float16: {"rtol": 2e-3, "atol": 1e-3},
}


def draw(shape, dtype=torch.float32, scale=3.0):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)


def truth(logits, temperature):
    """Softmax and entropy by definition, in float64."""
    weights = torch.softmax(logits.double() / temperature, -1)
    return weights, torch.special.entr(weights).sum(-1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0])
def test_values_and_gradients(shape, dtype, temperature):
    logits = draw(shape, dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    weights, entropy = route(logits, temperature=temperature)
    exact_weights, exact_entropy = truth(exact, temperature)
    assert weights.dtype == entropy.dtype == dtype
    torch.testing.assert_close(weights.double(), exact_weights, **TOLERANCE[dtype])
    torch.testing.assert_close(entropy.double(), exact_entropy, **TOLERANCE[dtype])
    gw, gh = draw(shape, dtype, 1.0), draw(shape[:-1], dtype, 1.0)
    ((weights * gw).sum() + (entropy * gh).sum()).backward()
    ((exact_weights * gw.double()).sum() + (exact_entropy * gh.double()).sum()).backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(33, 6), (2, 3, 70), (2000, 3), (7,)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(shape, dtype, reduction):
    logits = draw(shape, dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    entropy = routing_entropy(logits, temperature=2.0, reduction=reduction)
    expected = truth(exact, 2.0)[1]
    expected = expected if reduction == "none" else getattr(expected, reduction)()
    assert entropy.dtype == dtype and entropy.shape == expected.shape
    torch.testing.assert_close(entropy.double(), expected, **TOLERANCE[dtype])
    entropy.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, **TOLERANCE[dtype])


def test_closed_forms():
    for heads in (1, 2, 6, 64, 65, 1000):
        weights, entropy = route(torch.full((3, heads), 5.0))
        torch.testing.assert_close(weights, torch.full((3, heads), 1 / heads))
        torch.testing.assert_close(entropy, torch.full((3,), math.log(heads)))
    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    torch.testing.assert_close(routing_entropy(p.log()), torch.tensor(1.75 * math.log(2)))
    # Temperature to 0 chooses, temperature to infinity spreads.
    torch.testing.assert_close(route(torch.tensor([1.0, 2.0, 0.0]), temperature=1e-3)[0], torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(routing_entropy(torch.tensor([1.0, 2.0]), temperature=1e6), torch.tensor(math.log(2)))


@pytest.mark.parametrize("heads", [6, 100])
def test_permuting_heads_permutes_weights(heads):
    logits = draw((20, heads))
    order = torch.randperm(heads)
    weights, entropy = route(logits)
    permuted, same = route(logits[:, order])
    torch.testing.assert_close(permuted, weights[:, order])
    torch.testing.assert_close(same, entropy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("heads", [4, 80])
def test_extreme_logits(heads, dtype):
    """Huge and infinite logits: weights of 0 and 1, entropy and gradients finite."""
    inf = torch.inf
    rows = torch.tensor([[0, -inf, -inf, 0], [1e30, -1e30, 0, 1], [-inf, 7, -inf, -inf], [88, -88, 0, 89]], dtype=dtype)
    logits = torch.full((4, heads), -inf, dtype=dtype)
    logits[:, :4] = rows
    logits.requires_grad_()
    weights, entropy = route(logits)
    expected = torch.softmax(logits.detach().double(), -1)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(entropy.double(), torch.special.entr(expected).sum(-1), rtol=1e-5, atol=1e-30)
    (entropy.sum() + weights[:, 0].sum()).backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[logits.detach() == -inf].any()
    logits.grad = None
    routing_entropy(logits, reduction="sum").backward()
    assert logits.grad.isfinite().all() and not logits.grad[2].any()


@pytest.mark.parametrize("heads", [3, 90])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, None])
def test_nan_and_infinity_propagate_in_their_row_alone(heads, bad):
    logits = draw((18, heads))
    if bad is None:
        logits[4] = -torch.inf  # no head left
    else:
        logits[4, 1] = bad
    logits.requires_grad_()
    weights, entropy = route(logits)
    assert weights[4].isnan().all() and entropy[4].isnan()
    others = torch.arange(18) != 4
    assert weights[others].isfinite().all() and entropy[others].isfinite().all()
    assert routing_entropy(logits).isnan()
    entropy.sum().backward()
    assert logits.grad[4].isnan().all() and logits.grad[others].isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_entropy_is_never_negative(dtype):
    for scale in (0.0, 1e-3, 1.0, 30.0, 1e4):
        assert (routing_entropy(draw((500, 7), torch.float64, scale).to(dtype), reduction="none") >= 0).all()


def test_zero_rows():
    logits = torch.zeros(0, 5, 6, requires_grad=True)
    weights, entropy = route(logits)
    assert weights.shape == (0, 5, 6) and entropy.shape == (0, 5)
    (weights.sum() + entropy.sum()).backward()
    assert logits.grad.shape == logits.shape
    for reduction in ("mean", "sum"):
        value = routing_entropy(logits, reduction=reduction)
        assert value == 0
        value.backward()
    assert routing_entropy(logits, reduction="none").shape == (0, 5)


def test_non_contiguous_and_expanded():
    base = draw((6, 9, 4))
    for view in (base.transpose(0, 1), base[:, ::2], base[..., 1:3], base[:1].expand(6, 9, 4), base.permute(2, 1, 0)):
        a, b = route(view), route(view.contiguous())
        torch.testing.assert_close(a, b)
    logits = base.clone().requires_grad_()
    route(logits.transpose(0, 1))[0][..., 0].sum().backward()
    expected = base.clone().requires_grad_()
    torch.softmax(expected, -1)[..., 0].sum().backward()
    torch.testing.assert_close(logits.grad, expected.grad)


def test_one_output_alone_is_differentiable():
    for use in (0, 1):
        logits = draw((9, 5), torch.float64).requires_grad_()
        route(logits)[use].square().sum().backward()
        exact = logits.detach().clone().requires_grad_()
        truth(exact, 1.0)[use].square().sum().backward()
        torch.testing.assert_close(logits.grad, exact.grad)


@pytest.mark.parametrize("heads", [5, 70])
def test_gradcheck(heads):
    logits = draw((3, heads), torch.float64, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: route(z, temperature=1.7), logits)
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(
            lambda z, reduction=reduction: routing_entropy(z, temperature=0.6, reduction=reduction), logits
        )


def test_results_do_not_depend_on_threads():
    logits = draw((5000, 6)).requires_grad_()
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            logits.grad = None
            weights, entropy = route(logits)
            mean = routing_entropy(logits)
            (mean + (weights * entropy[:, None]).sum()).backward()
            results.append((weights, entropy, mean, logits.grad))
    finally:
        torch.set_num_threads(threads)
    if has_kernel(logits.device):  # eager sums may split by threads
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=0, atol=0)
    torch.testing.assert_close(results[0][2].double(), truth(logits.detach(), 1.0)[1].mean())


def test_compiles_whole_and_agrees():
    def step(logits):
        weights, entropy = route(logits, temperature=1.3)
        return (weights * logits).sum() + entropy.sum() + routing_entropy(logits)

    eager, compiled = draw((4, 6)).requires_grad_(), draw((4, 6)).requires_grad_()
    expected = step(eager)
    expected.backward()
    value = torch.compile(step, fullgraph=True, backend="aot_eager")(compiled)
    value.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(compiled.grad, eager.grad)


@needs_kernel
def test_opcheck():
    ops = torch.ops.poh_ext
    for logits in (draw((4, 6)), draw((2, 3, 80), torch.bfloat16), draw((6, 4), torch.float64).t(), torch.zeros(0, 3)):
        logits.requires_grad_()
        torch.library.opcheck(ops.route.default, (logits, 0.9))
        for reduction in range(3):
            torch.library.opcheck(ops.routing_entropy.default, (logits, 0.9, reduction))
        with torch.no_grad():
            rows = logits.new_ones(logits.shape[:-1])
            weights = route(logits, temperature=2.0)[0]
            grads = torch.ones_like(logits), rows
            torch.library.opcheck(ops.route_backward.default, (*grads, 0.5, logits, weights, 2.0))
            torch.library.opcheck(ops.route_backward.default, (None, logits.new_ones(()), 0.5, logits, None, 2.0))


@needs_kernel
def test_kernel_agrees_with_reference():
    for dtype in TOLERANCE:
        logits = draw((50, 11), dtype)
        torch.testing.assert_close(route(logits), reference.route(logits, 1.0), **TOLERANCE[dtype])


@needs_kernel
def test_double_backward_is_refused():
    for f in (lambda z: route(z)[0].square().sum(), routing_entropy):
        logits = draw((3, 4), torch.float64).requires_grad_()
        (grad,) = torch.autograd.grad(f(logits), logits, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative in its C"):
            grad.sum().backward()


@needs_kernel
def test_direct_calls_are_guarded():
    ops, logits = torch.ops.poh_ext, torch.zeros(3, 4)
    with pytest.raises(ValueError, match="reduction must be 0"):
        ops.routing_entropy(logits, 1.0, 3)
    with pytest.raises(ValueError, match="logits must have shape"):
        ops.route(torch.zeros(3, 0), 1.0)
    with pytest.raises(ValueError, match="logits must be float32"):
        ops.route(torch.zeros(3, 4, dtype=torch.int64), 1.0)
    with pytest.raises(ValueError, match="one value, or one per row"):
        ops.route_backward(None, torch.zeros(2), 1.0, logits, None, 1.0)
    with pytest.raises(ValueError, match="grad_entropy must have the dtype"):
        ops.route_backward(None, torch.zeros(3).double(), 1.0, logits, None, 1.0)
    with pytest.raises(ValueError, match="grad_weights must have the shape"):
        ops.route_backward(torch.zeros(3, 3), torch.zeros(3), 1.0, logits, None, 1.0)
    with pytest.raises(ValueError, match="grad_weights must have the dtype"):
        ops.route_backward(torch.zeros(3, 4).half(), torch.zeros(3), 1.0, logits, None, 1.0)
    with pytest.raises(ValueError, match="weights must have the shape"):
        ops.route_backward(None, torch.zeros(3), 1.0, logits, torch.zeros(4), 1.0)
    with pytest.raises(ValueError, match="weights must have the dtype"):
        ops.route_backward(None, torch.zeros(3), 1.0, logits, logits.double(), 1.0)


@pytest.mark.parametrize("f", [route, routing_entropy])
@pytest.mark.parametrize("logits, options, error, words", [
    ([[1.0]], {}, TypeError, "logits must be a tensor, got list"),
    (torch.zeros(3, dtype=torch.int64), {}, TypeError, "logits must be float32, .* got torch.int64"),
    (torch.zeros(()), {}, ValueError, r"logits must have shape \[..., H\] with H >= 1, got \(\)"),
    (torch.zeros(3, 0), {}, ValueError, r"got \(3, 0\)"),
    (torch.zeros(3), {"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
    (torch.zeros(3), {"temperature": -1.0}, ValueError, "temperature must be positive"),
    (torch.zeros(3), {"temperature": math.nan}, ValueError, "temperature must be positive"),
    (torch.zeros(3), {"temperature": math.inf}, ValueError, "temperature must be positive and finite"),
    (torch.zeros(3), {"temperature": "1"}, TypeError, "temperature must be a number, got str"),
    (torch.zeros(3), {"temperature": True}, TypeError, "temperature must be a number, got bool"),
])  # fmt: skip
def test_bad_arguments_are_named(f, logits, options, error, words):
    with pytest.raises(error, match=words):
        f(logits, **options)


def test_unknown_reduction_is_named():
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got 'max'"):
        routing_entropy(torch.zeros(3), reduction="max")


@pytest.mark.parametrize("backend", [contextlib.nullcontext, by_reference])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [5e-324, 1e-46, 1e-39, 1e39, 1e300])
def test_extreme_temperatures_choose_the_largest_or_all_that_are_finite(temperature, dtype, backend):
    logits = torch.tensor([[1.0, 2.0, 2.0, -math.inf]], dtype=dtype).requires_grad_()
    with backend():
        weights, entropy = route(logits, temperature=temperature)
    cold = temperature < 1
    expected = [0.0, 0.5, 0.5, 0.0] if cold else [1 / 3, 1 / 3, 1 / 3, 0.0]
    torch.testing.assert_close(weights, torch.tensor([expected], dtype=dtype))
    torch.testing.assert_close(entropy, torch.tensor([math.log(2 if cold else 3)], dtype=dtype))
    (grad,) = torch.autograd.grad(weights[0, 1], logits)
    assert not grad[0, 3] and (cold or not grad.isnan().any())
