"""The loss at horizon 1 where every row read allows few classes: a kernel of its own, cpu_few_allowed.h."""

import math

import pytest
import torch
import torch.nn.functional as F

from poh_ext import multi_horizon_cross_entropy
from tests.cases.backends import KERNELS
from tests.cases.losses import compare, problem

MASKS = ["valid", "candidates"]


def few(batch=3, n=40, classes=50, length=45, *, mask, most=4, seed=0, dtype=torch.float64):
    """A problem whose rows each allow 1 to `most` classes, some named twice; more positions than fit one tile."""
    logits, targets, kwargs = problem(batch, n, classes, length, seed=seed, dtype=dtype)
    g = torch.Generator().manual_seed(seed)
    named = torch.randint(classes, (batch, n, most), generator=g)
    named[torch.rand(named.shape, generator=g) < 0.4] = -1
    named[..., -1] = named[..., -1].clamp(min=0)
    named[:, ::5, 0] = named[:, ::5, -1]
    if mask == "valid":
        valid = torch.zeros(batch, n, classes + 1, dtype=torch.bool).scatter_(2, named.remainder(classes + 1), True)
        kwargs["valid"] = valid[..., :classes].contiguous()
    else:
        kwargs["candidates"] = named
    # Half of the targets are allowed, as on a path.
    rows, along = kwargs["rows"].clamp(min=0), torch.arange(batch)[:, None]
    hit = (torch.rand(targets.shape, generator=g) < 0.5)[:, 1:] & (targets[:, 1:] >= 0)
    targets[:, 1:] = torch.where(hit, named[along, rows, -1][:, :-1], targets[:, 1:])
    return logits, targets, kwargs


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "position_mean"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_the_definition(reduction, mask, dtype):
    logits, targets, kwargs = few(mask=mask, dtype=dtype)
    compare(logits, targets, label_smoothing=0.1, reduction=reduction, **kwargs)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("most", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("smoothing, z_loss", [(0.0, 0.0), (1.0, 0.0), (0.1, 0.01)])
def test_how_many_are_allowed(mask, most, smoothing, z_loss):
    logits, targets, kwargs = few(batch=2, mask=mask, most=most)
    compare(logits, targets, label_smoothing=smoothing, z_loss=z_loss, **kwargs)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("where", [(0, 3), (2, 17)])
@pytest.mark.parametrize("allows", ["none", "all"])
def test_a_row_that_allows_none_or_all_among_them(mask, where, allows):
    logits, targets, kwargs = few(classes=4, mask=mask, most=4)
    kwargs["rows"][where[0], 5] = where[1]
    targets[where[0], 6] = 2
    for name, none, every in (("valid", False, True), ("candidates", -1, torch.arange(4))):
        if name == mask:
            kwargs[name][where] = none if allows == "none" else every
    compare(logits, targets, label_smoothing=0.1, **kwargs)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_far_from_zero(mask, dtype):
    """The disallowed classes count for nothing; a target among them is 1e4 below the largest, or at -1e4."""
    logits, targets, kwargs = few(mask=mask, dtype=dtype)
    shifted = logits.detach().clone()
    shifted[0] -= 1e4
    shifted[1] -= 2e6
    shifted[2] -= 5000  # some rows on this side of -5000, some on that
    compare(shifted.requires_grad_(), targets, label_smoothing=0.1, z_loss=1e-9, **kwargs)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_and_inf_propagate_as_in_eager(poison, smoothing, dtype):
    logits = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0), dtype=dtype)
    candidates = torch.tensor([[[1, 2, 5, -1], [3, -1, 4, 8], [-1, 2, 6, 7], [0, 1, -1, -1]]])
    logits[0, 0, 2] = poison  # allowed, not the target
    logits[0, 1, 3] = poison  # the target
    logits[0, 2, 1] = poison  # not allowed
    logits.requires_grad_()
    targets = torch.tensor([[0, 1, 3, 2]])
    allowed = (candidates.unsqueeze(-1) == torch.arange(9)).any(2)[0, :3]
    masked = torch.where(allowed, logits[0, :3], -math.inf)
    log_prob = masked.log_softmax(-1)
    want = (1 - smoothing) * F.nll_loss(log_prob, targets[0, 1:], reduction="none")
    if smoothing:
        want = want - smoothing * log_prob.where(allowed, 0).sum(-1) / allowed.sum(-1)
    got = multi_horizon_cross_entropy(logits, targets, candidates=candidates, label_smoothing=smoothing,
                                      reduction="none")[0, :3, 0]  # fmt: skip
    torch.testing.assert_close(got, want, equal_nan=True)
    (want_grad,) = torch.autograd.grad(want.sum(), logits)
    (grad,) = torch.autograd.grad(got.sum(), logits)
    torch.testing.assert_close(grad, want_grad, equal_nan=True)


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("mask", MASKS)
def test_result_does_not_depend_on_threads(batch, mask):
    logits, targets, kwargs = few(batch=batch, n=64, classes=300, length=100, mask=mask, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            loss = multi_horizon_cross_entropy(logits, targets, label_smoothing=0.1, **kwargs)
            results.append((loss, *torch.autograd.grad(loss, logits)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            torch.testing.assert_close(got, want, **({"rtol": 0, "atol": 0} if KERNELS else {}))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("reduction", ["mean", "position_mean"])
def test_row_0_is_read_where_class_0_is_a_padding(mask, reduction):
    logits, targets, kwargs = few(mask=mask)
    kwargs["ignore_index"] = 0
    targets[targets < 0] = 0
    kwargs["rows"][:, ::7] = 0
    compare(logits, targets, label_smoothing=0.1, reduction=reduction, **kwargs)
