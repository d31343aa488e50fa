"""Obstacles, percolation of any density and braids: shares, extremes, equal bits, errors."""

import contextlib
import hashlib
import warnings

import pytest
import torch

from poh_ext import GENERATORS, MazeBatch, generate_mazes, sample_tasks
from poh_ext.mazes import DENSITY
from poh_ext.ops import maze as ops
from tests.cases.backends import needs_kernels, reference

PERFECT = [name for name in GENERATORS if name not in DENSITY]
SIZES = [1, (1, 7), (5, 1), 12, (9, 14)]
OPTIONS = [
    *(("percolation", {"density": d}) for d in (None, 0.5, 0.25, (0.1, 0.9), 0, 1)),
    *(("obstacles", {"density": d}) for d in (None, 0.5, (0.3, 0.5), 0, 1)),
    *((name, {"braid": b}) for name in PERFECT for b in (0.3, (0, 1))),
]


def walls_of(size) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    return 2 * height * width - height - width


def opened(mazes: MazeBatch) -> torch.Tensor:
    """float64 [B]: walls that do not stand."""
    return (mazes.neighbors() >= 0).sum((1, 2)).double() / 2


@needs_kernels
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm, options", OPTIONS)
def test_the_same_bits_however_they_are_made(algorithm, options, size):
    def make(n, first=0):
        return generate_mazes(n, size, algorithm=algorithm, seed=2**40 + 7, start_index=first, **options)

    mazes, before = make(24), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(make(24).passages, mazes.passages)
    finally:
        torch.set_num_threads(before)
    parts = MazeBatch.cat(make(n, first) for first, n in ((0, 1), (1, 16), (17, 7)))
    assert torch.equal(parts.passages, mazes.passages) and torch.equal(parts.free(), mazes.free())
    with reference():
        again = make(24)
    assert torch.equal(again.passages, mazes.passages) and torch.equal(again.free(), mazes.free())
    MazeBatch(mazes.passages, free=mazes.free())  # is checked


@pytest.mark.parametrize(
    "n, size, seed, digest", [(50, 12, 8, "9dc5d03d4990dc44"), (20, (9, 14), 2**40, "27529c9aab7e921e")]
)
def test_percolation_of_a_half_is_what_it_was(n, size, seed, digest):
    """As before there was a density."""
    for density in (None, 0.5):
        mazes = generate_mazes(n, size, algorithm="percolation", density=density, seed=seed)
        assert hashlib.sha256(mazes.passages.cpu().numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.77])
def test_each_wall_or_cell_is_drawn_with_the_density(density):
    n, size = 500, 12
    walls, cells = n * walls_of(size), n * size**2
    standing = walls - float(opened(generate_mazes(n, size, algorithm="percolation", density=density, seed=3)).sum())
    assert abs(standing - density * walls) < 5 * (walls * density * (1 - density)) ** 0.5
    grids = generate_mazes(n, size, algorithm="obstacles", density=density, seed=3)
    blocked = int((~grids.free()).sum())
    assert abs(blocked - density * cells) < 5 * (cells * density * (1 - density)) ** 0.5
    assert torch.equal(grids.passages, MazeBatch.from_free(grids.free()).passages)
    times = (~grids.free()).double().sum(0)  # each cell as often as any
    assert (times - density * n).abs().max() < 5 * (n * density * (1 - density)) ** 0.5


@pytest.mark.parametrize("low, high", [(0.3, 0.5), (0.0, 1.0)])
def test_a_maze_draws_its_own_density_from_a_range(low, high):
    n, size = 3000, 20
    cells, walls = size**2, walls_of(size)
    grids = generate_mazes(n, size, algorithm="obstacles", density=(low, high), seed=5)
    mazes = generate_mazes(n, size, algorithm="percolation", density=(low, high), seed=5)
    middle, spread = (low + high) / 2, (high - low) ** 2 / 12
    for shares, count in (((~grids.free()).double().mean((1, 2)), cells), (1 - opened(mazes) / walls, walls)):
        within = middle * (1 - middle) - spread  # the mean of p (1 - p)
        assert abs(float(shares.mean()) - middle) < 5 * ((spread + within / count) / n) ** 0.5
        variance = spread + within / count
        assert abs(float(shares.var()) / variance - 1) < 5 * (2 / n) ** 0.5
    if (low, high) == (0.3, 0.5):
        default = generate_mazes(n, size, algorithm="obstacles", seed=5)
        assert torch.equal(grids.free(), default.free())


@pytest.mark.parametrize("algorithm", PERFECT)
@pytest.mark.parametrize("braid", [0.1, 0.6])
def test_braid_opens_that_share_of_the_walls_that_stand(algorithm, braid):
    n, size = 400, 12
    perfect = generate_mazes(n, size, algorithm=algorithm, seed=4)
    loops = generate_mazes(n, size, algorithm=algorithm, braid=braid, seed=4)
    assert torch.equal(loops.passages & perfect.passages, perfect.passages)  # none is closed
    left = n * (walls_of(size) - (size**2 - 1))
    more = float((opened(loops) - opened(perfect)).sum())
    assert abs(more - braid * left) < 5 * (left * braid * (1 - braid)) ** 0.5


@pytest.mark.parametrize("size", SIZES)
def test_extremes(size):
    whole = MazeBatch.open(6, size)
    for algorithm in PERFECT:
        assert torch.equal(generate_mazes(6, size, algorithm=algorithm, braid=1).passages, whole.passages)
        plain = generate_mazes(6, size, algorithm=algorithm)
        assert torch.equal(generate_mazes(6, size, algorithm=algorithm, braid=(0, 0)).passages, plain.passages)
    for algorithm in DENSITY:
        assert torch.equal(generate_mazes(6, size, algorithm=algorithm, density=0).passages, whole.passages)
        full = generate_mazes(6, size, algorithm=algorithm, density=1.0)
        assert not full.passages.any()
        assert bool(full.free().any()) == (algorithm == "percolation")


def test_no_mazes():
    assert generate_mazes(0, 5, algorithm="obstacles").free().shape == (0, 5, 5)
    assert len(generate_mazes(0, 5, braid=0.5)) == 0


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"density": 0.3}, ValueError, "density is for percolation and obstacles, not for dfs; braid opens"),
        ({"algorithm": "obstacles", "braid": 0.1}, ValueError,
         r"braid is for perfect mazes \(dfs, wilson, prim, kruskal\), not for obstacles; it has density"),
        ({"algorithm": "obstacles", "density": 1.1}, ValueError, r"density must be in \[0, 1\], .*got 1.1"),
        ({"algorithm": "obstacles", "density": -0.1}, ValueError, r"density must be in \[0, 1\]"),
        ({"algorithm": "obstacles", "density": (0.5, 0.3)}, ValueError, r"or \(lowest, highest\) there, got \(0.5, "),
        ({"algorithm": "obstacles", "density": float("nan")}, ValueError, "density must be in .*got nan"),
        ({"algorithm": "obstacles", "density": "0.5"}, TypeError, "density must be a number or a pair .*got '0.5'"),
        ({"algorithm": "obstacles", "density": True}, TypeError, "density must be a number or a pair"),
        ({"algorithm": "obstacles", "density": (0.1, 0.2, 0.3)}, TypeError, "density must be a number or a pair"),
        ({"braid": 2}, ValueError, r"braid must be in \[0, 1\]"),
        ({"braid": None}, TypeError, "braid must be a number or a pair .*got None"),
        ({"device": "nowhere"}, ValueError, "device must be a torch.device or its name, got 'nowhere'"),
        ({"device": 1.5}, TypeError, "device must be a torch.device or its name, got 1.5"),
    ],
)  # fmt: skip
def test_bad_input(options, error, message):
    for call in (generate_mazes, sample_tasks):
        with pytest.raises(error, match=message):
            call(1, 4, **options)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", torch.device("cuda")])
def test_a_device_that_is_not_there_is_named(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for call in (generate_mazes, sample_tasks, MazeBatch.open):
        with pytest.raises(ValueError, match=f"device '{device}' is not available; available: cpu"):
            call(1, 4, device=device)


def test_a_device_number_that_is_too_high_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="device 'cuda:2' is not available; available: cpu, cuda:0, cuda:1"):
        MazeBatch.open(1, 4, device="cuda:2")


def test_the_reference_says_once_that_it_is_slow(monkeypatch):
    monkeypatch.setattr(ops, "_MANY_CELLS", 30)
    ops._warn_of_slow_generator.cache_clear()
    with reference(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        generate_mazes(1, 5)
        generate_mazes(1, 6, algorithm="wilson")
        generate_mazes(0, 6)
        assert not caught
        for _ in range(2):
            generate_mazes(1, 6)
    (warning,) = caught
    assert "the PyTorch reference makes dfs mazes of 6 x 6 cell by cell" in str(warning.message)
    assert warning.filename == __file__
    ops._warn_of_slow_generator.cache_clear()
    with contextlib.nullcontext() if ops.has_kernel(torch.device("cpu")) else pytest.warns(RuntimeWarning):
        generate_mazes(1, 6)
