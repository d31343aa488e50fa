"""The trainer's loss against the dense one: the same value and gradients, without the scores of all pairs of cells."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from poh_ext.losses import multi_horizon_cross_entropy
from poh_ext.training import loop, step
from poh_ext.training.data import make_data
from poh_ext.training.presets import protocol_of
from poh_ext.training.targets import term_weights
from poh_ext.training.workers import autocast
from tests.cases.training import build_planner, tiny

CPU = torch.device("cpu")
small = functools.partial(tiny, train=6, test=2, epochs=1, batch_size=6)


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    "changes",
    [{}, {"multi_horizon": 3}, {"validity_mask": True}, {"validity_mask": True, "multi_horizon": 3}],
    ids=["plain", "horizons", "mask", "both"],
)
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("name", ["baseline", "poh"])
def test_loss_and_gradients_equal_the_dense_form(name, precision, tolerance, changes):
    config = small(**changes)
    batch = make_data(config, 1).train[:6]
    model = build_planner(name, config, seed=1).eval()  # no dropout: both forms see the same states
    if name == "poh":
        torch.nn.init.constant_(model.alpha, 0.5)
    path = batch.path[:, : int(batch.length.max())]

    with autocast(CPU, precision):
        logits = model(batch.mazes, batch.start, batch.goal)
    dense = multi_horizon_cross_entropy(
        logits,
        path,
        rows=path,
        horizons=config.multi_horizon,
        label_smoothing=config.label_smoothing,
        candidates=batch.mazes.neighbors() if config.validity_mask else None,
        ignore_index=-1,
        reduction=protocol_of(config).reduction,
    )
    dense.backward()
    expected = gradients(model)
    model.zero_grad()

    with autocast(CPU, precision):
        hidden = model.hidden(batch.mazes, batch.start, batch.goal)
    loss = step.planning_loss(hidden, model.head, batch, config, precision=precision)
    loss.backward()
    torch.testing.assert_close(loss.float(), dense.float(), rtol=tolerance / 3, atol=tolerance / 10)
    assert any(g is not None and g.abs().max() > 0 for g in expected)
    for (which, p), g in zip(model.named_parameters(), expected, strict=True):
        assert (p.grad is None) == (g is None), which
        if g is not None:  # bfloat16 rounds each product: compare against the size of the whole gradient
            assert p.grad.dtype == torch.float32
            assert (p.grad - g).norm() <= tolerance * g.norm() + 1e-3 * tolerance, which


def published_loss(logits, tasks, config):
    """As it was published, term by term: on the open grid, and averaged position by position."""
    side, terms = config.maze_size, []
    for k in range(1, config.multi_horizon + 1):
        for i in range(int(tasks.length.max()) - k):
            losses = []
            for b in range(len(tasks)):
                if i + k >= int(tasks.length[b]):
                    continue
                here, wanted = int(tasks.path[b, i]), int(tasks.path[b, i + k])
                scores, smoothing = logits[b, here].clamp(-20, 20), config.label_smoothing
                if config.validity_mask and k == 1:
                    row, column = divmod(here, side)
                    near = [
                        side * r + c
                        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
                        if 0 <= r < side and 0 <= c < side
                    ]
                    scores, wanted, smoothing = scores[near], near.index(wanted), 0.0
                losses.append(F.cross_entropy(scores[None], torch.tensor([wanted]), label_smoothing=smoothing))
            if losses:
                terms.append(torch.stack(losses).mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize(
    "changes",
    [{}, {"validity_mask": True}, {"multi_horizon": 3}, {"validity_mask": True, "multi_horizon": 3}],
    ids=["plain", "mask", "horizons", "both"],
)
def test_as_published_the_loss_is_the_published_one(changes):
    config = small(protocol="as-published", train=60, label_smoothing=0.2, **changes)
    batch = make_data(config, 1).train[:6]
    hidden = torch.randn(6, 25, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    head = build_planner("baseline", config, seed=1).head
    torch.nn.init.normal_(head.weight, std=2.0, generator=torch.Generator().manual_seed(1))
    logits = head(hidden)
    assert 0.05 < (logits.abs() > 20).float().mean() < 0.5  # so that the clamp shows
    expected = published_loss(logits, batch, config)
    loss = step.planning_loss(hidden, head, batch, config)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, hidden, retain_graph=True)[0] for x in (loss, expected)))
    parts = step.planning_loss(hidden, head, batch, config, reduction="none")
    torch.testing.assert_close((parts * term_weights(batch.length, config)).sum(), expected)


class Shapes(TorchDispatchMode):
    """Records the shape of every tensor that an operator returns."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else (result,):
            if isinstance(t, torch.Tensor):
                self.seen.add(tuple(t.shape))
        return result


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_never_forms_the_scores_of_all_pairs_of_cells(precision):
    config = small(validity_mask=True)
    train = make_data(config, 1).train
    model = build_planner("baseline", config, seed=1)
    dense = {(6, 25, 25), (150, 25)}  # [B, N, N], and as the product of [B * N, D] forms it
    with Shapes() as shapes:
        model(train.mazes, train.start, train.goal)
    assert shapes.seen & dense  # so that the check below can fail
    with Shapes() as shapes:
        loop.train_planner(model, train, config, seed=1, label="baseline", precision=precision)
    assert not shapes.seen & dense
