"""The trainer's loss against the dense one: the same value and gradients, without the scores of all pairs of cells."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from poh_ext.losses import multi_horizon_cross_entropy
from poh_ext.training import loop, objective, protocol
from poh_ext.training.config import Benchmark12x12Config
from poh_ext.training.device import autocast
from poh_ext.training.planners import build_planner

CPU = torch.device("cpu")


def tiny(**changes):
    return Benchmark12x12Config(**{"train": 6, "test": 2, "epochs": 1, "maze_size": 5, "batch_size": 6, "d_model": 64,
                                   "n_heads": 4, "d_ff": 128, "depth": 1, "R": 2, "device": "cpu", **changes})


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("changes", [{}, {"multi_horizon": 3}, {"validity_mask": True},
                                     {"validity_mask": True, "multi_horizon": 3, "protocol": "as-published",
                                      "train": 60}],
                         ids=["plain", "horizons", "mask", "as-published"])
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("name", ["baseline", "poh"])
def test_loss_and_gradients_equal_the_dense_form(name, precision, tolerance, changes):
    config = tiny(**changes)
    batch = protocol.make_data(config, 1).train[:6]
    view = protocol.planner_view(batch.mazes, config)
    model = build_planner(name, config, seed=1).eval()  # no dropout: both forms see the same states
    if name == "poh":
        torch.nn.init.constant_(model.alpha, 0.5)
    path = batch.path[:, : int(batch.length.max())]

    with autocast(CPU, precision):
        logits = model(view, batch.start, batch.goal)
    dense = multi_horizon_cross_entropy(
        logits, path, rows=path, horizons=config.multi_horizon, label_smoothing=config.label_smoothing,
        candidates=batch.mazes.neighbors() if config.validity_mask else None, ignore_index=-1,
        reduction=protocol.protocol_settings(config)["reduction"])
    dense.backward()
    expected = gradients(model)
    model.zero_grad()

    with autocast(CPU, precision):
        hidden = model.hidden(view, batch.start, batch.goal)
    loss = objective.planning_loss(hidden, model.head, batch, config, precision=precision)
    loss.backward()
    torch.testing.assert_close(loss.float(), dense.float(), rtol=tolerance / 3, atol=tolerance / 10)
    assert any(g is not None and g.abs().max() > 0 for g in expected)
    for (which, p), g in zip(model.named_parameters(), expected, strict=True):
        assert (p.grad is None) == (g is None), which
        if g is not None:  # bfloat16 rounds each product: compare against the size of the whole gradient
            assert p.grad.dtype == torch.float32
            assert (p.grad - g).norm() <= tolerance * g.norm() + 1e-3 * tolerance, which


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
    config = tiny(validity_mask=True)
    train = protocol.make_data(config, 1).train
    model = build_planner("baseline", config, seed=1)
    dense = {(6, 25, 25), (150, 25)}  # [B, N, N], and as the product of [B * N, D] forms it
    with Shapes() as shapes:
        model(train.mazes, train.start, train.goal)
    assert shapes.seen & dense  # so that the check below can fail
    with Shapes() as shapes:
        loop.train_planner(model, train, config, seed=1, label="baseline", precision=precision)
    assert not shapes.seen & dense
