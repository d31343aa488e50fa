"""Dropout masks: rates, scales, gradients, and attention with them, against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from poh_ext.models.attention import Attention
from poh_ext.models.dropout import Dropout, dropout_mask

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_mask_has_the_rate_and_the_scale(dtype, p):
    torch.manual_seed(0)
    mask = dropout_mask((401, 499), p, dtype)
    kept = mask != 0
    assert mask.dtype == dtype and mask.shape == (401, 499)
    assert torch.equal(mask[kept], torch.full_like(mask[kept], 1 / (1 - p)))
    spread = (p * (1 - p) / mask.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - p)) < 5 * spread + 2**-15
    # Each of the four elements that share a draw has the same rate, and neighbours are independent.
    for part in range(4):
        assert abs(kept.flatten()[part::4].double().mean() - (1 - p)) < 10 * spread + 2**-15
    pairs = kept.flatten()[:-1] & kept.flatten()[1:]
    assert abs(pairs.double().mean() - (1 - p) ** 2) < 10 * spread


@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (0, 5), (2, 3, 5), ()])
def test_mask_takes_any_shape(shape):
    for dtype in DTYPES:
        assert dropout_mask(shape, 0.5, dtype).shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits(dtype):
    assert (dropout_mask((1000,), 0.0, dtype) == 1).all()
    assert (dropout_mask((1000,), 1 - 2**-20, dtype) == 0).all()


def test_mask_follows_the_seed_and_not_the_threads():
    masks = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(len(masks) // 2)
        masks.append(dropout_mask((100_000,), 0.3, torch.bfloat16))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def test_module_is_identity_in_eval_and_scales_gradients_in_training():
    module, x = Dropout(0.25), torch.randn(50, 40, dtype=torch.float64, requires_grad=True)
    assert module.eval()(x) is x and Dropout(0.0).train()(x) is x
    y = module.train()(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, x * gradient) and set(gradient.unique().tolist()) == {0.0, 1 / 0.75}


def test_module_compiles():
    module, x = Dropout(0.5).train(), torch.ones(4000)
    y = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}


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
    torch.testing.assert_close(mine, plain, rtol=0.03 if dtype == torch.bfloat16 else 1e-5, atol=0.01 if
                               dtype == torch.bfloat16 else 1e-6)


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
