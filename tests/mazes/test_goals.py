"""Sets of goals, any of which will do, and one maze that all tasks share: against plain breadth-first search."""

import contextlib

import pytest
import torch

from poh_ext import (
    MazeBatch,
    MazeTasks,
    beeline_policy,
    generate_mazes,
    greedy_rollout,
    random_rollout,
    recondition_rollout,
    sample_tasks,
)
from poh_ext.rollout import solved_exactly
from tests.cases.backends import KERNELS, needs_kernels, reference
from tests.cases.search import plain_distances, plain_path

SIZES = [(1, 1), (1, 7), (5, 1), (6, 7)]
ALGORITHMS = ["dfs", "percolation", "obstacles"]


@pytest.fixture(params=["kernels", "reference"])
def backend(request):
    if request.param == "kernels" and not KERNELS:
        pytest.skip("the C++ kernels are not used")
    with reference() if request.param == "reference" else contextlib.nullcontext():
        yield request.param


def goals_of(n: int, n_cells: int, most: int = 4, seed: int = 0) -> torch.Tensor:
    """int64 [n, most]: one to `most` cells, the same one twice now and then, -1 here and there after the first."""
    generator = torch.Generator().manual_seed(seed)
    goal = torch.randint(n_cells, (n, most), generator=generator)
    goal[:, 1:][torch.rand(n, most - 1, generator=generator) < 0.4] = -1
    return goal


def tasks_of(algorithm: str, size=(6, 7), n: int = 40, shared: bool = False, seed: int = 5) -> MazeTasks:
    """Starts and goals on free cells."""
    mazes = generate_mazes(1 if shared else n, size, algorithm=algorithm, seed=seed)
    mazes = mazes.expand(n) if shared else mazes
    free = mazes.free().flatten(1).float()
    generator = torch.Generator().manual_seed(seed)
    cells = torch.multinomial(free, 4, replacement=True, generator=generator)
    goal = cells[:, 1:].clone()
    goal[:, 1:][torch.rand(n, 2, generator=generator) < 0.4] = -1
    return MazeTasks(mazes, cells[:, 0].contiguous(), goal)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_distances_and_paths(algorithm, size, shared, backend):
    n = 12
    one = generate_mazes(1 if shared else n, size, algorithm=algorithm, seed=3)
    goal = goals_of(n, one.n_cells)
    start = torch.arange(n) % one.n_cells
    mazes = one.expand(n) if shared else one
    distances, paths = mazes.distances(goal), mazes.shortest_paths(start, goal)
    assert distances.shape == (n, one.n_cells) and distances.dtype == torch.int32
    for i in range(n):
        assert distances[i].tolist() == plain_distances(mazes.passages[i], goal[i].tolist())
        path = plain_path(mazes.passages[i], int(start[i]), goal[i].tolist())
        assert paths[i].tolist() == path + [-1] * (paths.shape[1] - len(path))
    assert paths.shape[1] == max(1, int((paths >= 0).sum(1).max()))
    assert torch.equal(mazes.distances(goal[:, :1].contiguous()), mazes.distances(goal[:, 0].contiguous()))
    if shared:  # a batch of one takes any number of goals
        assert torch.equal(one.distances(goal), distances) and torch.equal(one.shortest_paths(start, goal), paths)
        copied = MazeBatch(one.passages.repeat(n, 1, 1))
        assert torch.equal(copied.distances(goal), distances)
        assert torch.equal(copied.shortest_paths(start, goal, length=3), mazes.shortest_paths(start, goal, length=3))


def test_goals_out_of_reach_leave_one_column(backend):
    apart = MazeBatch(torch.zeros(1, 1, 3).byte()).expand(4)
    start, goal = torch.zeros(4, dtype=torch.int64), torch.tensor([[1, 2]]).expand(4, -1)
    assert apart.shortest_paths(start, goal).tolist() == [[-1]] * 4
    assert MazeTasks(apart, start, goal).length.tolist() == [0] * 4
    assert apart.shortest_paths(start, start).tolist() == [[0]] * 4


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rollouts_end_at_any_goal(algorithm, shared, backend):
    tasks = tasks_of(algorithm, shared=shared)
    n = len(tasks)
    distance = tasks.mazes.distances(tasks.goal)
    nearer = torch.where(distance < 0, -1000, -distance).float()
    table = nearer[:, None].expand(-1, tasks.mazes.n_cells, -1)
    walk = greedy_rollout(table, tasks)
    possible = tasks.length > 0
    assert torch.equal(walk.reached, possible) and torch.equal(walk.optimal, possible)
    assert torch.equal(walk.steps[possible], tasks.length[possible] - 1)

    def policy(mazes, position, goal):
        distance = mazes.distances(goal)
        return torch.where(distance < 0, -1000, -distance).float()

    again = recondition_rollout(policy, tasks)
    for a, b in zip(walk, again, strict=True):
        assert torch.equal(a, b)
    stroll = random_rollout(tasks, 3, max_steps=500)
    for i in range(n):
        path = [cell for cell in stroll.path[i].tolist() if cell >= 0]
        goals = {cell for cell in tasks.goal[i].tolist() if cell >= 0}
        assert bool(stroll.reached[i]) == (path[-1] in goals) and not goals & set(path[:-1])
        assert len(path) == int(stroll.steps[i]) + 1
    assert stroll.reached[possible].float().mean() > 0.9


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_exactly_solved_is_a_shortest_way_to_any_goal(algorithm, shared, backend):
    tasks = tasks_of(algorithm, shared=shared)
    around, distance = tasks.mazes.neighbors(), tasks.mazes.distances(tasks.goal)
    beyond = distance.gather(1, around.clamp(min=0).flatten(1)).view_as(around)
    table = -beyond.float().masked_fill((around < 0) | (beyond < 0), 1e9)
    assert torch.equal(solved_exactly(table, tasks), tasks.length > 0)
    assert solved_exactly(-table, tasks).sum() < (tasks.length > 0).sum()
    table = torch.rand(len(tasks), tasks.mazes.n_cells, 4, generator=torch.Generator().manual_seed(1))
    found, solved = solved_exactly(table, tasks), []
    for i in range(len(tasks)):
        at, goals = int(tasks.start[i]), set(tasks.goal[i].tolist()) - {-1}
        for _ in range(int(tasks.length[i]) - 1):
            ways = [(float(table[i, at, d]), -int(to)) for d, to in enumerate(around[i, at]) if to >= 0]
            at = -max(ways)[1]
        solved.append(at in goals and bool(tasks.length[i] > 0))
    assert found.tolist() == solved and any(solved)


def test_a_start_without_ways_and_without_a_path_is_not_solved():
    tasks = MazeTasks(MazeBatch(torch.zeros(1, 1, 3).byte()), torch.tensor([0]), torch.tensor([[1, -1]]))
    assert solved_exactly(torch.zeros(1, 3, 4), tasks).tolist() == [False]


def test_beeline_takes_the_nearest_goal_by_rows_and_columns():
    n, size = 60, (5, 7)
    goal = goals_of(n, 35, seed=2)
    tasks = MazeTasks(MazeBatch.open(1, size), torch.arange(n) % 35, goal)
    walk = greedy_rollout(beeline_policy(tasks), tasks)
    assert walk.reached.all() and torch.equal(walk.steps, tasks.length - 1)
    table = beeline_policy(tasks)
    for i in range(n):
        for cell in range(35):
            row, column = divmod(cell, 7)
            near = min((g for g in goal[i].tolist() if g >= 0), key=lambda g: abs(g // 7 - row) + abs(g % 7 - column))
            down, right = near // 7 - row, near % 7 - column
            assert table[i, cell].tolist() == [
                1.0 if one else -1.0 for one in (down < 0, down > 0, right < 0, right > 0)
            ]
    one = MazeTasks(tasks.mazes, tasks.start, goal[:, 0].contiguous())
    padded = MazeTasks(tasks.mazes, tasks.start, torch.stack((goal[:, 0], torch.full((n,), -1)), 1))
    assert torch.equal(beeline_policy(one), beeline_policy(padded))


def test_keys_are_of_the_maze_alone():
    tasks = tasks_of("obstacles", shared=True)
    one = MazeTasks(tasks.mazes, tasks.start, tasks.goal[:, 0].contiguous())
    assert torch.equal(tasks.keys(), one.keys()) and len(tasks.keys()) == 40 and len(tasks.keys().unique()) == 1
    assert torch.equal(tasks.keys()[:1], tasks.mazes[0].hash())
    part = tasks[torch.arange(40) % 2 == 0]
    assert torch.equal(part.goal, tasks.goal[::2]) and torch.equal(part.keys(), tasks.keys()[::2])


@needs_kernels
@pytest.mark.parametrize("shared", [False, True])
def test_compiled_whole(shared):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def solve(passages, start, goal, logits):
        mazes = MazeBatch(passages, check=False)
        mazes = mazes.expand(len(start)) if shared else mazes
        path = mazes.shortest_paths(start, goal, length=20)
        tasks = MazeTasks(mazes, start, goal, path, (path >= 0).sum(1))
        return mazes.distances(goal), path, mazes.neighbors(), mazes.hash(), *greedy_rollout(logits, tasks)

    mazes = generate_mazes(1 if shared else 8, (4, 5), algorithm="percolation", seed=3)
    goal, start = goals_of(8, 20), torch.arange(8)
    logits = torch.rand(8, 20, 4)
    tasks = MazeTasks(mazes, start, goal)
    path = mazes.shortest_paths(start, goal, length=20)
    expected = (mazes.distances(goal), path, tasks.mazes.neighbors(), tasks.keys(), *greedy_rollout(logits, tasks))
    for a, b in zip(solve(mazes.passages, start, goal, logits), expected, strict=True):
        assert torch.equal(a, b)


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_make_no_difference(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tasks = tasks_of("obstacles", (40, 50), 60, shared=True)
        got = tasks.mazes.distances(tasks.goal)
    finally:
        torch.set_num_threads(before)
    copied = MazeBatch(tasks.mazes.passages.contiguous())
    assert torch.equal(got, copied.distances(tasks.goal))
    with reference():
        assert torch.equal(got, tasks.mazes.distances(tasks.goal))


@pytest.mark.parametrize(
    "goal, error, message",
    [
        (torch.tensor([[1], [2], [3]]), ValueError, r"goal must be \[2\] or \[2, G\], one .*, got \[3, 1\]"),
        (torch.zeros(2, 0, dtype=torch.int64), ValueError, r"goal must be \[2\] or \[2, G\].* got \[2, 0\]"),
        (torch.zeros(2, 1, 1, dtype=torch.int64), ValueError, r"got \[2, 1, 1\]"),
        (torch.zeros(2, 2), TypeError, "goal must be an int64 tensor, got float32"),
        (torch.tensor([[0, -1], [3, 9]]), IndexError, r"goal\[1, 1\] = 9 is out of range for 9 cells"),
        (torch.tensor([[0, -2], [3, 1]]), IndexError, r"goal\[0, 1\] = -2 is out of range for 9 cells"),
    ],
)  # fmt: skip
def test_bad_goals(goal, error, message, backend):
    mazes = generate_mazes(2, 3)
    for call in (mazes.distances, lambda goal: mazes.shortest_paths(torch.tensor([0, 1]), goal)):
        with pytest.raises(error, match=message):
            call(goal)
    with pytest.raises(ValueError, match=r"start must be \[2\], one cell for each maze, got \[2, 1\]"):
        mazes.shortest_paths(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([0, 1]))


def test_a_shortest_path_is_the_only_one_where_no_other_is_counted():
    tasks = sample_tasks(300, 5, algorithm="percolation", seed=2)

    def count(around, distance, cell):
        nearer = [to for to in around[cell] if to >= 0 and distance[to] == distance[cell] - 1]
        return sum(count(around, distance, to) for to in nearer) if distance[cell] else 1

    arguments = zip(
        tasks.mazes.neighbors().tolist(), tasks.mazes.distances(tasks.goal).tolist(), tasks.start.tolist(), strict=True
    )
    expected = torch.tensor([count(*which) == 1 for which in arguments])
    assert torch.equal(tasks.one_shortest_path(), expected) and 30 < expected.sum() < 270
    assert sample_tasks(20, 6).one_shortest_path().all()  # no loops
    cut = MazeTasks(MazeBatch(torch.zeros(1, 1, 2).byte()), torch.tensor([0]), torch.tensor([1]))
    assert not cut.one_shortest_path().any() and tasks[:0].one_shortest_path().shape == (0,)
    both = MazeTasks(MazeBatch.open(1, 3), torch.tensor([4]), torch.tensor([[3, 5]]))
    assert not both.one_shortest_path().any()  # one path to each of two goals as near
