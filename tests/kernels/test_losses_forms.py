"""Offsets, packed sequences and the weight of a batch: the forms of the loss that language models ask for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from poh_ext import MultiHorizonCrossEntropy, multi_horizon_cross_entropy, multi_horizon_linear_cross_entropy
from tests.cases.backends import DTYPES
from tests.cases.losses import compare, problem, truth

OFFSETS = [[0], [0, 1, 2], [1, 2, 4, 8], (3,), [2, 0], range(1, 4)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "position_mean"])
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
@pytest.mark.parametrize("rows", [True, False])
def test_offsets_equal_the_definition(reduction, mask, offsets, rows):
    logits, targets, kwargs = problem(mask=mask, rows=rows)
    weights = [1.0, 0.5, 0.25, 2.0][: len(offsets)]
    compare(
        logits,
        targets,
        horizons=offsets,
        label_smoothing=0.1,
        reduction=reduction,
        horizon_weights=weights,
        weight=torch.arange(1.0, 12.0, dtype=torch.float64),
        **kwargs,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [None, "valid", "candidates"])
@pytest.mark.parametrize("offsets", [3, [0], [1, 3]])
@pytest.mark.parametrize("extra", [{}, {"z_loss": 0.01, "softcap": 4.0}])
def test_segments_equal_the_definition(dtype, mask, offsets, extra):
    logits, targets, kwargs = problem(mask=mask, dtype=dtype, n=9, length=9)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [5, 5, 5, 5, 5, 5, 5, 5, 5], [0, 1, 0, 1, 1, 0, 0, 0, 3]])
    compare(logits, targets, horizons=offsets, segments=segments, label_smoothing=0.1, **kwargs, **extra)


@pytest.mark.parametrize("form", ["dense", "linear", "states"])
@pytest.mark.parametrize("horizons", [1, 3, [0, 2]])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_packed_documents_are_rows_of_a_batch(form, horizons, reduction):
    """Documents of 5, 1, 2 and 4 tokens in one sequence, and the same in four padded sequences."""
    generator = torch.Generator().manual_seed(0)
    lengths, width, classes = (5, 1, 2, 4), 6, 11
    count = horizons if isinstance(horizons, int) else len(horizons)
    tokens = torch.randint(classes, (sum(lengths),), generator=generator)
    head = torch.randn(classes, width, generator=generator, dtype=torch.float64).requires_grad_()
    shape = (sum(lengths), count, width) if form == "states" else (sum(lengths), width)
    state = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    def loss(hidden, targets, segments=None):
        options = {
            "horizons": horizons,
            "reduction": reduction,
            "label_smoothing": 0.1,
            "segments": segments,
            "ignore_index": -1,
        }
        if form == "dense":
            return multi_horizon_cross_entropy(F.linear(hidden, head), targets, **options)
        return multi_horizon_linear_cross_entropy(hidden, head, targets, **options)

    documents = torch.repeat_interleave(torch.arange(4, dtype=torch.int32), torch.tensor(lengths))
    packed = loss(state[None], tokens[None], documents[None])
    pad = torch.nn.utils.rnn.pad_sequence
    padded = loss(
        pad(state.split(lengths), batch_first=True), pad(tokens.split(lengths), batch_first=True, padding_value=-1)
    )
    torch.testing.assert_close(packed, padded, rtol=1e-12, atol=1e-12)
    leaves = state, head
    for a, b in zip(torch.autograd.grad(packed, leaves), torch.autograd.grad(padded, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_labels_shifted_before_and_one_target_more_than_rows():
    generator = torch.Generator().manual_seed(0)
    tokens, logits = torch.randint(7, (2, 9), generator=generator), torch.randn(2, 8, 7, generator=generator)
    x, y = logits, tokens[:, 1:]  # as nanoGPT has them
    want = F.cross_entropy(x.flatten(0, 1), y.flatten())
    torch.testing.assert_close(multi_horizon_cross_entropy(x, y, horizons=[0]), want)
    torch.testing.assert_close(multi_horizon_cross_entropy(x, tokens), want)  # the last row's target is there
    two = multi_horizon_cross_entropy(x, tokens, horizons=2, reduction="none")
    assert two.shape == (2, 8, 2) and (two[:, -1, 0] > 0).all() and not two[:, -1, 1].any()
    torch.testing.assert_close(two, truth(x, tokens, horizons=2, reduction="none").float())
    torch.testing.assert_close(two, multi_horizon_cross_entropy(x, y, horizons=[0, 1], reduction="none"))


def test_states_follow_their_offsets():
    """hidden [B, N, K, D]: state j is that of offset j, whatever the order."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(2, 6, 2, 5, generator=generator), torch.randn(7, 5, generator=generator)
    tokens = torch.randint(7, (2, 6), generator=generator)
    one = multi_horizon_linear_cross_entropy(hidden, head, tokens, horizons=[0, 4], reduction="none")
    other = multi_horizon_linear_cross_entropy(hidden.flip(2), head, tokens, horizons=[4, 0], reduction="none")
    torch.testing.assert_close(one, other.flip(2))
    want = F.cross_entropy(F.linear(hidden[:, :2, 1], head).flatten(0, 1), tokens[:, 4:].flatten())
    torch.testing.assert_close(one[:, :2, 1].mean(), want)


@pytest.mark.parametrize("weighted", [False, True])
def test_micro_batches_give_the_gradient_of_the_whole_batch(weighted):
    """Micro-batches of 1, 3, 0 and 6 terms, each divided by the weight of all: not by its own, as means of means do."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((4, 7), -1)
    for row, terms in enumerate((1, 3, 0, 6)):
        tokens[row, : terms + 1] = torch.randint(7, (terms + 1,), generator=generator)
    logits = torch.randn(4, 7, 7, generator=generator, dtype=torch.float64).requires_grad_()
    options = {"ignore_index": -1, "horizons": 2}
    if weighted:
        options |= {"weight": torch.rand(7, generator=generator) + 0.1, "horizon_weights": [1.0, 0.3]}
    whole, metrics = multi_horizon_cross_entropy(logits, tokens, return_metrics=True, **options)
    (want,) = torch.autograd.grad(whole, logits, retain_graph=True)
    total, weights = 0, []
    for row in range(4):
        part = slice(row, row + 1)
        loss, found = multi_horizon_cross_entropy(
            logits[part], tokens[part], reduction="sum", return_metrics=True, **options
        )
        total, weights = total + loss / metrics.weight.sum(), [*weights, found.weight]
    torch.testing.assert_close(torch.stack(weights).sum(0), metrics.weight)
    if not weighted:
        assert metrics.weight.tolist() == [10.0, 7.0]
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(total, logits)[0], want)


def test_integers_of_other_libraries():
    logits, targets, kwargs = problem()
    plain = {"horizons": 2, "ignore_index": -1}
    other = {"horizons": np.int64(2), "ignore_index": np.int32(-1)}
    want = multi_horizon_cross_entropy(logits, targets, rows=kwargs["rows"], **plain)
    assert torch.equal(multi_horizon_cross_entropy(logits, targets.int(), rows=kwargs["rows"].int(), **other), want)
    module = MultiHorizonCrossEntropy(horizons=[np.int64(1), 2], ignore_index=-1)
    assert torch.equal(module(logits, targets, rows=kwargs["rows"], segments=torch.zeros_like(targets)), want)


def test_an_ignore_index_beyond_2_to_the_53():
    logits, targets, _ = problem(rows=False, ignored=0)
    far = 2**53 + 1
    targets[0, 2:] = far
    compare(logits, targets, horizons=3, ignore_index=far)
    compare(logits, targets, horizons=[0, 2], ignore_index=far)


@pytest.mark.parametrize("offsets", [[0], [0, 9], [40]])
@pytest.mark.parametrize("shape", [(0, 4, 5, 4), (2, 4, 5, 0), (2, 0, 5, 0), (2, 4, 5, 1)])
def test_sizes_of_zero(offsets, shape):
    batch, rows, classes, length = shape
    logits = torch.zeros(batch, rows, classes, requires_grad=True)
    targets = torch.zeros(batch, length, dtype=torch.int64)
    loss, metrics = multi_horizon_cross_entropy(logits, targets, horizons=offsets, return_metrics=True)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and metrics.weight.shape == (len(offsets),)
    if batch * length == 0 or offsets == [40]:
        assert loss == 0 and metrics.weight.sum() == 0 and metrics.loss.isnan().all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "position_mean"])
def test_an_infinite_term_of_no_weight_counts_for_nothing(reduction):
    """The target of horizon 2 has a logit of -inf."""
    logits = torch.zeros(1, 3, 3)
    logits[0, :, 2] = -torch.inf
    targets = torch.tensor([[0, 1, 2]])
    options = {"horizons": 2, "reduction": reduction}
    loss = multi_horizon_cross_entropy(logits[:, :1].expand(1, 3, 3), targets, horizon_weights=[1.0, 0.0],
                                       rows=torch.tensor([[0, -1, -1]]), **options)  # fmt: skip
    assert loss.isfinite().all()
    nothing = multi_horizon_cross_entropy(logits, targets, horizon_weights=[0.0, 0.0], **options)
    assert not nothing.any()
