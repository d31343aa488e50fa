"""The router of a PoH planner: its states are carried, it is trained, and its weights count."""

import pytest
import torch
from torch import nn

from poh_ext.models.blocks import GRUCell
from tests.cases.models import make, random_mazes

pytestmark = pytest.mark.usefixtures("one_thread")


def test_at_the_start_only_alpha_of_the_stack_gets_a_gradient():
    model = make("pooled", alpha=0.0)
    model(*random_mazes(3, (3, 4))).square().mean().backward()
    inside = {n: p for n, p in model.named_parameters() if n.startswith(("blocks", "routers", "gains", "positions"))}
    assert len(inside) > 40
    assert all(p.grad is None or not p.grad.any() for p in inside.values())
    assert model.alpha.grad.abs() > 0


@pytest.mark.parametrize("R, T", [(4, 4), (1, 4), (5, 2)])
def test_slow_cell_is_trained(R, T):
    model = make("pooled", R=R, T=T)
    model(*random_mazes(3, (3, 4))).square().mean().backward()
    for router in model.routers:
        assert router.slow.weight_ih.grad.abs().sum() > 0
        assert router.mix.weight.grad.abs().sum() > 0
        # Its first state is zero, so the recurrent weights take part from its second update on.
        assert bool(router.slow.weight_hh.grad.abs().sum() > 0) == (R > T)


def test_router_states_are_carried_over_the_passes_and_slow_runs_every_T():
    model = make("pooled", R=5, T=2)
    router = model.routers[0]
    seen = {"slow": [], "fast": []}
    for name in seen:
        cell = getattr(router, name)
        cell.register_forward_hook(lambda m, args, out, name=name: seen[name].append((args[0], args[1], out)))
    model(*random_mazes(3, (3, 4)))
    assert len(seen["fast"]) == 5 and len(seen["slow"]) == 3  # slow on passes 0, 2 and 4
    for name, norm in (("slow", router.slow_norm), ("fast", router.fast_norm)):
        assert not seen[name][0][1].any()  # from zero in each forward
        for (_, _, out), (_, state, _) in zip(seen[name], seen[name][1:], strict=False):
            torch.testing.assert_close(state, norm(out), rtol=0, atol=0)
    for step in range(5):  # fast reads the slow state of its own pass
        torch.testing.assert_close(seen["fast"][step][0][:, 8:], router.slow_norm(seen["slow"][step // 2][2]))


def test_outputs_do_not_depend_on_earlier_forwards():
    model, args = make("pooled", R=3, T=2), random_mazes(3, (3, 4))
    first = model(*args)
    model(*random_mazes(7, (3, 4), seed=5))
    torch.testing.assert_close(model(*args), first, rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["pooled", "token"])
def test_heads_are_weighted_before_the_output_projection(variant):
    """A head whose weight is 0 contributes nothing; one that gets all the weight is the only one that does."""
    attention = make(variant).blocks[0].attention
    x = torch.randn(2, 12, 16)
    only = torch.zeros(2, 4) if variant == "pooled" else torch.zeros(2, 12, 4)
    only[..., 2] = 3.0
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    part = slice(8, 12)
    head = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / 2, -1) @ v[..., part]
    expected = 3.0 * head @ attention.out.weight[:, part].t() + attention.out.bias
    torch.testing.assert_close(attention(x, only), expected)


@pytest.mark.parametrize("variant", ["pooled", "token"])
def test_permuting_heads_permutes_weights_and_nothing_else(variant):
    model, args = make(variant), random_mazes(3, (3, 4))
    nn.init.uniform_(model.gains, 0.5, 2.0)
    logits, weights, entropy = model(*args), model.routing_weights(), model.routing_entropy()
    order = torch.tensor([2, 0, 3, 1])
    channels = torch.arange(16).view(4, 4)[order].flatten()
    with torch.no_grad():
        model.gains.copy_(model.gains[:, order])
        for block, router in zip(model.blocks, model.routers, strict=True):
            qkv = block.attention.qkv
            rows = torch.cat([channels, channels + 16, channels + 32])
            qkv.weight.copy_(qkv.weight[rows])
            qkv.bias.copy_(qkv.bias[rows])
            block.attention.out.weight.copy_(block.attention.out.weight[:, channels])
            router.logits.weight.copy_(router.logits.weight[order])
            router.logits.bias.copy_(router.logits.bias[order])
    torch.testing.assert_close(model(*args), logits)
    torch.testing.assert_close(model.routing_weights(), weights[..., order])
    torch.testing.assert_close(model.routing_entropy(), entropy)


def test_routing_weights_and_entropy_of_the_last_forward():
    args = random_mazes(5, (3, 4))
    for variant, shape in (("pooled", (3, 2, 5, 4)), ("token", (3, 2, 5, 12, 4))):
        model = make(variant)
        with pytest.raises(RuntimeError, match="needs a forward pass"):
            model.routing_entropy()
        with pytest.raises(RuntimeError, match="needs a forward pass"):
            model.routing_weights()
        model(*args)
        weights = model.routing_weights()
        assert weights.shape == shape and not weights.requires_grad
        torch.testing.assert_close(weights.sum(-1), torch.ones(shape[:-1]))
        torch.testing.assert_close(model.routing_entropy(), -(weights * weights.log()).sum(-1).mean())
    for router in model.routers:  # all heads equal: ln 4
        nn.init.zeros_(router.logits.weight)
        nn.init.zeros_(router.logits.bias)
    model(*args)
    torch.testing.assert_close(model.routing_entropy(), torch.tensor(4.0).log())


def test_entropy_is_in_the_graph_and_falls_when_its_weight_rises():
    args, target = random_mazes(4, (3, 4)), torch.randn(4, 12, 12)

    def entropy_after(weight):
        model = make("pooled", log_t=0.0)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(12):
            loss = (model(*args) - target).square().mean() + weight * model.routing_entropy()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        model(*args)
        return model.routing_entropy().item()

    none, some, more = entropy_after(0.0), entropy_after(0.3), entropy_after(3.0)
    assert more < some - 0.01 and some < none - 0.01
    model = make("pooled", alpha=0.0)  # with ReZero closed the entropy still trains the routers
    model(*args)
    model.routing_entropy().backward()
    assert all(router.slow.weight_ih.grad.any() and router.logits.weight.grad.any() for router in model.routers)


def test_route_scale_and_temperature():
    args = random_mazes(2, (3, 4))
    for scale in (1, 4):
        model = make("pooled", R=1, route_scale=scale)
        for router in model.routers:
            nn.init.zeros_(router.logits.weight)
            nn.init.zeros_(router.logits.bias)
        x = model.embed(args[0].passages, *args[1:])
        y = x + model.positions.weight[:12]
        for block in model.blocks:
            y = block(y, torch.full((2, 4), scale / 4))
        torch.testing.assert_close(model.hidden(*args), x + 0.7 * (y - x))
        if scale == 4:  # uniform routing at route_scale=n_heads is a plain block
            torch.testing.assert_close(block(y, torch.ones(2, 4)), block(y))
    assert make("pooled").routers[0].temperature == pytest.approx(7.389056)
    assert make("pooled", log_t=-3.0).routers[0].temperature == 0.7


def test_gru_cell_equals_torch():
    ours, theirs = GRUCell(6, 4), nn.GRUCell(6, 4)
    theirs.load_state_dict(ours.state_dict())
    x, state = torch.randn(5, 6), torch.randn(5, 4)
    torch.testing.assert_close(ours(x, state), theirs(x, state))
