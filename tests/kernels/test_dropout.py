"""Dropout: its rate, its scale, independence, gradients, and attention with it, against torch's own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from poh_ext._backend import has_kernel
from poh_ext.models.blocks import Attention, Dropout
from poh_ext.ops.dropout import dropout, has_dropout

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
kernel = pytest.mark.skipif(not has_kernel(torch.device("cpu"), "dropout"), reason="the C++ kernels are not built")


def mask(shape, p, dtype=torch.float32):
    return dropout(torch.ones(shape, dtype=dtype), p)


@kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_mask_has_the_rate_and_the_scale(dtype, p):
    torch.manual_seed(0)
    found = mask((401, 499), p, dtype)
    kept = found != 0
    assert found.dtype == dtype and found.shape == (401, 499)
    rounded = round(p * 2**16) / 2**16
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 1 / (1 - rounded)), rtol=1e-7, atol=0)
    spread = (p * (1 - p) / found.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - rounded)) < 5 * spread
    # Both halves of a draw have the rate, and so has every place in a block of 64.
    for part in range(64):
        assert abs(kept.flatten()[part::64].double().mean() - (1 - p)) < 5 * 8 * spread


@kernel
def test_elements_are_independent():
    """Of their neighbours, of the other half of their draw (32 on), across blocks, and of the next call's."""
    torch.manual_seed(0)
    a, b = ((mask((2**21,), 0.3) != 0).double() - 0.7 for _ in range(2))
    for other in (*(a.roll(by) for by in (1, 2, 3, 16, 31, 32, 33, 64, 4096, 2**20)), b, b.roll(1)):
        assert abs((a * other).mean()) < 5 * 0.21 / len(a) ** 0.5


@kernel
def test_runs_of_dropped_elements_are_as_long_as_chance_makes_them():
    torch.manual_seed(1)
    dropped = (mask((2**20,), 0.5) == 0).numpy()
    ends = np.flatnonzero(np.diff(dropped))
    lengths = np.bincount(np.diff(ends), minlength=12)[1:12]
    expected = len(ends) * 0.5 ** np.arange(1, 12)
    assert (np.abs(lengths - expected) < 5 * expected**0.5).all()


@kernel
@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (0, 5), (2, 3, 5), (), (64,), (65,), (127,)])
def test_mask_takes_any_shape(shape):
    for dtype in DTYPES:
        found = mask(shape, 0.5, dtype)
        assert found.shape == shape and set(found.flatten().tolist()) <= {0.0, 2.0}


@kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_limits(dtype):
    assert (mask((1000,), 0.0, dtype) == 1).all()
    assert (mask((1000,), 1 - 2**-20, dtype) == 0).all()
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1"):
        dropout(torch.ones(3), 1.0)
    with pytest.raises(ValueError, match="x must be float32, float64, bfloat16 or float16"):
        dropout(torch.ones(3, dtype=torch.int64), 0.5)


@kernel
def test_mask_follows_the_seed_and_the_place_alone():
    """Not the threads, the dtype, the strides, or how many elements come after."""
    found = []
    for threads, shape, dtype in (
        (1, (300, 401), torch.float32),
        (2, (300, 401), torch.bfloat16),
        (2, (200, 401), torch.float64),
    ):
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        found.append(mask(shape, 0.3, dtype)[:200] != 0)
    torch.manual_seed(3)
    found.append(dropout(torch.ones(401, 300).T, 0.3)[:200] != 0)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert not torch.equal(found[0], mask((200, 401), 0.3) != 0)


@kernel
def test_nan_and_inf_stay_where_they_are_kept():
    torch.manual_seed(0)
    x = torch.full((1000,), float("inf"))
    x[::2] = float("nan")
    y = dropout(x, 0.5)
    kept = y != 0
    assert 0 < kept.sum() < 1000
    assert y[::2][kept[::2]].isnan().all() and (y[1::2][kept[1::2]] == float("inf")).all()


@kernel
def test_operator_is_registered_as_torch_wants_it():
    for x in (torch.randn(5, 7, requires_grad=True), torch.randn(4, 3, dtype=torch.bfloat16).T):
        torch.library.opcheck(torch.ops.poh_ext.dropout.default, (x, 0.25, 7))


@kernel
def test_fake_tensors_go_through():  # as the estimate of a run's memory sends them
    with FakeTensorMode():
        x = torch.empty(3, 5, requires_grad=True)
        dropout(x, 0.5).sum().backward()
        assert x.grad.shape == (3, 5)


@kernel
def test_second_derivative_is_that_of_a_linear_map():
    torch.manual_seed(0)
    x = torch.randn(300, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.4)
    (first,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    scale = torch.where(y != 0, y / x, 0.0).detach()
    torch.testing.assert_close(first, 2 * scale * y)
    torch.testing.assert_close(second, 2 * scale**2)


def test_without_the_kernel_it_is_torchs(monkeypatch):
    from poh_ext.ops import dropout as ops

    monkeypatch.setattr(ops, "kernel_serves", lambda device, op=None: False)
    x = torch.randn(50, 40)
    assert not has_dropout(x)
    torch.manual_seed(0)
    found = Dropout(0.25).train()(x)
    torch.manual_seed(0)
    assert torch.equal(found, F.dropout(x, 0.25))


def test_module_is_identity_in_eval_and_scales_gradients_in_training():
    module, x = Dropout(0.25), torch.randn(50, 40, dtype=torch.float64, requires_grad=True)
    assert module.eval()(x) is x and Dropout(0.0).train()(x) is x
    y = module.train()(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x * gradient)
    assert set(gradient.unique().tolist()) == {0.0, 1 / 0.75}


def test_module_compiles():
    module, x = Dropout(0.5).train(), torch.ones(4000)
    y = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}


@kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_without_a_drop_equals_torch(dtype, monkeypatch):
    torch.manual_seed(0)
    attention, x = Attention(32, 4, dropout=1e-9).to(dtype), torch.randn(3, 10, 32, dtype=dtype)
    plain = attention.eval()(x)
    called = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: called.append(1) or original(*a, **k))
    mine = attention.train()(x)
    assert not called  # or nothing was compared
    torch.testing.assert_close(
        mine, plain, rtol=0.03 if dtype == torch.bfloat16 else 1e-5, atol=0.01 if dtype == torch.bfloat16 else 1e-6
    )


def test_attention_dropout_keeps_the_mean():
    torch.manual_seed(0)
    attention, x = Attention(16, 2, dropout=0.3).double(), torch.randn(1, 8, 16, dtype=torch.float64)
    plain = attention.eval()(x)
    draws = attention.train()(x.expand(20_000, -1, -1))
    error = (draws.mean(0) - plain[0]).abs() / (draws.std(0) / 20_000**0.5)
    assert error.max() < 6 and draws.std(0).min() > 0


@pytest.mark.parametrize("cells", [9, 144])
def test_bfloat16_attention_agrees_with_float32(cells):
    """On the CPU it goes another way than float32 does: through its own three products."""
    torch.manual_seed(0)
    attention = Attention(32, 4, dropout=0.0)
    x = torch.randn(2, cells, 32, requires_grad=True)
    expected = attention(x)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(x).float()
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    for a, b in ((found, expected), (gradient, expected_gradient)):
        assert (a - b).norm() < 0.02 * b.norm()
