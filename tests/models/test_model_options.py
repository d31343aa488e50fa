"""The planners' options: neighbour heads, norm, head, positions, re-injection, passes; one class each, no copies."""

import dataclasses
import itertools

import pytest
import torch

import poh_ext
from poh_ext.models import BaselinePlanner, PlannerConfig, PoHPlanner, gflop_per_maze, parameter_count
from poh_ext.models.config import POH_ONLY
from poh_ext.models.planners import build
from tests.cases.device import DEVICE
from tests.cases.planners import FREE, PLANNERS, SHAPE, make, problem

COMBINATIONS = list(
    itertools.product((0, 1, 4), ("pre", "post"), ("cells", "moves"), ("absolute", "none"), (True, False))
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.parametrize("valid_heads, norm, head, positions, reinject", COMBINATIONS)
def test_every_combination_trains_every_parameter(name, valid_heads, norm, head, positions, reinject):
    model = make(name, valid_heads=valid_heads, norm=norm, head=head, positions=positions, reinject=reinject).train()
    logits = model(*problem())
    assert logits.shape == ((3, 36, 4) if head == "moves" else (3, 36, 36))
    logits.square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.parametrize("head", ["cells", "moves"])
def test_policy_masks_walls(name, head):
    model, args = make(name, head=head), problem()
    moves, logits, neighbors = model.policy(*args), model(*args), args[0].neighbors()
    assert torch.equal(moves == -torch.inf, neighbors < 0)
    expected = logits if head == "moves" else logits.gather(2, neighbors.clamp(min=0))
    torch.testing.assert_close(moves[neighbors >= 0], expected[neighbors >= 0])


@pytest.mark.parametrize("name", PLANNERS)
def test_one_planner_for_mazes_of_any_size(name):
    model = make(name, maze_enc=True)
    assert model.any_size
    for size in (3, (4, 7), 30):
        mazes = poh_ext.generate_mazes(2, size)
        start, goal = torch.zeros(2, dtype=torch.int64), torch.full((2,), mazes.n_cells - 1)
        assert model(mazes, start, goal).shape == (2, mazes.n_cells, 4)
        assert model.policy(mazes, start, goal, passes=5).shape == (2, mazes.n_cells, 4)
        with pytest.raises(IndexError, match=rf"goal\[0\] is {mazes.n_cells}, but cells are 0 to {mazes.n_cells - 1}"):
            model(mazes, start, goal + 1)
    cls, own = PLANNERS[name]
    for change in ({"head": "cells"}, {"positions": "absolute"}):
        bound = make(name, **change)
        assert not bound.any_size
        with pytest.raises(ValueError, match="model's size 6x6, got passages of shape"):
            bound(*problem(size=5))
    counts = {parameter_count(cls, size, **{**SHAPE, **own, **FREE}) for size in (3, 12, 201)}
    assert len(counts) == 1


@pytest.mark.parametrize("name", PLANNERS)
def test_neighbor_heads_alone_see_one_step_further_each_pass(name):
    """Without wide heads and pooled parts, passes x depth steps is as far as a cell can see."""
    if name in ("pooled", "rezero"):
        pytest.skip("the pooled router sees all cells")
    model = make(name, maze_enc=False)
    mazes, start, goal = problem(size=6)
    mazes, start, goal = mazes[:1], start[:1], goal[:1]
    far = mazes.distances(goal)[0]
    other = goal.clone()
    other[0] = int((far == 1).nonzero()[0])
    near = torch.minimum(far, mazes.distances(other)[0])
    for passes in (1, 2, 3):
        changed = (model(mazes, start, goal, passes=passes) != model(mazes, start, other, passes=passes))[0].any(-1)
        assert not changed[near > 2 * passes].any()
        assert changed[near == 2 * passes].any() or not (near == 2 * passes).any()


def test_valid_heads_are_neighbor_attention_and_the_others_plain():
    model = make("baseline", valid_heads=1)
    attention, x = model.blocks[0].attention, torch.randn(2, 36, 16)
    assert attention.key_offset.shape == attention.value_offset.shape == (1, 5, 4)
    torch.nn.init.normal_(attention.direction_bias)
    mazes, _, _ = problem(2)
    neighbors = mazes.neighbors()
    q, k, v = attention.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
    near = poh_ext.neighbor_attention(
        q[:, :1],
        k[:, :1],
        v[:, :1],
        neighbors,
        bias=attention.direction_bias,
        key_offset=attention.key_offset,
        value_offset=attention.value_offset,
    )
    wide = torch.nn.functional.scaled_dot_product_attention(q[:, 1:], k[:, 1:], v[:, 1:])
    expected = attention.out(torch.cat([near, wide], 1).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, None, neighbors), expected)
    weights = torch.rand(2, 36, 4)
    heads = torch.cat([near, wide], 1).transpose(1, 2) * weights.unsqueeze(-1)
    torch.testing.assert_close(attention(x, weights, neighbors), attention.out(heads.flatten(2)))


@pytest.mark.parametrize("name", PLANNERS)
def test_passes_at_test_are_those_of_a_model_built_with_them(name):
    cls, own = PLANNERS[name]
    number = "loops" if cls is BaselinePlanner else "R"
    model, args = make(name), problem()
    longer = make(name, **{number: 7})
    longer.load_state_dict(model.state_dict())
    assert getattr(longer, number) == longer.passes == 7
    torch.testing.assert_close(model(*args, passes=7), longer(*args))
    torch.testing.assert_close(model.policy(*args, passes=7), longer.policy(*args))
    torch.testing.assert_close(model(*args), model(*args, passes=own[number]))


@pytest.mark.parametrize("name", PLANNERS)
def test_states_on_the_way_are_those_of_shorter_runs(name):
    model, args = make(name), problem()
    for n, state in zip((1, 3, 4), model.hidden_passes(*args, after=(1, 3, 4)), strict=True):
        torch.testing.assert_close(state, model.hidden(*args, passes=n))


@pytest.mark.parametrize("name", PLANNERS)
def test_gradient_through_the_last_passes_only(name):
    model, args = make(name), problem()

    def gradients(states):
        model.zero_grad()
        sum(s.square().sum() for s in states).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    full = model.hidden(*args, passes=6)
    last = model.hidden(*args, passes=6, grad_passes=2)
    torch.testing.assert_close(last, full)
    whole, part = gradients([full]), gradients([model.hidden(*args, passes=6, grad_passes=6)])
    assert whole.keys() == part.keys()
    for n in whole:
        torch.testing.assert_close(part[n], whole[n])
    part = gradients([last])
    assert not torch.allclose(part["blocks.0.expand.weight"], whole["blocks.0.expand.weight"])
    # Through the last two passes of six: the first four make a constant state.
    tokens = model.embed(args[0].passages, *args[1:])
    neighbors = args[0].neighbors()
    with torch.no_grad():
        state = model._begin(tokens)
        for step in range(4):
            state = model._pass(state, tokens, neighbors, step, 0.0)
    for step in (4, 5):
        state = model._pass(state, tokens, neighbors, step, 0.0)
    exact = gradients([model._cells(state)])
    for n in exact:  # the first four may have been fused, in another order of sums
        torch.testing.assert_close(part[n], exact[n], rtol=1e-3, atol=1e-4)


def test_passes_that_serve_no_state_keep_no_graph():
    model, args = make("baseline"), problem()
    early, late = model.hidden_passes(*args, after=(2, 9), grad_passes=3)
    assert early.requires_grad and late.requires_grad

    def depth(node):
        seen, stack, norms = set(), [node], 0
        while stack:
            n = stack.pop()
            if n is None or n in seen:
                continue
            seen.add(n)
            norms += "LayerNorm" in n.name()
            stack += [f for f, _ in n.next_functions]
        return norms

    assert depth(early.grad_fn) == 2 * 2 * 2 and depth(late.grad_fn) == 3 * 2 * 2  # passes x depth x norms


def test_published_parameter_counts_do_not_move():
    shape = {"d_model": 384, "n_heads": 6, "d_ff": 1536, "depth": 4}
    assert parameter_count(BaselinePlanner, 12, **shape, cell_features=1) == 7210896
    shape = {"d_model": 320, "n_heads": 5, "d_ff": 1280, "depth": 4}
    assert parameter_count(PoHPlanner, 12, **shape, cell_features=1) == 7040825
    names = {n for n, _ in BaselinePlanner(3, **SHAPE).named_parameters()}
    assert not any(word in n for n in names for word in ("offset", "direction"))
    small = {"d_model": 48, "n_heads": 4, "d_ff": 96, "depth": 1}
    assert parameter_count(BaselinePlanner, 12, **small, **FREE) == 19992


@pytest.mark.parametrize("name", PLANNERS)
def test_arithmetic_per_maze_is_counted(name):
    assert 0 < gflop_per_maze(make(name)) < gflop_per_maze(make(name, valid_heads=0))


def test_post_norm_bounds_the_state_for_any_number_of_passes():
    model, args = make("baseline"), problem()
    with torch.no_grad():
        norms = [s.norm(dim=-1).max() for s in model.hidden_passes(*args, after=(1, 10, 100, 300))]
    assert max(norms) <= 16**0.5 * 1.01  # layer norm's, as long as its gain is 1


def test_token_routing_keeps_the_weights_of_its_own_passes():
    model, args = make("token"), problem()
    with torch.no_grad():
        model(*args, passes=20)
    assert model.routing_weights().shape == (3, 2, 3, 36, 4) and model.routing_entropy() > 0
    model = make("pooled")
    model(*args, passes=20)
    assert model.routing_weights().shape == (20, 2, 3, 4)


@pytest.mark.parametrize("name", ["baseline", "token"])
def test_bfloat16_and_float64(name):
    model, args = make(name), problem()
    exact = model(*args)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        out = model(*args)
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(model.double()(*args).float(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["baseline", "pooled"])
def test_compiles_without_graph_breaks(name):
    model, args = make(name), problem()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, out = model(*args), compiled(*args)
    torch.testing.assert_close(out, expected)
    out.square().mean().backward()
    assert model.blocks[0].attention.key_offset.grad.any()


@pytest.mark.parametrize("cls", [BaselinePlanner, PoHPlanner])
@pytest.mark.parametrize("change, error, words", [
    ({"valid_heads": 5}, ValueError, "valid_heads must be from 0 to n_heads=4, got 5"),
    ({"valid_heads": -1}, ValueError, "valid_heads must be from 0"),
    ({"valid_heads": True}, TypeError, "valid_heads must be an int, got True"),
    ({"norm": "layer"}, ValueError, "norm must be 'pre' or 'post', got 'layer'"),
    ({"head": "move"}, ValueError, "head must be 'cells' or 'moves', got 'move'"),
    ({"positions": None}, ValueError, "positions must be 'absolute' or 'none', got None"),
    ({"reinject": 1}, ValueError, "reinject must be True or False, got 1"),
])  # fmt: skip
def test_bad_options_are_named(cls, change, error, words):
    with pytest.raises(error, match=words):
        cls(3, **{**SHAPE, **change})


def test_bad_options_of_poh_and_of_calls_are_named():
    with pytest.raises(ValueError, match="residual must be 'rezero' or 'none', got 'skip'"):
        PoHPlanner(3, **SHAPE, residual="skip")
    model, args = make("baseline"), problem()
    with pytest.raises(ValueError, match="passes must be at least 1, got 0"):
        model(*args, passes=0)
    with pytest.raises(TypeError, match=r"passes must be an int, got 2\.0"):
        model(*args, passes=2.0)
    with pytest.raises(ValueError, match="grad_passes must be at least 1, got 0"):
        model(*args, grad_passes=0)
    for after in ((), (3, 3), (4, 2)):
        with pytest.raises(ValueError, match="after must be one or more rising numbers of passes"):
            model.hidden_passes(*args, after=after)


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.parametrize("options", [{}, {"attention_dropout": 0.2}, {"norm": "pre", "reinject": False}], ids=str)
def test_the_keywords_of_a_planner_build_it_again(name, options):
    model = make(name, **options)
    again = build(model.config, 6)
    assert type(again) is type(model) and again.config == model.config
    shapes = [{key: p.shape for key, p in planner.named_parameters()} for planner in (model, again)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("kind, norm, reinject", [("baseline", "post", True), ("poh", "pre", False)])
def test_words_stand_for_what_they_say(kind, norm, reinject):
    published = PlannerConfig(kind=kind, **SHAPE)
    assert (published.norm_used, published.reinject_used) == (norm, reinject)
    assert not {"norm", "reinject", "valid_heads"} & set(published.keywords())
    words = dataclasses.replace(published, valid_heads="all", route_scale="heads", reinject="on", norm="post")
    assert words == dataclasses.replace(published, valid_heads=4, route_scale=4.0, reinject=True, norm="post")
    assert build(words, 5).reinject and build(words, 5).norm == "post" and build(words, 5).valid_heads == 4


def test_a_planner_refuses_the_options_of_the_other():
    for option in POH_ONLY:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
            BaselinePlanner(3, **SHAPE, **{option: PlannerConfig.__dataclass_fields__[option].default})
    for cls, option in ((BaselinePlanner, "R"), (PoHPlanner, "loops"), (PoHPlanner, "kind")):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
            cls(3, **SHAPE, **{option: 2})
    with pytest.raises(TypeError, match="d_ff"):
        PoHPlanner(3, d_model=8, n_heads=2, depth=1)
