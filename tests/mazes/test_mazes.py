"""Maze batches and generators: against brute force in plain Python, enumeration and closed forms."""

import itertools

import pytest
import torch

from poh_ext import GENERATORS, MazeBatch, generate_mazes
from poh_ext.mazes import DENSITY
from tests.cases.device import DEVICE
from tests.cases.search import plain_distances, plain_path

PERFECT = [name for name in GENERATORS if name not in DENSITY]
SIZES = [1, 2, (1, 7), (7, 1), (3, 5), 12]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm", GENERATORS)
def test_generated_mazes_are_sound(algorithm, size):
    mazes = generate_mazes(40, size, algorithm=algorithm, seed=11)
    MazeBatch(mazes.passages)  # checks both sides of every passage
    if algorithm in PERFECT:
        assert ((mazes.neighbors() >= 0).sum((1, 2)) == 2 * (mazes.n_cells - 1)).all()
        assert (mazes.distances(torch.zeros(40, dtype=torch.int64)) >= 0).all()


@pytest.mark.parametrize("algorithm", GENERATORS)
def test_a_maze_does_not_depend_on_its_batch(algorithm):
    whole = generate_mazes(30, (4, 6), algorithm=algorithm, seed=5)
    splits = ((0, 1), (1, 16), (17, 13))
    parts = [generate_mazes(n, (4, 6), algorithm=algorithm, seed=5, start_index=i) for i, n in splits]
    assert torch.equal(torch.cat([p.passages for p in parts]), whole.passages)
    assert not torch.equal(generate_mazes(30, (4, 6), algorithm=algorithm, seed=6).passages, whole.passages)


def test_wilson_is_uniform_over_the_192_spanning_trees_of_3x3():
    mazes = generate_mazes(192 * 100, 3, algorithm="wilson", seed=1)
    counts = mazes.passages.view(-1, 9).unique(dim=0, return_counts=True)[1].double()
    assert len(counts) == 192
    assert 130 < float(((counts - 100) ** 2 / 100).sum()) < 259  # chi-square, 191 degrees of freedom, p = 0.0005 each


@pytest.mark.parametrize("algorithm", PERFECT)
def test_every_spanning_tree_of_3x3_occurs(algorithm):
    mazes = generate_mazes(20000, 3, algorithm=algorithm, seed=2)
    expected = 192 if algorithm != "dfs" else None
    found = len(mazes.passages.view(-1, 9).unique(dim=0))
    assert found == expected if expected else 50 < found <= 192


def test_kruskal_of_2x3_has_its_own_distribution():
    """Not uniform: how likely each of its 15 spanning trees is comes from all 7! orders of the walls."""
    walls = [(0, 3), (1, 4), (2, 5), (0, 1), (1, 2), (3, 4), (4, 5)]
    expected: dict[frozenset, int] = {}
    for order in itertools.permutations(range(7)):
        part, tree = list(range(6)), set()
        for wall in order:
            a, b = part[walls[wall][0]], part[walls[wall][1]]
            if a != b:
                part = [a if p == b else p for p in part]
                tree.add(wall)
        expected[frozenset(tree)] = expected.get(frozenset(tree), 0) + 1
    n = 30000
    mazes = generate_mazes(n, (2, 3), algorithm="kruskal", seed=4)
    around = mazes.neighbors()
    is_open = torch.stack([(around[:, a] == b).any(1) for a, b in walls], 1)
    code = (is_open.long() << torch.arange(7)).sum(1)
    chi = sum(
        (int((code == sum(1 << w for w in tree)).sum()) - n * ways / 5040) ** 2 / (n * ways / 5040)
        for tree, ways in expected.items()
    )
    assert len(expected) == 15
    assert chi < 36.1  # 14 degrees of freedom, p = 0.001


def test_percolation_opens_half_the_walls():
    mazes = generate_mazes(2000, 12, algorithm="percolation", seed=8)
    walls = 2000 * 264
    opened = int((mazes.neighbors() >= 0).sum()) // 2
    assert abs(opened - walls / 2) < 4 * (walls / 4) ** 0.5


@pytest.mark.parametrize("algorithm", GENERATORS)
def test_distances_and_paths_against_brute_force(algorithm):
    mazes = generate_mazes(12, (5, 6), algorithm=algorithm, seed=3)
    start, goal = torch.arange(12), torch.arange(29, 5, -2)
    distances, paths = mazes.distances(goal), mazes.shortest_paths(start, goal)
    assert distances.dtype == torch.int32 and paths.dtype == torch.int64
    for maze in range(12):
        assert distances[maze].tolist() == plain_distances(mazes.passages[maze], [int(goal[maze])])
        path = plain_path(mazes.passages[maze], int(start[maze]), [int(goal[maze])])
        assert paths[maze].tolist() == path + [-1] * (paths.shape[1] - len(path))
    assert paths.shape[1] == max((paths >= 0).sum(1))


@pytest.mark.parametrize("size", [1, 2, (1, 7), (7, 1), (3, 5)])
def test_an_open_grid_has_no_inner_walls(size):
    mazes = MazeBatch.open(3, size)
    MazeBatch(mazes.passages)  # no passage leads out of the grid
    height, width = mazes.size
    assert mazes.size == (size if isinstance(size, tuple) else (size, size)) and len(mazes) == 3
    cells = [divmod(cell, width) for cell in range(height * width)]
    apart = torch.tensor([[abs(a - c) + abs(b - d) for c, d in cells] for a, b in cells])
    assert torch.equal(mazes.valid_mask(), (apart == 1).expand(3, -1, -1))
    for goal in range(mazes.n_cells):
        assert torch.equal(mazes.distances(torch.full((3,), goal)), apart[goal].int().expand(3, -1))
    assert not mazes.raster()[:, 1:-1, 1::2].any() and not mazes.raster()[:, 1::2, 1:-1].any()
    assert len(MazeBatch.open(0, size)) == 0
    assert MazeBatch.open(2, size, device="meta").device.type == "meta"


def test_of_two_shortest_paths_the_first_step_decides():
    ring = MazeBatch(torch.tensor([[[10, 6], [9, 5]]], dtype=torch.uint8))
    assert ring.shortest_paths(torch.tensor([0]), torch.tensor([3])).tolist() == [[0, 2, 3]]  # down before right
    assert ring.shortest_paths(torch.tensor([3]), torch.tensor([0])).tolist() == [[3, 1, 0]]  # up before left


def test_paths_of_fixed_length_and_special_cases():
    apart = MazeBatch(torch.tensor([[[8, 12, 4, 0]]], dtype=torch.uint8))
    at = lambda x: torch.tensor([x])  # noqa: E731
    assert apart.shortest_paths(at(0), at(2), length=5).tolist() == [[0, 1, 2, -1, -1]]
    assert apart.shortest_paths(at(0), at(2), length=2).tolist() == [[0, 1]]
    assert apart.shortest_paths(at(1), at(1)).tolist() == [[1]]
    assert apart.shortest_paths(at(0), at(3), length=2).tolist() == [[-1, -1]]
    assert apart.distances(at(3)).tolist() == [[-1, -1, -1, 0]]
    none = generate_mazes(0, 4)
    empty = torch.zeros(0, dtype=torch.int64)
    assert none.shortest_paths(empty, empty).shape == (0, 0) and none.distances(empty).shape == (0, 16)
    assert none.neighbors().shape == (0, 16, 4) and none.valid_mask().shape == (0, 16, 16)
    assert none.raster().shape == (0, 9, 9) and none.hash().shape == (0,)


@pytest.mark.parametrize("size", [1, (2, 3), 12])
def test_mask_raster_and_neighbors_agree(size):
    mazes = generate_mazes(9, size, algorithm="percolation", seed=1)
    n, (height, width) = mazes.n_cells, mazes.size
    around, mask, image = mazes.neighbors(), mazes.valid_mask(), mazes.raster()
    expected = torch.zeros(9, n, n + 1, dtype=torch.bool)
    expected.scatter_(2, torch.where(around < 0, n, around), True)
    assert torch.equal(mask, expected[..., :n])
    for cell in range(n):
        row, column = divmod(cell, width)
        steps = ((-1, 0, -width), (1, 0, width), (0, -1, -1), (0, 1, 1))
        for side, (down, right, change) in enumerate(steps):
            is_open = image[:, 2 * row + 1 + down, 2 * column + 1 + right] == 0
            assert torch.equal(is_open, around[:, cell, side] >= 0)
            assert ((around[:, cell, side] == cell + change) | ~is_open).all()
    assert (image[:, 1::2, 1::2] == 0).all() and (image[:, ::2, ::2] == 1).all()
    assert image.shape == (9, 2 * height + 1, 2 * width + 1)


def test_hash_tells_mazes_apart():
    mazes = generate_mazes(5000, 3, seed=0)
    distinct = len(mazes.passages.view(-1, 9).unique(dim=0))
    assert len(mazes.hash().unique()) == distinct
    wide, tall = torch.tensor([[[8, 4]]]), torch.tensor([[[8], [4]]])
    assert MazeBatch(wide.byte(), check=False).hash() != MazeBatch(tall.byte(), check=False).hash()


def test_slicing_keeps_provenance():
    mazes = generate_mazes(6, 4, algorithm="prim", seed=9, start_index=10)
    assert [len(mazes[i]) for i in (2, -1, slice(1, 4), torch.tensor([5, 0]), [1, 2])] == [1, 1, 3, 2, 2]
    assert mazes[-1].index.tolist() == [15] and mazes[mazes.index > 13].index.tolist() == [14, 15]
    assert mazes[2].seed == 9 and mazes[2].algorithm == "prim" and len(list(mazes)) == 6
    with pytest.raises(IndexError, match="index 6 is out of range for 6 mazes"):
        mazes[6]


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: generate_mazes(-1, 4), ValueError, r"n must be in \[0, .*got -1"),
        (lambda: MazeBatch.open(-1, 4), ValueError, r"n must be in \[0, .*got -1"),
        (lambda: MazeBatch.open(1.5, 4), TypeError, "n must be an int, got 1.5"),
        (lambda: MazeBatch.open(1, (4, 0)), ValueError, r"size must be at least 1, got \(4, 0\)"),
        (lambda: MazeBatch.open(1, 10**5), ValueError, "size must be at most 67108864 cells, got 100000"),
        (lambda: generate_mazes(1, 0), ValueError, "size must be at least 1, got 0"),
        (lambda: generate_mazes(1, (4, 0)), ValueError, r"size must be at least 1, got \(4, 0\)"),
        (lambda: generate_mazes(1, 10**5), ValueError, "size must be at most 67108864 cells, got 100000"),
        (lambda: generate_mazes(1, 4.5), TypeError, "size must be an int or"),
        (lambda: generate_mazes(1, (1, 2, 3)), TypeError, "size must be an int or"),
        (lambda: generate_mazes(1.5, 4), TypeError, "n must be an int, got 1.5"),
        (lambda: generate_mazes(1, 4, seed=-1), ValueError, r"seed must be in .*got -1"),
        (lambda: generate_mazes(1, 4, start_index=-1), ValueError, r"start_index must be in .*got -1"),
        (lambda: generate_mazes(1, 4, algorithm="eller"), ValueError, "algorithm 'eller' is unknown; accepted: dfs, "),
        (lambda: MazeBatch(torch.zeros(1, 2, 2)), TypeError, "passages must be a uint8 tensor, got float32"),
        (lambda: MazeBatch([[1]]), TypeError, "passages must be a uint8 tensor, got list"),
        (lambda: MazeBatch(torch.zeros(2, 2).byte()), ValueError, r"passages must be \[B, H, W\].*got \[2, 2\]"),
        (lambda: MazeBatch(torch.tensor([[[0, 1]]]).byte()), ValueError, r"passages\[0, 0, 1\] = 1: a passage leads"),
        (lambda: MazeBatch(torch.tensor([[[8, 0]]]).byte()), ValueError, r"\[0, 0, 1\] = 0: .*one side"),
        (lambda: MazeBatch(torch.tensor([[[16]]]).byte()), ValueError, r"passages\[0, 0, 0\] = 16"),
        (lambda: MazeBatch(torch.zeros(2, 2, 2).byte(), index=torch.zeros(1)), TypeError, "index must be an int64"),
        (lambda: generate_mazes(2, 4).distances([0, 1]), TypeError, "goal must be an int64 tensor, got list"),
        (lambda: generate_mazes(2, 4).distances(torch.zeros(2)), TypeError, "goal must be .*, got float32"),
        (lambda: generate_mazes(2, 4).distances(torch.tensor([1])), ValueError, r"goal must be \[2\]"),
        (lambda: generate_mazes(2, 4).distances(torch.tensor([1, 16])), IndexError, r"goal\[1\] = 16 is out of range"),
        (lambda: generate_mazes(2, 4).distances(torch.tensor([-1, 2])), IndexError, r"goal\[0\] = -1 is out of range"),
        (
            lambda: generate_mazes(1, 4).shortest_paths(torch.tensor([16]), torch.tensor([0])),
            IndexError,
            r"start\[0\] = 16 is out of range for 16 cells",
        ),
        (
            lambda: generate_mazes(1, 4).shortest_paths(torch.tensor([1]), torch.tensor([0]), length=0),
            ValueError,
            r"length must be in \[1, .*got 0",
        ),
        (
            lambda: generate_mazes(1, 4).distances(torch.zeros(1, dtype=torch.int64, device="meta")),
            ValueError,
            f"goal is on meta, the mazes are on {DEVICE}",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
