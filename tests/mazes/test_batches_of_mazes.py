"""MazeBatch and MazeTasks as containers: blocked cells, rasters, joining, sharing one maze, indexing, pickling."""

import pickle

import numpy as np
import pytest
import torch

from poh_ext import MazeBatch, MazeTasks, generate_mazes, sample_tasks
from tests.cases.device import DEVICE

SIZES = [1, (1, 7), (5, 1), (4, 6)]


def obstacles(n: int = 12, size=(4, 6), seed: int = 3) -> MazeBatch:
    return generate_mazes(n, size, algorithm="obstacles", seed=seed)


def same(a: MazeBatch, b: MazeBatch) -> bool:
    return torch.equal(a.passages, b.passages) and torch.equal(a.free(), b.free())


def stored(batch) -> int:
    """Bytes of all its tensors' storages."""
    return sum(t.untyped_storage().nbytes() for t in vars(batch).values() if isinstance(t, torch.Tensor))


# -- blocked cells -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_passages_lead_between_free_cells_alone(size):
    free = torch.rand(9, *((size, size) if isinstance(size, int) else size)) < 0.6
    grids = MazeBatch.from_free(free)
    MazeBatch(grids.passages, free=grids.free())  # is checked
    assert torch.equal(grids.free(), free) and grids.has_blocked
    height, width = grids.size
    for b in range(9):
        for row in range(height):
            for column in range(width):
                for bit, (down, right) in enumerate(((-1, 0), (1, 0), (0, -1), (0, 1))):
                    to = (row + down, column + right)
                    inside = 0 <= to[0] < height and 0 <= to[1] < width
                    way = inside and bool(free[b, row, column]) and bool(free[b, to[0], to[1]])
                    assert bool(grids.passages[b, row, column] >> bit & 1) == way


def test_a_grid_without_obstacles_is_open():
    grids = MazeBatch.from_free(torch.ones(3, 4, 5, dtype=torch.bool))
    assert same(grids, MazeBatch.open(3, (4, 5))) and not MazeBatch.open(3, (4, 5)).has_blocked
    assert MazeBatch.open(3, (4, 5)).free().all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm", ["dfs", "percolation", "obstacles"])
def test_raster_and_back(algorithm, size):
    mazes = generate_mazes(20, size, algorithm=algorithm, seed=2)
    raster = mazes.raster()
    assert torch.equal(raster[:, 1::2, 1::2] == 0, mazes.free())
    for image in (raster, raster.bool()):
        again = MazeBatch.from_raster(image)
        assert same(again, mazes) and torch.equal(again.raster(), raster)


def test_pixels_between_four_cells_mean_nothing():
    mazes = MazeBatch.open(1, 3)
    raster = mazes.raster()
    raster[:, 2:-1:2, 2:-1:2] = 0
    assert same(MazeBatch.from_raster(raster), mazes)


def test_one_pixel_per_cell_is_a_grid_with_obstacles():
    image = torch.tensor([[1, 0, 0], [0, 1, 0]], dtype=torch.bool)
    grid = MazeBatch.from_free(~image[None])
    assert grid.passages[0].tolist() == [[0, 8, 6], [0, 0, 1]]
    assert grid.distances(torch.tensor([1])).tolist() == [[-1, 0, 1, -1, -1, 2]]


def test_no_path_tells_a_blocked_cell_from_a_walled_one():
    blocked = MazeBatch(torch.zeros(1, 1, 2).byte(), free=torch.tensor([[[True, False]]]))
    walled = MazeBatch(torch.zeros(1, 1, 2).byte())
    assert torch.equal(blocked.hash(), walled.hash())
    assert torch.equal(blocked.neighbors(), walled.neighbors()) and not torch.equal(blocked.raster(), walled.raster())


# -- joining and sharing -------------------------------------------------------------------------------------------


def test_cat_of_mazes():
    parts = [obstacles(3), MazeBatch.open(2, (4, 6)), generate_mazes(4, (4, 6), seed=1)]
    joined = MazeBatch.cat(parts)
    assert len(joined) == 9 and joined.has_blocked and joined.seed is None and joined.algorithm is None
    assert joined.index is None
    for part, at in zip(parts, (0, 3, 5), strict=True):
        assert same(joined[at : at + len(part)], part)
    halves = obstacles(8)
    again = MazeBatch.cat(halves[i : i + 4] for i in (0, 4))
    assert same(again, halves) and again.algorithm == "obstacles" and again.seed == 3
    assert torch.equal(again.index, halves.index)
    assert not MazeBatch.cat([MazeBatch.open(1, 2), MazeBatch.open(1, 2)]).has_blocked


def test_cat_of_tasks_pads_paths_and_goals():
    one, two = sample_tasks(5, 6, seed=1), sample_tasks(4, 6, algorithm="obstacles", seed=2)
    several = MazeTasks(MazeBatch.open(1, 6), torch.tensor([0, 5]), torch.tensor([[35, 30, -1], [0, 6, 7]]))
    joined = MazeTasks.cat([one, two, several])
    assert len(joined) == 11 and joined.goal.shape == (11, 3) and joined.mazes.has_blocked
    at = 0
    for part in (one, two, several):
        rows = slice(at, at := at + len(part))
        goal = part.goal if part.goal.dim() == 2 else part.goal[:, None]
        assert torch.equal(joined.start[rows], part.start) and torch.equal(joined.length[rows], part.length)
        assert (
            torch.equal(joined.goal[rows, : goal.shape[1]], goal) and (joined.goal[rows, goal.shape[1] :] == -1).all()
        )
        width = part.path.shape[1]
        assert torch.equal(joined.path[rows, :width], part.path) and (joined.path[rows, width:] == -1).all()
    assert MazeTasks.cat([one, two]).goal.shape == (9,)
    MazeTasks(joined.mazes, joined.start, joined.goal, joined.path, joined.length)  # is checked


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_one_maze_many_times_is_kept_once(n):
    one = obstacles(1, (20, 30))
    many = one.expand(n)
    assert len(many) == n and many.size == (20, 30) and many.has_blocked
    assert many.passages.untyped_storage().nbytes() == one.passages.untyped_storage().nbytes() == 600
    assert stored(many) == stored(one)
    if n == 1000:
        for part in (many[5:900], many[torch.arange(0, 1000, 2)], many[torch.arange(1000) > 3], many[[3, -1, 3]]):
            assert stored(part) == stored(one) and torch.equal(part.passages[1], one.passages[0])
        assert torch.equal(many.neighbors(), one.neighbors().expand(1000, -1, -1))
        assert many.neighbors().untyped_storage().nbytes() == one.neighbors().untyped_storage().nbytes()
        assert many.hash().unique().tolist() == one.hash().tolist()
        at = one.free().flatten().nonzero()[0].expand(1000)
        assert stored(MazeTasks(one, at, at).mazes) == stored(one)
        whole = MazeBatch.open(1, 50).expand(1000)
        assert whole.free().all() and whole.free().untyped_storage().nbytes() == 2500
        with pytest.raises(IndexError):
            many[torch.tensor([1000])]


def test_a_pickled_part_holds_itself_alone():
    tasks = sample_tasks(10_000, 12, algorithm="obstacles", seed=1)
    size = len(pickle.dumps(tasks[7]))
    assert size < 6000 < len(pickle.dumps(tasks[:100])) < 200_000
    again = pickle.loads(pickle.dumps(tasks[7]))
    assert same(again.mazes, tasks.mazes[7]) and torch.equal(again.path, tasks.path[7:8])
    shared = MazeTasks(MazeBatch.open(1, 100), torch.arange(50), torch.arange(50) + 100)
    assert len(pickle.dumps(shared.mazes)) < 12_000
    again = pickle.loads(pickle.dumps(shared))
    assert len(again) == 50 and stored(again.mazes) == 10_000 and torch.equal(again.path, shared.path)


# -- indices -------------------------------------------------------------------------------------------------------


def test_what_is_an_index():
    mazes = obstacles(6)
    tasks = MazeTasks(mazes, *torch.zeros(2, 6, dtype=torch.int64), check=False)
    mask = [True, False, False, True, False, True]
    for which, rows in (
        (2, [2]), (-1, [5]), (np.int64(3), [3]), (torch.tensor(3), [3]), (torch.tensor(-2), [4]), (np.uint8(3), [3]),
        (slice(1, 4), [1, 2, 3]), (slice(None, None, 2), [0, 2, 4]), (range(4, 0, -2), [4, 2]), ([1, 2], [1, 2]),
        ([], []), ([5, -6, 5], [5, 0, 5]), (torch.tensor([5, 0]), [5, 0]),
        (torch.tensor([1, 2], dtype=torch.int32), [1, 2]),
        (np.array([4, 1]), [4, 1]), (mask, [0, 3, 5]), (np.array(mask), [0, 3, 5]), (torch.tensor(mask), [0, 3, 5]),
    ):  # fmt: skip
        assert torch.equal(mazes[which].passages, mazes.passages[rows]), which
        assert torch.equal(mazes[which].free(), mazes.free()[rows]) and mazes[which].index.tolist() == rows
        assert len(tasks[which]) == len(rows)


@pytest.mark.parametrize(
    "which, error, message",
    [
        (True, TypeError, "an index must be an int, .*, got True"),
        (np.True_, TypeError, "an index must be an int"),
        (torch.tensor(True), TypeError, r"got a bool \[\] tensor"),
        (None, TypeError, "got None"),
        (..., TypeError, "got Ellipsis"),
        ((slice(0, 2), slice(0, 2)), TypeError, r"an index must be .*, got \(slice"),
        ((0, 1), TypeError, r"got \(0, 1\)"),
        ("0", TypeError, "got '0'"),
        (1.0, TypeError, r"got 1\.0"),
        (torch.tensor([[0, 1]]), TypeError, r"got a int64 \[1, 2\] tensor"),
        (torch.tensor([0.5]), TypeError, r"got a float32 \[1\] tensor"),
        ([True, False], IndexError, "a bool index must have 6 entries, one for each item, got 2"),
        (6, IndexError, "index 6 is out of range for 6 mazes"),
        (np.int64(-7), IndexError, "index -7 is out of range for 6 mazes"),
    ],
)
def test_what_is_none(which, error, message):
    mazes = obstacles(6)
    with pytest.raises(error, match=message):
        mazes[which]
    with pytest.raises(error, match=message):
        MazeTasks(mazes, *torch.zeros(2, 6, dtype=torch.int64), check=False)[which]


# -- what is refused -----------------------------------------------------------------------------------------------

OPEN = torch.tensor([[[8, 4]]], dtype=torch.uint8)
RASTER = torch.ones(1, 3, 5, dtype=torch.uint8)


def pixel(row: int, column: int, value: int) -> torch.Tensor:
    raster = RASTER.clone()
    raster[0, row, column] = value
    return raster


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: MazeBatch(OPEN, free=torch.ones(1, 1, 2)), TypeError, "free must be a bool tensor, got float32"),
        (lambda: MazeBatch(OPEN, free=torch.ones(1, 2).bool()), ValueError, rf"free must be \[1, 1, 2\] on {DEVICE}"),
        (lambda: MazeBatch(OPEN, free=torch.ones(1, 1, 2, device="meta").bool()), ValueError, "got .* on meta"),
        (lambda: MazeBatch(OPEN, free=torch.tensor([[[True, False]]])), ValueError,
         r"free\[0, 0, 1\] is False, but the cell has passages: passages\[0, 0, 1\] = 4"),
        (lambda: MazeBatch(OPEN, index=[0]), TypeError, "index must be an int64 tensor, got list"),
        (lambda: MazeBatch(OPEN, index=torch.zeros(2, dtype=torch.int64)), ValueError, r"must be \[1\], got \[2\]"),
        (lambda: MazeBatch(torch.zeros(1, 2**14, 2**13, dtype=torch.uint8, device="meta"), check=False), ValueError,
         "passages must have at most 67108864 cells a maze"),
        (lambda: MazeBatch.from_free(torch.ones(1, 2, 2)), TypeError, "free must be a bool tensor, got float32"),
        (lambda: MazeBatch.from_free(torch.ones(2, 2).bool()), ValueError, r"free must be \[B, H, W\] .*got \[2, 2\]"),
        (lambda: MazeBatch.from_free(torch.ones(1, 0, 2).bool()), ValueError, r"free must be .*got \[1, 0, 2\]"),
        (lambda: MazeBatch.from_raster(RASTER.float()), TypeError, "raster must be a uint8 or bool tensor, got"),
        (lambda: MazeBatch.from_raster(RASTER[:, :2]), ValueError, r"raster must be \[B, 2H.* got \[1, 2, 5\]"),
        (lambda: MazeBatch.from_raster(RASTER[0]), ValueError, r"got \[3, 5\]"),
        (lambda: MazeBatch.from_raster(pixel(1, 2, 255)), ValueError,
         r"raster must be 1 at a wall and 0 elsewhere, got 255 at \[0, 1, 2\]"),
        (lambda: MazeBatch.from_raster(pixel(0, 1, 0)), ValueError,
         r"raster\[0, 0, 1\] is open, but lies in the border"),
        (lambda: MazeBatch.from_raster(pixel(1, 2, 0)), ValueError, r"free\[0, 0, 0\] is False, but the cell has"),
        (lambda: MazeBatch.cat([]), ValueError, "batches must hold one at least"),
        (lambda: MazeBatch.cat([MazeBatch.open(1, 2), 3]), TypeError, r"batches\[1\] must be MazeBatch, got int"),
        (lambda: MazeBatch.cat([MazeBatch.open(1, 2), MazeBatch.open(1, (2, 3))]), ValueError,
         f"one size and on one device, got 2 x 2 on {DEVICE}, and at 1 2 x 3 on {DEVICE}"),
        (lambda: MazeBatch.cat([MazeBatch.open(1, 2), MazeBatch.open(1, 2, device="meta")]), ValueError, "2 on meta"),
        (lambda: MazeTasks.cat([]), ValueError, "tasks must hold one at least"),
        (lambda: MazeTasks.cat([sample_tasks(1, 2), sample_tasks(1, 3)]), ValueError, "tasks must be of one size"),
        (lambda: MazeTasks.cat([sample_tasks(1, 2).mazes]), TypeError, r"tasks\[0\] must be MazeTasks, got MazeBatch"),
        (lambda: MazeBatch.open(2, 3).expand(4), ValueError, "only a batch of one maze can be expanded, this has 2"),
        (lambda: MazeBatch.open(1, 3).expand(-1), ValueError, r"n must be in \[0, .*got -1"),
        (lambda: MazeBatch.open(1, 3).expand(1.5), TypeError, "n must be an int, got 1.5"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# -- tasks are checked ---------------------------------------------------------------------------------------------

CORRIDOR = MazeBatch(
    torch.tensor([[[8, 12, 4, 0]]], dtype=torch.uint8), free=torch.tensor([[[True, True, True, False]]])
)


def task(**changed) -> MazeTasks:
    """From 0 to 2 in the corridor, and what is changed."""
    given = {"start": [0], "goal": [2], "path": [[0, 1, 2]], "length": [3]} | changed
    return MazeTasks(CORRIDOR, **{name: None if v is None else torch.tensor(v) for name, v in given.items()})


def test_path_and_length_are_found():
    for given in ({"path": None, "length": None}, {"length": None}, {"path": None}, {}):
        found = task(**given)
        assert found.path.tolist() == [[0, 1, 2]] and found.length.tolist() == [3]
    none = MazeTasks(MazeBatch.open(1, 2)[:0], *torch.zeros(2, 0, dtype=torch.int64))
    assert len(none) == 0 and none.path.shape == (0, 0) and none.length.shape == (0,)
    apart = MazeBatch(torch.zeros(1, 1, 2, dtype=torch.uint8))
    empty = MazeTasks(apart, torch.tensor([0]), torch.tensor([1]), torch.tensor([[-1, -1]]), torch.tensor([0]))
    assert empty.length.tolist() == [0]
    assert task(goal=[[2, 0, -1]], path=None, length=None).path.tolist() == [[0]]


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"start": [4]}, IndexError, r"start\[0\] = 4 is out of range for 4 cells"),
        ({"start": [-1]}, IndexError, r"start\[0\] = -1 is out of range"),
        ({"goal": [-1]}, IndexError, r"goal\[0\] = -1 is out of range"),
        ({"goal": [[-1, 2]]}, IndexError, r"goal\[0, 0\] = -1 is out of range"),
        ({"goal": [[2, -2]]}, IndexError, r"goal\[0, 1\] = -2 is out of range"),
        ({"start": [3]}, IndexError, r"start\[0\] is the cell in row 0, column 3, which is blocked"),
        ({"goal": [[2, 3]]}, IndexError, r"goal\[0, 1\] is the cell in row 0, column 3, which is blocked"),
        ({"goal": [[[2]]]}, ValueError, r"goal must be \[1\] or \[1, G\], one cell for each maze, got \[1, 1, 1\]"),
        ({"goal": [[]]}, TypeError, "goal must be an int64 tensor, got float32"),
        ({"path": [[0, 1, 4]]}, ValueError, r"path\[0, 2\] = 4: a path is cells in \[0, 4\), then -1 to the end"),
        ({"path": [[0, -1, 2]]}, ValueError, r"path\[0, 2\] = 2: a path is cells"),
        ({"path": [[0, 1, -2]]}, ValueError, r"path\[0, 2\] = -2: a path is cells"),
        ({"path": [[1, 2, -1]]}, ValueError, r"path\[0\] leads from 1 to 2, not from start to a goal"),
        ({"path": [[0, 1, -1]]}, ValueError, r"path\[0\] leads from 0 to 1, not from start to a goal"),
        ({"path": [[0, 2]]}, ValueError, r"path\[0\] steps from cell 0 to 2, where no passage leads"),
        ({"path": [[0, 0, 1, 2]]}, ValueError, r"path\[0\] steps from cell 0 to 0"),
        ({"length": [4]}, ValueError, r"length\[0\] = 4, but path\[0\] has 3 cells"),
    ],
)
def test_bad_tasks(changed, error, message):
    with pytest.raises(error, match=message):
        task(**changed)


def test_steps_in_a_grid_one_cell_wide():
    tall = MazeBatch.open(1, (4, 1))
    assert MazeTasks(tall, torch.tensor([0]), torch.tensor([3]), torch.tensor([[0, 1, 2, 3]])).length.tolist() == [4]
    apart = MazeBatch(torch.tensor([[[2], [1], [0]]], dtype=torch.uint8))
    with pytest.raises(ValueError, match="steps from cell 1 to 2"):
        MazeTasks(apart, torch.tensor([0]), torch.tensor([2]), torch.tensor([[0, 1, 2]]))


def test_mazes_must_be_mazes():
    with pytest.raises(TypeError, match="mazes must be a MazeBatch, got Tensor"):
        MazeTasks(OPEN, torch.tensor([0]), torch.tensor([1]))


def test_a_loop_gives_batches_of_one():
    mazes = obstacles(3)
    assert [same(one, mazes[i]) and len(one) == 1 for i, one in enumerate(mazes)] == [True] * 3
