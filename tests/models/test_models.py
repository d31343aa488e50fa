"""The planners: what they see, what they answer, and which options they accept."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from poh_ext.models import BaselinePlanner, PoHPlanner
from tests.cases.device import DEVICE
from tests.cases.models import SHAPE, VARIANTS, Mazes, make, random_mazes

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_autocast_trains_and_stays_near_float32(variant):
    model, args = make(variant, maze_enc=True), random_mazes(3, (3, 4))
    exact = model(*args)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
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
    with pytest.raises(ValueError, match=r"goal must have shape \(3,\) or \(3, G\), got \(2,\)"):
        model(mazes, start, goal[:2])
    with pytest.raises(IndexError, match=r"start\[1\] is 12, but cells are 0 to 11"):
        model(mazes, torch.tensor([0, 12, -1]), goal)
    with pytest.raises(IndexError, match=r"goal\[0\] is -1"):
        model.policy(mazes, start, torch.tensor([-1, 0, 0]))
    with pytest.raises(ValueError, match=f"mazes are on {DEVICE}.*, the model is on meta"):
        make("baseline").to("meta")(mazes, start, goal)
    with pytest.raises(ValueError, match="start is on meta, mazes are on cpu"):
        model(mazes, start.to("meta"), goal)


def test_signatures_show_the_options():
    """Those that DESIGN pins among them, with their defaults."""
    shape = ("d_model", "n_heads", "d_ff", "depth")
    pinned = {"cell_features": 4, "maze_enc": False, "dropout": 0.1}
    for planner, own in ((BaselinePlanner, {"loops": 1}), (PoHPlanner, {"R": 4, "T": 4, "routing": "pooled"})):
        parameters = inspect.signature(planner).parameters
        assert next(iter(parameters)) == "size"
        assert all(parameters[name].default is inspect.Parameter.empty for name in shape)
        assert {name: parameters[name].default for name in {**pinned, **own}} == {**pinned, **own}
        model = planner(3, **dict.fromkeys(shape, 4), **{n: p.default for n, p in parameters.items()
                                                         if p.default is not inspect.Parameter.empty})  # fmt: skip
        assert model.config == planner(3, **dict.fromkeys(shape, 4)).config
    assert "routing" not in inspect.signature(BaselinePlanner).parameters
