"""Passes without a graph: the fused kernel against the blocks, and cells at rest against their definition."""

import itertools

import pytest
import torch

import poh_ext
from poh_ext.models import planners
from tests.cases.backends import needs_kernels
from tests.cases.planners import SHAPE, embed_alone, make, problem

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_BLOCK = {**SHAPE, "d_model": 48, "d_ff": 96, "depth": 1}
SHAPES = {"two blocks": SHAPE, "recipe": ONE_BLOCK, "two heads": {**SHAPE, "d_model": 72, "n_heads": 2, "d_ff": 50}}


def planner(name, shape, **options):
    model = make(name, **{**shape, "norm": "post", "valid_heads": shape["n_heads"], **options})
    for p in model.parameters():  # biases and gains that tell, and a state that comes to rest
        torch.nn.init.uniform_(p, -0.3, 0.3)
    return model


@pytest.fixture
def calls(monkeypatch):
    """(passes made before, numbers of passes whose states are wanted) of each call of the kernel."""
    found, kernel = [], planners.fused_passes

    def spy(*arguments):
        found.append((arguments[4], tuple(arguments[5])))
        return kernel(*arguments)

    monkeypatch.setattr(planners, "fused_passes", spy)
    return found


def without_kernel(monkeypatch, model, *args, **options):
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(planners, "kernel_serves", lambda *_: False)
        return model.hidden_passes(*args, **options)


@needs_kernels
@pytest.mark.parametrize("name", ["baseline", "pooled"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reinject", [True, False])
def test_fused_passes_are_the_blocks_passes(name, shape, reinject, calls):
    model = planner(name, SHAPES[shape], reinject=reinject)
    args = problem(5, (7, 9))
    with torch.no_grad():
        exact = [s.float() for s in model.double().hidden_passes(*args, after=(1, 3, 20))]
        routed = None if name == "baseline" else (model.routing_weights(), model.routing_entropy())
        model.float()
        assert not calls
        found = model.hidden_passes(*args, after=(1, 3, 20))
        assert calls == [(0, (1, 3, 20))]
        torch.testing.assert_close(found, exact, rtol=2e-3, atol=2e-4)
        if routed is not None:
            found_routed = model.routing_weights(), model.routing_entropy()
            torch.testing.assert_close(found_routed, routed, rtol=2e-3, atol=2e-4, check_dtype=False)
        embed_alone(model)
        torch.set_num_threads(3)
        torch.testing.assert_close(model.hidden(*args, passes=20), found[-1], rtol=0, atol=0)


@needs_kernels
@pytest.mark.parametrize("name", ["baseline", "pooled"])
def test_the_kernel_is_left_alone_where_it_does_not_serve(name, calls):
    model, args = planner(name, SHAPE), problem()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(*args)
        planner(name, SHAPE, dropout=0.1).train()(*args)
        planner(name, SHAPE, norm="pre")(*args)
        planner(name, SHAPE, valid_heads=1)(*args)
        planner(name, SHAPE)(*args, tolerance=0.1)  # of two blocks
        if name == "pooled":
            planner(name, SHAPE, residual="rezero")(*args)
            planner(name, SHAPE, routing="token")(*args)
            with model.override_routing("uniform"):
                model(*args)
        mazes, cells = poh_ext.generate_mazes(0, 5), torch.zeros(0, dtype=torch.int64)
        assert not calls and model(mazes, cells, cells).shape == (0, 25, 4)
    assert calls == [(0, (3,))]  # of the empty batch
    model(*args)
    assert len(calls) == 1


@needs_kernels
def test_passes_before_the_graph_are_fused_too(calls):
    model, args = planner("baseline", ONE_BLOCK), problem()
    model(*args, passes=20, grad_passes=4).sum().backward()
    assert calls == [(0, (16,))]


def hold(old, new, tolerance):
    return torch.where((new - old).abs().amax(-1, keepdim=True) <= tolerance, old, new)


@torch.no_grad()
def by_definition(model, mazes, start, goal, passes, tolerance):
    """(the state after each pass, rows put back): every cell is computed, and those that hardly moved are put back."""
    tokens, neighbors = model.embed(mazes.passages, start, goal), mazes.neighbors()
    blocks, is_poh = list(model.blocks), hasattr(model, "routers")
    x, states, put_back = tokens, [], 0
    routers, weights = [None] * len(blocks), [None] * len(blocks)
    for step in range(passes):
        y = x + tokens if step and model.reinject else x
        if is_poh and model.positions is not None:
            y = y + model.positions.weight[: model.n_cells]
        for i, block in enumerate(blocks):
            scaled = None
            if is_poh:
                routed, _, routers[i] = model.routers[i](y, routers[i], step)
                weights[i] = routed if weights[i] is None else hold(weights[i], routed, tolerance)
                scaled = weights[i] * model.gains[i] * model.route_scale
            y = block(y, scaled, neighbors)
        if is_poh and model.alpha is not None:
            y = x + model.alpha * (y - x)
        y = hold(x, y, tolerance)
        put_back += int((y == x).all(-1).sum())
        states.append(x := y)
    return states, put_back


@pytest.mark.parametrize("name", ["baseline", "pooled", "token", "rezero"])
def test_settled_cells_are_as_defined(name, monkeypatch):
    model, args = planner(name, SHAPE), problem(2, 8)
    expected, put_back = by_definition(model, *args, 9, 0.05)
    found = without_kernel(monkeypatch, model, *args, after=(1, 2, 5, 9), tolerance=0.05)
    assert 0 < put_back < 9 * 2 * 64
    torch.testing.assert_close(found, [expected[i - 1] for i in (1, 2, 5, 9)])


@needs_kernels
@pytest.mark.parametrize("name", ["baseline", "pooled"])
@pytest.mark.parametrize("tolerance", [1e-4, 0.02])
def test_the_kernel_skips_nothing_that_matters(name, tolerance, calls):
    """Called for one pass at a time it computes every cell; many passes at once must agree with that."""
    model, args = planner(name, ONE_BLOCK), problem(4, (9, 13))
    tokens, neighbors = model.embed(args[0].passages, *args[1:]), args[0].neighbors()
    with torch.no_grad():
        at_once = model.hidden_passes(*args, after=(3, 40, 80), tolerance=tolerance)
        routed = None if name == "baseline" else model.routing_weights()
        state, one_by_one = model._begin(tokens), []
        for step in range(80):
            state, (cells,) = model._without_graph(state, tokens, neighbors, step, (step + 1,), tolerance)
            one_by_one.append(cells)
        model._end(state)
        every = model.hidden_passes(*args, after=range(1, 81), tolerance=tolerance)
    assert calls == [(0, (3, 40, 80)), *((i, (i + 1,)) for i in range(80)), (0, tuple(range(1, 81)))]
    exact = {"rtol": 0, "atol": 0} if name == "baseline" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(every, one_by_one, **exact)
    torch.testing.assert_close(at_once, [every[2], every[39], every[79]], rtol=0, atol=0)
    if routed is not None:
        torch.testing.assert_close(model.routing_weights(), routed, rtol=1e-5, atol=1e-5)
    moved = [(b - a).abs().amax(-1).flatten() for a, b in itertools.pairwise(one_by_one)]
    assert (torch.cat(moved) > 0).any() and (torch.cat(moved) == 0).any()
    assert all(bool(((m == 0) | (m > tolerance)).all()) for m in moved)  # at rest, or farther than the tolerance


@needs_kernels
@pytest.mark.parametrize("name", ["baseline", "pooled"])
def test_kernel_and_blocks_agree_on_settled_states(name, monkeypatch):
    model, args = planner(name, ONE_BLOCK), problem(3, 10)
    with torch.no_grad():
        kernel = model.hidden_passes(*args, after=(30,), tolerance=1e-3)
    blocks = without_kernel(monkeypatch, model, *args, after=(30,), tolerance=1e-3)
    torch.testing.assert_close(kernel, blocks, rtol=0, atol=0.02)  # a cell at the edge may rest in one of the two only
    torch.testing.assert_close(kernel, blocks, rtol=0, atol=1e-4) if name == "baseline" else None


@needs_kernels
def test_candidates_need_not_be_mutual():
    """A cell reads another that does not read it: it must wake up all the same."""
    model = planner("baseline", ONE_BLOCK)
    candidates = torch.full((1, 6, 4), -1)
    candidates[0, 1:, 0] = torch.arange(5)  # each cell reads the one before
    x = torch.zeros(1, 6, 48)
    tokens = x.clone()
    tokens[0, 0] = torch.randn(48)
    with torch.no_grad():
        run = [model._without_graph(x, tokens, candidates, 0, (n,), 1e-6)[0] for n in range(1, 12)]
        single, at = [], x
        for step in range(11):
            at, _ = model._without_graph(at, tokens, candidates, step, (step + 1,), 1e-6)
            single.append(at)
    torch.testing.assert_close(run, single, rtol=0, atol=0)
    assert (run[-1][0, 5] - run[2][0, 5]).abs().max() > 1e-3


@needs_kernels
def test_states_after_a_fixed_point_are_that_point():
    model, args = planner("baseline", ONE_BLOCK, reinject=False), problem()
    with torch.no_grad():
        states = model.hidden_passes(*args, after=(1, 2, 5, 9), tolerance=100.0)  # nothing ever moves
    torch.testing.assert_close(states, [model.embed(args[0].passages, *args[1:]).detach()] * 4, rtol=0, atol=0)


def test_passes_with_a_graph_compute_every_cell():
    model, args = planner("baseline", ONE_BLOCK), problem()
    torch.testing.assert_close(model(*args, passes=6, tolerance=10.0), model(*args, passes=6))
    with torch.no_grad():
        rigid = model.hidden(*args, passes=6, tolerance=100.0)
    torch.testing.assert_close(rigid, model.embed(args[0].passages, *args[1:]))


def test_bad_tolerances_are_named():
    model, args = planner("baseline", ONE_BLOCK), problem()
    for wrong in (-1e-3, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="tolerance must be at least 0 and finite"):
            model.policy(*args, tolerance=wrong)
    with pytest.raises(TypeError, match="tolerance must be a number, got None"):
        model(*args, tolerance=None)


@needs_kernels
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_fused_passes_let_nan_through_and_leave_their_input(tolerance):
    model = make("baseline", depth=1)
    mazes, _, _ = problem(2)
    with torch.no_grad():
        x = torch.randn(2, 36, 16)
        x[0, 3, 5] = torch.nan
        kept = x.clone()
        out, _ = model._without_graph(x, torch.zeros_like(x), mazes.neighbors(), 0, (3,), tolerance)
        torch.testing.assert_close(x, kept, equal_nan=True)
        assert out[0, 3].isnan().all() and out[1].isfinite().all()
        if tolerance == 0:
            for _ in range(3):
                x = model.blocks[0](x, None, mazes.neighbors())
            torch.testing.assert_close(out, x, equal_nan=True)


@needs_kernels
def test_direct_calls_of_the_fused_passes_are_guarded():
    x, candidates = torch.zeros(2, 9, 8), torch.full((2, 9, 4), -1)
    size = 4 * 8 * 9 + 2 * 5 * (1 + 2 * 4) + 2 * 8 * 6 + 6 + 8 + 32 + 2
    router = 4 * 8 + 4 + (48 + 12) + 8 + (96 + 12) + 8 + 2 * (48 + 12) + 16 + 2 * 4 + 2
    zeros, routers, state = torch.zeros(1, size), torch.zeros(1, router), torch.zeros(1, 2, 10)

    def arguments(
        x=x,
        tokens=x,
        candidates=candidates,
        weights=zeros,
        heads=2,
        d_ff=6,
        step=0,
        passes=1,
        after=None,
        tolerance=0.0,
        routers=None,
        state=None,
        period=1,
        temperature=1.0,
    ):
        after = torch.tensor([step + passes] if after is None else after, dtype=torch.int64)
        return (
            x,
            tokens,
            candidates,
            weights,
            heads,
            d_ff,
            step,
            passes,
            after,
            True,
            1e-5,
            tolerance,
            routers,
            state,
            period,
            temperature,
        )

    op = torch.ops.poh_ext.neighbor_passes
    assert not op(*arguments())[0].any()
    torch.library.opcheck(op.default, arguments(weights=torch.rand(1, size), passes=2, after=[1, 2]))
    torch.library.opcheck(
        op.default,
        arguments(
            weights=torch.rand(1, size),
            passes=2,
            routers=torch.rand(1, router),
            state=torch.rand(1, 2, 10),
            tolerance=1e-3,
        ),
    )
    for change, words in [
        ({"x": x.double()}, "x must be float32"),
        ({"tokens": x[:, :8]}, "tokens must have the shape of x"),
        ({"tokens": x.double()}, "tokens has the wrong dtype"),
        ({"heads": 3}, "x must have a multiple of 3 features, got 8"),
        ({"passes": 0}, "d_ff and passes must be at least 1"),
        ({"step": -1}, "step must be at least 0, got -1"),
        ({"after": []}, "after must end with the last pass, 1"),
        ({"after": [1, 2]}, "after must end with the last pass, 1"),
        ({"after": [0, 1]}, "after must rise from more than step, got 0"),
        ({"passes": 3, "after": [2, 2, 3]}, "after must rise from more than step, got 2"),
        ({"weights": torch.zeros(1, 7)}, "weights must have a row for each block"),
        ({"tolerance": -1.0}, "tolerance must be 0, or positive with one block"),
        ({"weights": torch.zeros(2, size), "tolerance": 1.0}, "tolerance must be 0, or positive with one block"),
        ({"routers": routers}, "router_state must come with routers"),
        ({"routers": routers[:, 1:], "state": state}, "routers must have a row for each block"),
        ({"routers": routers, "state": state[..., 1:].clone()}, r"router_state must be \[depth, B, 10\]"),
        ({"routers": routers, "state": state, "period": 0}, "slow_period and temperature must be positive"),
        ({"candidates": candidates[:, :8]}, "candidates must have a list for each cell"),
    ]:
        with pytest.raises(ValueError, match=words):
            op(*arguments(**change))
    with pytest.raises(IndexError, match=r"candidates\[1, 2, 3\] is 9, but there are 9 cells"):
        wrong = candidates.clone()
        wrong[1, 2, 3] = 9
        op(*arguments(candidates=wrong))


@pytest.mark.parametrize("name", ["baseline", "pooled", "token"])
def test_a_planner_with_rest_settles_with_a_graph_and_without(name, monkeypatch):
    plain, model = planner(name, ONE_BLOCK), planner(name, ONE_BLOCK, rest=0.05)
    model.load_state_dict(plain.state_dict())
    args = problem(2, 8)
    expected, put_back = by_definition(plain, *args, 9, 0.05)
    assert 0 < put_back < 9 * 2 * 64
    graph = model.hidden_passes(*args, after=(1, 5, 9))
    torch.testing.assert_close(graph, [expected[i - 1] for i in (1, 5, 9)])
    late = model.hidden_passes(*args, after=(9,), grad_passes=2, tolerance=0.01)[0]
    torch.testing.assert_close(late, expected[8], rtol=0, atol=1e-3)
    torch.testing.assert_close(without_kernel(monkeypatch, model, *args, after=(9,)), [expected[8]])
    graph[-1].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    # More than the planner's own may be asked for where there is no graph.
    more, _ = by_definition(plain, *args, 9, 0.2)
    torch.testing.assert_close(without_kernel(monkeypatch, model, *args, after=(9,), tolerance=0.2), [more[8]])


def test_rest_is_checked_and_kept_with_the_planner():
    assert planner("baseline", ONE_BLOCK, rest=0.1).config.keywords()["rest"] == 0.1
    for wrong, error, words in (
        (-0.1, ValueError, "rest must be at least 0, got -0.1"),
        (float("nan"), ValueError, "rest must be finite, got nan"),
        (True, TypeError, "rest must be a number, got True"),
    ):
        with pytest.raises(error, match=words):
            planner("baseline", ONE_BLOCK, rest=wrong)
