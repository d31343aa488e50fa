"""Published parameter counts, the rules of parity, and the arithmetic counted per maze."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import poh_ext
from poh_ext.models import (
    SHAPES,
    BaselinePlanner,
    PlannerShape,
    PoHPlanner,
    gflop_per_maze,
    match_width,
    parameter_count,
)
from tests.cases.backends import needs_kernels

POH_DEPTH_FIRST = PlannerShape(320, 5, 1280, 4)
POH_SHALLOW = PlannerShape(384, 6, 1536, 3)


@pytest.mark.parametrize("cls, shape, plain, with_encoder", [
    (BaselinePlanner, SHAPES["12x12"], 7_210_896, 7_412_688),
    (PoHPlanner, POH_DEPTH_FIRST, 7_040_825, 7_209_785),
    (PoHPlanner, POH_SHALLOW, 7_631_221, 7_833_013),
    (PoHPlanner, SHAPES["12x12"], 10_071_745, 10_273_537),
])  # fmt: skip
def test_published_counts_at_12x12(cls, shape, plain, with_encoder):
    for maze_enc, count in ((False, plain), (True, with_encoder)):
        assert parameter_count(cls, 12, **shape._asdict(), cell_features=1, maze_enc=maze_enc) == count


@pytest.mark.parametrize("name, baseline, d_model, poh", [
    ("tiny", 533_568, 108, 561_921),
    ("small", 2_638_272, 216, 2_667_605),
    ("medium", 13_142_464, 432, 13_065_777),
    ("large", 43_324_096, 648, 42_810_785),
    ("xl", 101_830_592, 912, 111_935_985),
])  # fmt: skip
def test_published_counts_and_widths_of_the_scaling_benchmark(name, baseline, d_model, poh):
    options = {"cell_features": 1, "maze_enc": True}
    assert parameter_count(BaselinePlanner, 16, **SHAPES[name]._asdict(), **options) == baseline
    chosen = match_width(16, SHAPES[name], **options)
    assert chosen.d_model == d_model and chosen.depth == SHAPES[name].depth
    assert parameter_count(PoHPlanner, 16, **chosen._asdict(), **options) == poh
    # With the walls visible (3 more input features) the same widths are chosen.
    assert match_width(16, SHAPES[name], cell_features=4, maze_enc=True) == chosen


def test_options_and_passes_cost_no_parameters():
    shape = SHAPES["tiny"]._asdict()
    assert len({parameter_count(BaselinePlanner, 8, **shape, loops=n) for n in (1, 4)}) == 1
    variants = [{}, {"R": 9, "T": 2}, {"routing": "token", "route_scale": 4}]
    assert len({parameter_count(PoHPlanner, 8, **shape, **v) for v in variants}) == 1


def test_parity_at_12x12():
    for options in ({}, {"cell_features": 1}, {"maze_enc": True}):
        assert match_width(12, SHAPES["12x12"], rule="heads", **options) == POH_DEPTH_FIRST
        assert match_width(12, SHAPES["12x12"], mode="width", **options) == POH_SHALLOW
    assert match_width(12, SHAPES["12x12"], mode="none") == SHAPES["12x12"]
    assert match_width(12, (384, 6, 1536, 4), rule="heads", limit=2) == SHAPES["12x12"]


def test_parity_takes_the_first_that_fits_and_names_what_cannot():
    baseline = parameter_count(BaselinePlanner, 12, **SHAPES["12x12"]._asdict())
    five = parameter_count(PoHPlanner, 12, **POH_DEPTH_FIRST._asdict())
    ratio = five / baseline
    assert match_width(12, SHAPES["12x12"], rule="heads", limit=ratio * 1.0001) == POH_DEPTH_FIRST
    assert match_width(12, SHAPES["12x12"], rule="heads", limit=ratio * 0.9999).n_heads == 4
    with pytest.raises(ValueError, match=r"at most 0.1 x the baseline's 7,\d+,\d+ .*smallest tried has"):
        match_width(12, SHAPES["12x12"], limit=0.1)
    with pytest.raises(ValueError, match="no candidate was tried"):
        match_width(12, SHAPES["12x12"], scales=())


@pytest.mark.parametrize("change, words", [
    ({"mode": "deep"}, "mode must be one of depth, width, none, got 'deep'"),
    ({"rule": "layers"}, "rule must be one of scale, heads, got 'layers'"),
    ({"limit": 0}, "limit must be a positive number, got 0"),
    ({"limit": float("nan")}, "limit must be a positive number"),
])  # fmt: skip
def test_bad_parity_options_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        match_width(12, SHAPES["12x12"], **change)
    with pytest.raises(TypeError, match="only with a class"):
        parameter_count(torch.nn.Linear(2, 2), 12)


def block_flop(n, d, ff):
    return 2 * n * d * 3 * d + 2 * n * n * d * 2 + 2 * n * d * d + 2 * 2 * n * d * ff


def encoder_flop(h, w, d):
    pixels = (2 * h + 1) * (2 * w + 1)
    return 2 * pixels * 9 * (1 * 16 + 16 * 32) + 2 * 512 * d


@pytest.mark.parametrize("loops", [1, 3])
@pytest.mark.parametrize("maze_enc", [False, True])
def test_gflop_of_the_baseline_by_hand(loops, maze_enc):
    h, w, d, ff, depth = 3, 5, 16, 40, 2
    n = h * w
    model = BaselinePlanner((h, w), d_model=d, n_heads=4, d_ff=ff, depth=depth, loops=loops, maze_enc=maze_enc)
    expected = 2 * n * 8 * d + loops * depth * block_flop(n, d, ff) + 2 * n * d * n + maze_enc * encoder_flop(h, w, d)
    assert gflop_per_maze(model) == pytest.approx(expected / 1e9, rel=1e-12)


@pytest.mark.parametrize("R, T, slow_updates", [(1, 4, 1), (4, 4, 1), (5, 2, 3)])
@pytest.mark.parametrize("routing", ["pooled", "token"])
def test_gflop_of_poh_by_hand(R, T, slow_updates, routing):
    n, d, ff, depth, heads = 12, 16, 40, 2, 4
    c, rows = d // 2, (n if routing == "token" else 1)
    model = PoHPlanner((3, 4), d_model=d, n_heads=heads, d_ff=ff, depth=depth, R=R, T=T, routing=routing)
    fast = 2 * rows * (d * c + 3 * c * 2 * c + 3 * c * c + c * c + c * heads)
    slow = 2 * rows * 6 * c * c
    stack = R * depth * (block_flop(n, d, ff) + fast) + slow_updates * depth * slow
    assert gflop_per_maze(model) == pytest.approx((2 * n * 8 * d + stack + 2 * n * d * n) / 1e9, rel=1e-12)


@pytest.mark.parametrize("near", [1, 3, 4])
def test_heads_that_see_neighbors_count_five_slots_a_cell(near):
    """Scores and values: two products of Dh multiply-adds for each of five slots, cell and head, in each pass."""
    h, w, d, ff, depth, heads, passes = 3, 5, 16, 40, 2, 4, 3
    n, d_head = h * w, d // heads
    shape = {"d_model": d, "n_heads": heads, "d_ff": ff, "depth": depth}
    attention = 2 * n * n * d_head * 2 * (heads - near) + 2 * 2 * 5 * d_head * n * near
    block = 2 * n * d * 3 * d + attention + 2 * n * d * d + 2 * 2 * n * d * ff
    model = BaselinePlanner((h, w), **shape, loops=passes, valid_heads=near)
    expected = 2 * n * 8 * d + passes * depth * block + 2 * n * d * n
    assert gflop_per_maze(model) == pytest.approx(expected / 1e9, rel=1e-12)
    assert gflop_per_maze(model.double().eval()) == gflop_per_maze(model)
    assert not any(m._forward_hooks for m in model.modules())
    poh = [PoHPlanner((h, w), **shape, R=passes, valid_heads=v) for v in (0, near)]
    saved = passes * depth * (2 * n * n * d_head * 2 - 2 * 2 * 5 * d_head * n) * near
    assert gflop_per_maze(poh[0]) - gflop_per_maze(poh[1]) == pytest.approx(saved / 1e9, rel=1e-9)


@needs_kernels
def test_flop_counter_knows_the_op_and_its_backward():
    q, k, v = torch.randn(3, 2, 3, 16, 5, requires_grad=True)
    mazes = poh_ext.generate_mazes(2, 4, seed=1)
    forward = 2 * 2 * 5 * 5 * 2 * 3 * 16
    with FlopCounterMode(display=False) as counter:
        out = poh_ext.neighbor_attention(q, k, v, mazes.neighbors())
        assert counter.get_total_flops() == forward
        out.sum().backward()
    assert counter.get_total_flops() == 3 * forward


def test_counting_leaves_the_model_as_it_was():
    model = PoHPlanner(3, d_model=8, n_heads=2, d_ff=8, depth=1)
    gflop_per_maze(model)
    with pytest.raises(RuntimeError, match="needs a forward pass"):
        model.routing_entropy()
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_gflop_of_a_training_step_of_the_benchmark():
    """The design's figure for the baseline at batch 32, three times the forward."""
    assert 96 * gflop_per_maze(BaselinePlanner(12, **SHAPES["12x12"]._asdict())) == pytest.approx(210, rel=0.01)
