"""C++ kernels of mazes and rollouts: bit-equal to the PyTorch reference for any thread count; opcheck; compiled."""

import pytest
import torch
from torch.testing import assert_close

from poh_ext import GENERATORS, MazeBatch, MazeTasks, generate_mazes, greedy_rollout, random_policy, sample_tasks
from poh_ext.mazes import DENSITY
from poh_ext.reference import maze_generate, maze_graph
from tests.cases.backends import DTYPES, needs_kernels

pytestmark = needs_kernels

SIZES = [(1, 1), (1, 2), (1, 7), (5, 1), (2, 2), (9, 14), (12, 12)]
ALL = 2**32
BRAIDS = [(0, 0), (ALL // 10, ALL // 10), (1, ALL // 3), (ALL, ALL)]
DENSITIES = [(ALL // 2, ALL // 2), (0, 0), (ALL, ALL), (ALL // 4, ALL // 4), (ALL // 5 + 1, ALL // 2)]
SHARES = {name: DENSITIES if name in DENSITY else BRAIDS for name in GENERATORS}  # in 2^-32
ops = torch.ops.poh_ext


def same(got, expected) -> None:
    assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(autouse=True)
def one_thread():
    """For the reference: two threads do its small steps no faster."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def threaded(op, *arguments):
    """The result of `op`, after a check that 1, 2 and 3 threads give the same."""
    got = op(*arguments)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        same(op(*arguments), got)
    torch.set_num_threads(1)
    return got


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm", GENERATORS)
def test_generators_equal_the_reference(algorithm, size):
    indices = torch.cat((torch.arange(40), torch.tensor([2**32 - 1, 2**32, 2**62 + 5])))
    for i, (low, high) in enumerate(SHARES[algorithm]):
        arguments = (indices, (2**40 + 3) * (i % 2), *size, algorithm, low, high)
        same(threaded(ops.generate_mazes, *arguments), maze_generate.generate_mazes(*arguments))


@pytest.mark.parametrize("algorithm", GENERATORS)
def test_generators_equal_the_reference_at_30x30(algorithm):
    arguments = (torch.arange(1000, 1006), 9, 30, 30, algorithm, *SHARES[algorithm][-1])
    same(ops.generate_mazes(*arguments), maze_generate.generate_mazes(*arguments))


def test_wilson_refills_its_stacks():
    """16 draws a cell are a word; some cell of these mazes needs many more."""
    for size in ((1, 60), (3, 25)):
        arguments = (torch.arange(40), 1, *size, "wilson", 0, 0)
        same(ops.generate_mazes(*arguments), maze_generate.generate_mazes(*arguments))


def any_passages(batch: int, size: tuple[int, int]) -> torch.Tensor:
    """Not sound: bits lead out of the grid, and walls may be open from one side only."""
    return torch.randint(0, 256, (batch, *size), generator=torch.Generator().manual_seed(3)).byte()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm", [*GENERATORS, "unsound"])
def test_graphs_equal_the_reference(algorithm, size):
    batch, n = 50, size[0] * size[1]
    sound = algorithm in GENERATORS
    mazes = generate_mazes(batch, size, algorithm=algorithm).passages if sound else any_passages(batch, size)
    start, goal = (torch.randint(0, n, (2, batch), generator=torch.Generator().manual_seed(1))).unbind()
    same(threaded(ops.maze_neighbors, mazes), maze_graph.neighbors(mazes))
    same(threaded(ops.maze_valid_mask, mazes), maze_graph.valid_mask(mazes))
    if not sound:
        ops.maze_distances(mazes, goal)
        ops.maze_shortest_paths(mazes, start, goal, 5)
        return
    same(threaded(ops.maze_distances, mazes, goal), maze_graph.distances(mazes, goal))
    for length in (1, 3, n + 2):
        got = threaded(ops.maze_shortest_paths, mazes, start, goal, length)
        same(got, maze_graph.shortest_paths(mazes, start, goal, length))


@pytest.mark.parametrize("algorithm", GENERATORS)
@pytest.mark.parametrize("size, limits", [((4, 4), (6, 8)), ((4, 4), (13, 16)), ((3, 6), (17, 17)), ((9, 9), (40, 81))])
def test_endpoints_equal_the_reference(algorithm, size, limits):
    mazes = generate_mazes(60, size, algorithm=algorithm, seed=7)
    indices = torch.arange(5, 65)
    some = torch.rand(60, mazes.n_cells, generator=torch.Generator().manual_seed(2)) < 0.5
    for allowed in (None, some):
        got = threaded(ops.maze_endpoints, mazes.passages, indices, 2**35, *limits, allowed)
        same(got, maze_graph.endpoints(mazes.passages, indices, 2**35, *limits, allowed))
        found = got[0] >= 0
        assert allowed is None or allowed[found].gather(1, got[0][found, None]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ["dfs", "percolation"])
def test_rollout_equals_the_reference(algorithm, dtype):
    tasks = sample_tasks(200, (6, 5), algorithm=algorithm, seed=3)
    arguments = (tasks.mazes.passages, tasks.start, tasks.goal)
    generator = torch.Generator().manual_seed(0)
    for moves in (True, False):
        table = torch.randint(-3, 4, (200, 30, 4 if moves else 30), generator=generator).to(dtype)
        table[torch.rand(table.shape, generator=generator) < 0.2] = torch.nan
        table[torch.rand(table.shape, generator=generator) < 0.1] = -torch.inf
        for max_steps in (0, 1, 30, 70):
            got = threaded(ops.greedy_rollout, table, *arguments, max_steps, moves)
            same(got, maze_graph.greedy_rollout(table, *arguments, max_steps, moves))


@pytest.mark.parametrize("batch", [0, 5])
def test_opcheck(batch):
    mazes = generate_mazes(batch, (3, 4), algorithm="percolation").passages
    one = generate_mazes(1, (3, 4), algorithm="obstacles").passages
    indices, cell = torch.arange(batch), torch.arange(batch) % 12
    goals = torch.stack((cell.flip(0), torch.full_like(cell, -1)), 1)
    logits = torch.rand(batch, 12, 12, requires_grad=True)
    for op, arguments in (
        (ops.generate_mazes, (indices, 1, 3, 4, "wilson", 0, ALL // 2)),
        (ops.maze_neighbors, (mazes,)),
        (ops.maze_valid_mask, (mazes,)),
        (ops.maze_distances, (mazes, cell)),
        (ops.maze_distances, (mazes, goals)),
        (ops.maze_distances, (one, cell)),
        (ops.maze_shortest_paths, (mazes, cell, cell.flip(0), 6)),
        (ops.maze_shortest_paths, (one, cell, goals, 6)),
        (ops.maze_endpoints, (mazes, indices, 1, 2, 12, None)),
        (ops.maze_endpoints, (mazes, indices, 1, 2, 12, torch.ones(batch, 12, dtype=torch.bool))),
        (ops.greedy_rollout, (logits.detach(), mazes, cell, cell.flip(0), 12, False)),
        (ops.greedy_rollout, (logits.detach(), one, cell, goals, 12, False)),
        (ops.greedy_rollout, (logits[..., :4].detach().contiguous(), mazes, cell, cell.flip(0), 12, True)),
    ):
        torch.library.opcheck(op, arguments)


def test_compiled_whole():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def solve(n: int, goal, logits):
        mazes = generate_mazes(n, (4, 5), algorithm="prim", seed=3)
        start = goal.flip(0)
        path = mazes.shortest_paths(start, goal, length=20)
        tasks = MazeTasks(mazes, start, goal, path, (path >= 0).sum(1))
        fields = (mazes.passages, mazes.neighbors(), mazes.valid_mask(), mazes.raster(), mazes.distances(goal), path)
        return (*fields, mazes.hash(), *greedy_rollout(logits, tasks))

    goal = torch.arange(8)
    logits = torch.rand(8, 20, 4, requires_grad=True)
    mazes = generate_mazes(8, (4, 5), algorithm="prim", seed=3)
    path = mazes.shortest_paths(goal.flip(0), goal, length=20)
    tasks = MazeTasks(mazes, goal.flip(0), goal, path, (path >= 0).sum(1))
    expected = (mazes.passages, mazes.neighbors(), mazes.valid_mask(), mazes.raster(), mazes.distances(goal), path)
    same(solve(8, goal, logits), (*expected, mazes.hash(), *greedy_rollout(logits, tasks)))


def test_non_contiguous_arguments():
    mazes = MazeBatch(generate_mazes(6, 5).passages[::2])
    goal = torch.arange(6)[::2]
    same(mazes.distances(goal), mazes.distances(goal.clone()))
    tasks = sample_tasks(6, 5)
    logits = random_policy(tasks, 0)
    same(greedy_rollout(logits.permute(2, 1, 0).contiguous().permute(2, 1, 0), tasks), greedy_rollout(logits, tasks))


def test_direct_calls_are_guarded():
    mazes, cell, table = generate_mazes(2, 3).passages, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 9, 4)
    goals = torch.zeros(2, 2, dtype=torch.int64)
    for op, arguments, error, message in (
        (ops.generate_mazes, (cell, 0, 0, 3, "dfs", 0, 0), ValueError, "size must be at least 1"),
        (ops.generate_mazes, (cell, 0, 2**20, 2**20, "dfs", 0, 0), ValueError, "size must be at most 67108864 cells"),
        (ops.generate_mazes, (cell, 0, 3, 3, "eller", 0, 0), ValueError, "algorithm 'eller' is unknown"),
        (ops.generate_mazes, (cell.int(), 0, 3, 3, "dfs", 0, 0), ValueError, "indices has the wrong dtype"),
        (ops.generate_mazes, (cell, 0, 3, 3, "dfs", 1, 0), ValueError, r"a share must be in \[0, 2\^32\], got 1, 0"),
        (ops.generate_mazes, (cell, 0, 3, 3, "dfs", 0, ALL + 1), ValueError, "a share must be in"),
        (ops.maze_neighbors, (mazes[0],), ValueError, "passages must have 3 dimensions, got 2"),
        (ops.maze_distances, (mazes, cell[:1]), ValueError, r"goal must be \[2\]"),
        (ops.maze_distances, (mazes, cell + 9), IndexError, r"goal\[0\] = 9 is out of range for 9 cells"),
        (ops.maze_shortest_paths, (mazes, cell, cell, 0), ValueError, "length must be >= 1, got 0"),
        (ops.maze_distances, (mazes, goals[:1]), ValueError, r"goal must be \[2, G\], .*, got \[1, 2\]"),
        (ops.maze_distances, (mazes, goals + 9), IndexError, r"goal\[0, 0\] = 9 is out of range for 9 cells"),
        (ops.maze_distances, (mazes, goals - 2), IndexError, r"goal\[0, 0\] = -2 is out of range for 9 cells"),
        (ops.maze_endpoints, (mazes, cell[:1], 0, 1, 1, None), ValueError, "indices must have 2 entries, got 1"),
        (ops.maze_endpoints, (mazes, cell, 0, 3, 2, None), ValueError, r"min_path must be in \[1, max_path\], got 3"),
        (ops.maze_endpoints, (mazes, cell, 0, 1, 2, mazes[:, 0] > 0), ValueError, r"allowed must be \[2, 9\]"),
        (ops.maze_endpoints, (mazes, cell, 0, 1, 2, mazes), ValueError, "allowed has the wrong dtype"),
        (ops.greedy_rollout, (table[:, :8], mazes, cell, cell, 3, True), ValueError, r"must be contiguous"),
        (ops.greedy_rollout, (table, mazes, cell, cell, 3, False), ValueError, r"logits must be \[2, 9, 9\]"),
        (ops.greedy_rollout, (table, mazes, cell, cell, -1, True), ValueError, "max_steps must be at least 0"),
        (ops.greedy_rollout, (table.int(), mazes, cell, cell, 1, True), ValueError, "logits must be float32"),
    ):
        with pytest.raises(error, match=message):
            op(*arguments)
