"""Interventions on PoH's routing at evaluation: what is used instead, and that it is what decides the output."""

import copy
import math
import re

import pytest
import torch
from torch import nn

import poh_ext
from poh_ext.models import PoHPlanner

pytestmark = pytest.mark.usefixtures("one_thread")


def make(routing="pooled", **options):
    torch.manual_seed(0)
    shape = {"d_model": 16, "n_heads": 4, "d_ff": 24, "depth": 2, "R": 3, "T": 2, "log_t": -1.0, "residual": "none"}
    model = PoHPlanner(4, **{**shape, "norm": "post", "routing": routing, **options}).eval()
    for router in model.routers:
        nn.init.normal_(router.logits.weight, std=2.0)
    return model


def problem(n=3, seed=0):
    tasks = poh_ext.sample_tasks(n, 4, seed=seed)
    return tasks.mazes, tasks.start, tasks.goal


def run(model, args, how=None, **options):
    """(policy, weights, entropy)"""
    with torch.no_grad():
        if how is None:
            return model.policy(*args, **options), model.routing_weights(), model.routing_entropy()
        with model.override_routing(how):
            return model.policy(*args, **options), model.routing_weights(), model.routing_entropy()


@pytest.mark.parametrize("routing", ["pooled", "token"])
@pytest.mark.parametrize("options", [{}, {"valid_heads": 1, "head": "moves"}, {"residual": "rezero", "norm": "pre"}])
def test_uniform(routing, options):
    model, args = make(routing, **options), problem()
    if model.alpha is not None:
        nn.init.constant_(model.alpha, 0.7)
    learned, weights, _ = run(model, args)
    even, used, entropy = run(model, args, "uniform", passes=5)
    assert used.shape == ((5, 2, 3, 4) if routing == "pooled" else (3, 2, 3, 16, 4)) and (used == 0.25).all()
    assert entropy == pytest.approx(math.log(4)) and weights.std() > 0.05
    for router in model.routers:  # the same as routers that have learned nothing
        nn.init.zeros_(router.logits.weight)
        nn.init.zeros_(router.logits.bias)
    assert torch.equal(run(model, args, passes=5)[0], even)
    assert not torch.allclose(run(model, args)[0], learned)


@pytest.mark.parametrize("routing", ["pooled", "token"])
def test_weights_given_are_used_in_every_pass(routing):
    model, args = make(routing), problem()
    given = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    policy, used, entropy = run(model, args, given)
    assert (used == given.float().view(1, 2, *[1] * (used.dim() - 3), 4)).all()
    expected = -(given[1] * given[1].log()).sum() / 2  # no log of the zeros in the first block
    assert entropy == pytest.approx(float(expected), rel=1e-6)
    even = torch.full((2, 4), 0.25)
    assert torch.equal(run(model, args, even)[0], run(model, args, "uniform")[0])
    assert not torch.allclose(policy, run(model, args, "uniform")[0])


def test_shuffled_pooled_swaps_what_the_routers_of_two_mazes_say():
    """One pass of one block: the weights are those of the unchanged run, moved on by one maze."""
    model, args = make(R=1, depth=1), problem()
    _, weights, entropy = run(model, args)
    policy, used, after = run(model, args, "shuffled")
    assert torch.equal(used, weights[:, :, [2, 0, 1]])
    torch.testing.assert_close(after, entropy)
    assert (used != weights).flatten(3).any(-1).all()  # no maze has its own
    for b in range(3):  # and they decide: a maze alone, with those weights, plans the same
        one = tuple(a[b : b + 1] for a in args)
        torch.testing.assert_close(run(model, one, used[0, :, b])[0], policy[b : b + 1])


def test_shuffled_tokens_take_those_of_a_cell_half_a_maze_away_in_another():
    model, args = make("token", R=1, depth=1), problem()
    _, weights, _ = run(model, args)
    used = run(model, args, "shuffled")[1]
    for b, n in ((0, 0), (1, 3), (2, 15)):
        assert torch.equal(used[:, :, b, n], weights[:, :, b - 1, (n - 8) % 16])
    one = tuple(a[:1] for a in args)
    alone = run(model, one, "shuffled")[1]
    torch.testing.assert_close(alone, run(model, one)[1].roll(8, 3))


def test_shuffled_over_passes_follows_the_states_it_makes():
    model, args = make(), problem()
    first = run(model, args)
    shuffled = run(model, args, "shuffled")
    assert torch.equal(shuffled[1][0, 0], first[1][0, 0].roll(1, 0))
    assert not torch.allclose(shuffled[0], first[0])
    assert all(torch.equal(a, b) for a, b in zip(run(model, args, "shuffled"), shuffled, strict=True))


def test_the_context_ends_nests_and_is_not_copied():
    model, args = make(), problem()
    before = run(model, args)[0]
    with pytest.raises(KeyError), model.override_routing("uniform"):
        with model.override_routing("shuffled"):
            assert torch.equal(run(model, args)[1][0, 0], make_weights(model, args).roll(1, 0))
        assert (run(model, args)[1] == 0.25).all()
        assert torch.equal(run(copy.deepcopy(model), args)[0], before)
        raise KeyError
    assert torch.equal(run(model, args)[0], before)
    assert not any("override" in name for name in model.state_dict())


def make_weights(model, args):
    return run(copy.deepcopy(model), args)[1][0, 0]


def test_autocast_and_compile():
    model, args = make(), problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(model, args, "shuffled")[1].dtype == torch.float32
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), model.override_routing("uniform"):
        torch.testing.assert_close(compiled(*args), model(*args))
        assert (model.routing_weights() == 0.25).all()


@pytest.mark.parametrize(("how", "error", "words"), [
    ("random", ValueError, "how must be 'uniform', 'shuffled' or a tensor of weights [depth, heads], got 'random'"),
    (None, TypeError, "how must be 'uniform', 'shuffled' or a tensor of weights [depth, heads], got NoneType"),
    (torch.ones(2, 4, dtype=torch.int64), TypeError, "must be of a floating-point dtype, got torch.int64"),
    (torch.ones(4) / 4, ValueError, "must be [depth, heads] = [2, 4], got [4]"),
    (torch.full((2, 4), 0.3), ValueError, "must be 0 or more and sum to 1 over the heads of each block"),
    (torch.tensor([[1.5, -0.5, 0, 0]] * 2), ValueError, "must be 0 or more and sum to 1"),
    (torch.full((2, 4), math.nan), ValueError, "must be 0 or more and sum to 1"),
])  # fmt: skip
def test_what_is_no_intervention_is_named(how, error, words):
    with pytest.raises(error, match=re.escape(words)), make().override_routing(how):
        raise AssertionError("not reached")


def test_training_and_a_single_maze_are_refused():
    model, args = make(), problem(1)
    with pytest.raises(ValueError, match=r"takes the weights of another maze .* needs 2 or more mazes, got 1"):
        run(model, args, "shuffled")
    run(model, args, "uniform")
    with pytest.raises(RuntimeError, match=r"for evaluation: call eval\(\) first"):
        run(model.train(), args, "uniform")
