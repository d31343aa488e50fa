"""The options of the training: each acts, gradients go as far as they should, averages follow their formula."""

import dataclasses
import functools

import pytest
import torch

from poh_ext.training import loop
from poh_ext.training.data import make_data
from poh_ext.training.evaluate import evaluate, evaluation_passes
from poh_ext.training.loop import averaged
from poh_ext.training.step import Objective
from poh_ext.training.targets import Passes, moves_targets, passes_to_know, step_passes
from poh_ext.training.workers import Workers
from tests.cases.training import build_planner, tiny_solver

pytestmark = pytest.mark.usefixtures("one_thread")
small = functools.partial(tiny_solver, steps_per_epoch=3, grad_passes=2, ema=0.5)


def train(config, name="poh", seed=3):
    config.check()
    model = build_planner(name, config, seed=seed)
    training = loop.train_planner(model, make_data(config, seed).batches, config, seed=seed, label=name)
    return model, [point["loss"] for point in training.curve]


@pytest.mark.parametrize(
    "changes",
    [
        {"valid_heads": 2},
        {"norm": "pre"},
        {"head": "cells", "supervision": "path"},
        {"positions": "absolute"},
        {"cell_features": 4},
        {"reinject": "off"},
        {"residual": "rezero"},
        {"route_scale": 1.0},
        {"routing": "token"},
        {"supervision": "path"},
        {"train_R": None},
        {"train_R": (2, 9)},
        {"train_R_growth": 30},
        {"grad_passes": 1},
        {"reach": "all"},
        {"reach": "seen"},
        {"deep_supervision": 2},
        {"train_sizes": (3, 5)},
        {"weight_decay": 0.9},
        {"state_noise": 0.5},
        {"label_smoothing": 0.3},
        {"validity_mask": True},
        {"dropout": 0.2},
        {"route_ent_weight": 0.5},
    ],
    ids=str,
)
def test_every_option_acts_on_the_training(changes):
    assert train(small())[1] != train(small(**changes))[1]


def test_the_growth_of_the_sizes_acts_on_the_training():
    assert train(small(train_sizes=(3, 4)))[1] != train(small(train_sizes=(3, 4), train_sizes_growth=6))[1]


def test_the_average_and_the_passes_at_test_act_on_the_evaluation():
    (plain, losses), (smooth, same) = train(small(ema=0.0)), train(small(ema=0.9))
    assert losses == same  # what is trained is the same
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), smooth.parameters(), strict=True))
    tasks = make_data(small(), 3).test
    tables = []
    policy = plain.policy
    plain.policy = lambda *given, **chosen: tables.append(policy(*given, **chosen)) or tables[-1]
    for passes in (None, 4, 9):
        evaluate(plain, tasks, passes=passes)
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    assert evaluation_passes(plain, small(test_R=9)) == 9 and evaluation_passes(plain, small()) == 4
    assert evaluation_passes(build_planner("baseline", small(), seed=0), small(test_R=9)) is None


def test_the_average_follows_its_formula():
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    average, expected = averaged(model, 0.3), 1.0
    for steps, value in enumerate((5.0, -2.0, 7.0, 0.5, 4.0)):
        torch.nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        decay = min(0.3, (1 + steps) / (10 + steps))
        expected = decay * expected + (1 - decay) * value
        assert average.module.weight.tolist()[0] == pytest.approx([expected] * 2, rel=1e-6)
    model.load_state_dict(average.module.state_dict())
    assert torch.equal(model.weight, average.module.weight) and model.weight.requires_grad


@pytest.mark.parametrize("name", ["poh", "looped_baseline"])
@pytest.mark.parametrize("grad, states", [("all", 1), (3, 1), (3, 2), (4, 4), (7, 3)])
def test_gradients_go_through_the_last_passes_and_no_others(name, grad, states, monkeypatch):
    config = small(grad_passes=grad, deep_supervision=states)
    model, seen = build_planner(name, config, seed=1), []
    one_pass = type(model)._pass
    monkeypatch.setattr(
        type(model),
        "_pass",
        lambda self, *given: seen.append((given[3], torch.is_grad_enabled())) or one_pass(self, *given),
    )
    monkeypatch.setattr(type(model), "_without_graph", lambda self, *given: None)
    tasks = make_data(config, 1).train
    loss, *_ = Objective(model, config, "float32")(tasks, step_passes(config, 11, True), 0.0)
    loss.backward()
    graded = 11 if grad == "all" else grad
    assert seen == [(step, step >= 11 - graded) for step in range(11)]


@pytest.mark.parametrize("name", ["poh", "looped_baseline"])
def test_noise_comes_once_where_gradients_begin_and_in_training_alone(name, monkeypatch):
    config = small()
    model, seen = build_planner(name, config, seed=1), []
    one_pass = type(model)._pass
    monkeypatch.setattr(
        type(model),
        "_pass",
        lambda self, state, *given: seen.append(self._cells(state)) or one_pass(self, state, *given),
    )
    args = (lambda tasks: (tasks.mazes, tasks.start, tasks.goal))(make_data(config, 1).train)

    def states(noise, **how):
        seen.clear()
        torch.manual_seed(0)
        return model.hidden_passes(*args, state_noise=noise, **how), list(seen)

    how = {"after": (4, 9), "grad_passes": 3}  # gradients in the passes 2 to 4 and 7 to 9
    (_, plain), (_, noisy) = states(0.0, **how), states(0.25, **how)
    before = {id(state) for state in plain}
    assert len(before) == len(plain) == len(noisy)
    graded = [i for i, state in enumerate(noisy) if not torch.equal(state, plain[i])]
    added = noisy[graded[0]] - plain[graded[0]]
    torch.testing.assert_close(added.std(), torch.tensor(0.25), rtol=0.1, atol=0)
    assert not torch.equal(states(0.25, **how)[0][-1], states(0.0, **how)[0][-1])
    assert torch.equal(states(0.25, **how)[0][-1], states(0.25, **how)[0][-1])
    every = {"after": (4,)}
    assert torch.equal(states(0.25, **every)[0][0], states(0.0, **every)[0][0])  # gradients begin at the first pass
    model.eval()
    assert torch.equal(states(0.25, **how)[0][-1], states(0.0, **how)[0][-1])
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="state_noise must be at least 0 and finite"):
            states(wrong, **how)
    with pytest.raises(TypeError, match="state_noise must be a number, got 'x'"):
        states("x", **how)


def test_the_loss_is_the_mean_over_states_of_means_over_cells_within_reach():
    config = small(deep_supervision=3, grad_passes=9)
    model, tasks = build_planner("looped_baseline", config, seed=1), make_data(config, 1).train
    passes = step_passes(config, 9, True)
    assert passes == Passes(9, (3, 6, 9))
    distance = tasks.mazes.distances(tasks.goal)
    expected = 0.0
    for n in passes.after:
        log_p = model(tasks.mazes, tasks.start, tasks.goal, passes=n).double().log_softmax(-1)
        targets = moves_targets(tasks, config, Passes(n, (n,)))[0]
        assert torch.equal(targets.any(-1), (distance > 0) & (distance <= n))
        seen = moves_targets(tasks, dataclasses.replace(config, reach="seen"), Passes(n, (n,)))[0]
        needed = passes_to_know(tasks.mazes, tasks.goal)
        assert torch.equal(seen.any(-1), (distance > 0) & (needed <= n)) and (needed < distance).any()
        cells = targets.nonzero().tolist()  # of a maze without loops, one move a cell
        of = [-(0.9 * log_p[b, i, move] + 0.1 * log_p[b, i].mean()) for b, i, move in cells]
        expected += sum(of).item() / len(of) / 3
    loss, cross_entropy, _ = Objective(model, config, "float32")(tasks, passes, 0.0)
    assert loss.item() == cross_entropy.item() == pytest.approx(expected, rel=1e-5)


def test_the_control_without_a_loop_is_given_the_same_targets():
    config = small()
    model, tasks = build_planner("baseline", config, seed=1), make_data(config, 1).train
    objective = Objective(model, config, "float32")
    losses = [objective(tasks, step_passes(config, run, False), 0.0)[0].item() for run in (1, 5, 24)]
    assert len(set(losses)) == 3  # one pass each, but other cells


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"supervision": "path"},
        {"deep_supervision": 2, "validity_mask": True},
        {"head": "cells", "supervision": "path", "deep_supervision": 2},
    ],
    ids=["all", "path", "deep", "cells"],
)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_parts_of_a_batch_add_up_to_its_loss_and_gradient(count, changes):
    config = small(batch_size=5, **changes)
    batch, passes = make_data(config, 1).train, step_passes(config, 6, True)
    model = build_planner("poh", config, seed=1)
    objective = Objective(model, config, "float32")

    def values(batch, *given):
        found = objective(batch, passes, 0.05, *given)
        gradients = torch.autograd.grad(found[0], list(model.parameters()), allow_unused=True)
        return torch.stack(found).detach(), [torch.zeros(()) if g is None else g for g in gradients]

    whole, expected = values(batch)
    parts = []
    for rank in range(count):
        part, weights, share = Workers(count, rank).part(batch, config, passes)
        assert (weights is None) == (count == 1)
        parts.append(values(part, weights, share))
    torch.testing.assert_close(sum(part for part, _ in parts), whole, rtol=1e-5, atol=1e-6)
    for i, gradient in enumerate(expected):
        torch.testing.assert_close(sum(gradients[i] for _, gradients in parts), gradient, rtol=1e-4, atol=1e-6)


def test_training_with_all_options_is_a_function_of_the_seed():
    config = small(train_sizes=(3, 5), train_R_growth=8)
    (a, losses), (b, again) = train(config), train(config)
    assert losses == again and all(map(torch.equal, a.parameters(), b.parameters()))
    assert train(config, seed=4)[1] != losses
    assert train(dataclasses.replace(config, lr=2e-2))[1] != losses
