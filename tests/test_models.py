"""The planners: what they see, what they answer, and that the router is carried, trained and counted right."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from poh_ext.models import BaselinePlanner, PoHPlanner
from poh_ext.models.layers import GRUCell

SHAPE = {"d_model": 16, "n_heads": 4, "d_ff": 24, "depth": 2}
VARIANTS = {
    "baseline": (BaselinePlanner, {}),
    "looped": (BaselinePlanner, {"loops": 3}),
    "pooled": (PoHPlanner, {"R": 3, "T": 2}),
    "token": (PoHPlanner, {"R": 3, "T": 2, "routing": "token", "route_scale": 4}),
}
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Mazes:
    """The part of MazeBatch that planners read."""

    passages: torch.Tensor

    def raster(self):
        b, h, w = self.passages.shape
        grid = torch.ones(b, 2 * h + 1, 2 * w + 1, dtype=torch.uint8)
        grid[:, 1::2, 1::2] = 0
        grid[:, 2::2, 1::2] = 1 - (self.passages >> 1 & 1)
        grid[:, 1::2, 2::2] = 1 - (self.passages >> 3 & 1)
        return grid


def random_mazes(n, size, seed=0):
    h, w = size if isinstance(size, tuple) else (size, size)
    generator = torch.Generator().manual_seed(seed)
    down = torch.rand(n, h, w, generator=generator) < 0.6
    right = torch.rand(n, h, w, generator=generator) < 0.6
    down[:, -1], right[:, :, -1] = False, False
    up, left = down.roll(1, 1), right.roll(1, 2)
    bits = up * 1 + down * 2 + left * 4 + right * 8
    cells = torch.randint(0, h * w, (2, n), generator=generator)
    return Mazes(bits.to(torch.uint8)), cells[0], cells[1]


def make(variant, size=(3, 4), *, alpha=0.7, seed=0, **options):
    """A model in eval mode; a PoH planner with its ReZero scalar set, so that its stack takes part."""
    cls, own = VARIANTS[variant]
    torch.manual_seed(seed)
    model = cls(size, **SHAPE, **{"cell_features": 4, **own, **options}).eval()
    if isinstance(model, PoHPlanner):
        nn.init.constant_(model.alpha, alpha)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("maze_enc", [False, True])
@pytest.mark.parametrize("cell_features", [1, 4])
def test_shapes_and_gradients_reach_every_parameter(variant, maze_enc, cell_features):
    model = make(variant, maze_enc=maze_enc, cell_features=cell_features).train()
    mazes, start, goal = random_mazes(5, (3, 4))
    mazes.passages[0, 0, 0] = 0  # one walled-in cell, so that cell_features=1 is not all zeros
    assert model.hidden(mazes, start, goal).shape == (5, 12, 16)
    logits = model(mazes, start, goal)
    assert logits.shape == (5, 12, 12)
    logits.square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_policy_is_the_candidate_columns_of_the_logits(variant):
    model = make(variant)
    mazes, start, goal = random_mazes(6, (3, 4))
    logits, moves = model(mazes, start, goal), model.policy(mazes, start, goal)
    steps = (-4, 4, -1, 1)
    for b in range(6):
        for cell in range(12):
            for k, step in enumerate(steps):
                if mazes.passages[b].flatten()[cell] >> k & 1:
                    torch.testing.assert_close(moves[b, cell, k], logits[b, cell, cell + step])
                else:
                    assert moves[b, cell, k] == -torch.inf


@pytest.mark.parametrize("variant", VARIANTS)
def test_empty_batch_and_float64_and_other_sizes(variant):
    model = make(variant, size=1)
    assert model(*random_mazes(2, 1)).shape == (2, 1, 1)
    model = make(variant, size=(2, 5), maze_enc=True)
    mazes, start, goal = random_mazes(0, (2, 5))
    assert model(mazes, start, goal).shape == (0, 10, 10)
    assert model.policy(mazes, start, goal).shape == (0, 10, 4)
    assert model.double()(*random_mazes(2, (2, 5))).dtype == torch.float64


def test_more_cells_than_the_published_table_of_positions():
    model = PoHPlanner(23, d_model=8, n_heads=2, d_ff=8, depth=1, R=1)
    assert model(*random_mazes(1, 23)).shape == (1, 529, 529)


def test_baseline_equals_torch_transformer_encoder():
    model = make("baseline", maze_enc=True)
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.1, activation="relu", batch_first=True, norm_first=False)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    for ours, theirs in zip(model.blocks, encoder.layers, strict=True):
        theirs.load_state_dict({
            "self_attn.in_proj_weight": ours.attention.qkv.weight, "self_attn.in_proj_bias": ours.attention.qkv.bias,
            "self_attn.out_proj.weight": ours.attention.out.weight, "self_attn.out_proj.bias": ours.attention.out.bias,
            "linear1.weight": ours.expand.weight, "linear1.bias": ours.expand.bias,
            "linear2.weight": ours.contract.weight, "linear2.bias": ours.contract.bias,
            "norm1.weight": ours.norm1.weight, "norm1.bias": ours.norm1.bias,
            "norm2.weight": ours.norm2.weight, "norm2.bias": ours.norm2.bias,
        })  # fmt: skip
    mazes, start, goal = random_mazes(3, (3, 4))
    features = torch.stack([mazes.passages.flatten(1) >> k & 1 for k in range(4)], -1).float()
    place = torch.arange(12)
    tokens = (
        model.embed.cell(features)
        + model.embed.position(place)
        + model.embed.start((place == start[:, None]).long())
        + model.embed.goal((place == goal[:, None]).long())
        + model.encoder(mazes.raster())[:, None]
    )
    torch.testing.assert_close(model(mazes, start, goal), model.head(encoder(tokens)))


def test_looped_baseline_reuses_its_blocks_and_reads_the_maze_again():
    once, twice = make("baseline"), make("looped", loops=2)
    assert {n: p.shape for n, p in once.named_parameters()} == {n: p.shape for n, p in twice.named_parameters()}
    twice.load_state_dict(once.state_dict())
    args = random_mazes(3, (3, 4))
    maze = once.embed(args[0].passages, *args[1:])
    x = once.hidden(*args) + maze
    for block in once.blocks:
        x = block(x)
    torch.testing.assert_close(twice.hidden(*args), x)


def test_walls_are_visible_with_passage_bits_and_hidden_as_published():
    mazes = Mazes(torch.tensor([[[10, 14, 14, 6], [11, 15, 15, 7], [9, 13, 13, 5]]], dtype=torch.uint8))  # all open
    start, goal = torch.tensor([0]), torch.tensor([7])
    other = Mazes(mazes.passages.clone())
    other.passages[0, 0, 0] ^= 2  # a wall between the first two rows
    other.passages[0, 1, 0] ^= 1
    seen, blind = make("baseline"), make("baseline", cell_features=1)
    assert not torch.allclose(seen(mazes, start, goal), seen(other, start, goal))
    torch.testing.assert_close(blind(mazes, start, goal), blind(other, start, goal), rtol=0, atol=0)
    assert (blind.embed.features(torch.full((1, 3, 4), 15, dtype=torch.uint8)) == 0).all()  # all open: zeros
    summary = make("baseline", cell_features=1, maze_enc=True)  # the encoder sees the raster all the same
    assert not torch.allclose(summary(mazes, start, goal), summary(other, start, goal))


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_autocast_trains_and_stays_near_float32(variant):
    model, args = make(variant, maze_enc=True), random_mazes(3, (3, 4))
    exact = model(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, moves = model(*args), model.policy(*args)
        entropy = model.routing_entropy() if isinstance(model, PoHPlanner) else torch.zeros(())
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.05)
    (logits.float().square().mean() + moves[moves.isfinite()].float().sum() + entropy).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_copies_and_saved_weights_after_a_forward(variant):
    model, args = make(variant), random_mazes(3, (3, 4))
    logits = model(*args)  # leaves a graph behind, which no copy may hold
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(*args), logits, rtol=0, atol=0)
    fresh = make(variant, seed=1)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(*args), logits, rtol=0, atol=0)


def test_the_graph_of_a_forward_is_freed_by_the_next():
    import weakref

    model, args = make("pooled"), random_mazes(3, (3, 4))
    logits = model(*args)
    old = weakref.ref(model.routing_entropy())
    del logits
    with torch.no_grad():
        model(*args)
    assert old() is None and not model.routing_entropy().requires_grad


@pytest.mark.parametrize("variant", ["looped", "pooled"])
def test_compiles_without_graph_breaks(variant):
    model, (mazes, start, goal) = make(variant), random_mazes(2, (3, 4))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(mazes, start, goal)
    torch.testing.assert_close(compiled(mazes, start, goal), expected)
    if variant == "pooled":
        compiled(mazes, start, goal)
        model.routing_entropy().backward()
        assert model.routers[0].logits.weight.grad.any()


@pytest.mark.parametrize("cls", [BaselinePlanner, PoHPlanner])
@pytest.mark.parametrize("size, change, error, words", [
    (0, {}, ValueError, "size must be at least 1, got 0"),
    ((3, 0), {}, ValueError, "width.* must be at least 1"),
    (2.0, {}, TypeError, "size must be an int"),
    ((1, 2, 3), {}, ValueError, "size must be an int or a pair"),
    (3, {"d_model": 0}, ValueError, "d_model must be at least 1"),
    (3, {"d_model": 18}, ValueError, "divisible by n_heads, got d_model=18, n_heads=4"),
    (3, {"n_heads": 0}, ValueError, "n_heads must be at least 1"),
    (3, {"d_ff": 0}, ValueError, "d_ff must be at least 1"),
    (3, {"depth": 0}, ValueError, "depth must be at least 1"),
    (3, {"depth": True}, TypeError, "depth must be an int"),
    (3, {"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
    (3, {"attention_dropout": -0.1}, ValueError, r"attention_dropout must be in"),
    (3, {"dropout": "no"}, TypeError, "dropout must be a number"),
    (3, {"cell_features": 2}, ValueError, r"cell_features must be 1 .*, 4 .* or 6 .*, got 2"),
])  # fmt: skip
def test_bad_options_are_named(cls, size, change, error, words):
    with pytest.raises(error, match=words):
        cls(size, **{**SHAPE, **change})


@pytest.mark.parametrize("cls, change, error, words", [
    (BaselinePlanner, {"loops": 0}, ValueError, "loops must be at least 1"),
    (PoHPlanner, {"R": 0}, ValueError, "R must be at least 1"),
    (PoHPlanner, {"T": 0}, ValueError, "T must be at least 1"),
    (PoHPlanner, {"routing": "hard"}, ValueError, "routing must be 'pooled' or 'token', got 'hard'"),
    (PoHPlanner, {"route_scale": 0}, ValueError, "route_scale must be positive"),
    (PoHPlanner, {"route_scale": "x"}, TypeError, "route_scale must be a number"),
    (PoHPlanner, {"log_t": float("inf")}, ValueError, "log_t must be finite"),
    (PoHPlanner, {"d_model": 1, "n_heads": 1}, ValueError, "d_model must be at least 2"),
])  # fmt: skip
def test_bad_options_of_one_planner_are_named(cls, change, error, words):
    with pytest.raises(error, match=words):
        cls(3, **{**SHAPE, **change})


def test_bad_inputs_are_named():
    model = make("baseline")
    mazes, start, goal = random_mazes(3, (3, 4))
    with pytest.raises(TypeError, match="mazes must be a MazeBatch, got Tensor"):
        model(mazes.passages, start, goal)
    with pytest.raises(ValueError, match=r"model's size 3x4, got passages of shape \(3, 4, 3\)"):
        model(random_mazes(3, (4, 3))[0], start, goal)
    with pytest.raises(TypeError, match=r"start must be an int64 tensor, got torch.int32"):
        model(mazes, start.int(), goal)
    with pytest.raises(TypeError, match="goal must be an int64 tensor, got list"):
        model(mazes, start, [1, 2, 3])
    with pytest.raises(ValueError, match=r"goal must have shape \(3,\), got \(2,\)"):
        model(mazes, start, goal[:2])
    with pytest.raises(IndexError, match=r"start\[1\] is 12, but cells are 0 to 11"):
        model(mazes, torch.tensor([0, 12, -1]), goal)
    with pytest.raises(IndexError, match=r"goal\[0\] is -1"):
        model.policy(mazes, start, torch.tensor([-1, 0, 0]))
    with pytest.raises(ValueError, match="mazes are on cpu, the model is on meta"):
        make("baseline").to("meta")(mazes, start, goal)
    with pytest.raises(ValueError, match="start is on meta, mazes are on cpu"):
        model(mazes, start.to("meta"), goal)
