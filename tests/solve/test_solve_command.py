"""`poh-ext solve` and `evaluate`: mazes of every generator, size and file; progress; what is said of bad options."""

import json
import re

import pytest
import torch

from poh_ext import GENERATORS, MazeBatch, MazeTasks, generate_mazes, io, sample_tasks
from poh_ext.commands import evaluate, solve
from poh_ext.models import PoHPlanner
from poh_ext.rollout import greedy_rollout
from poh_ext.solve import animation, pretrained


@pytest.fixture
def run(capsys):
    """(exit code, standard output, standard error) of `poh-ext words`."""

    def run(words, *more):
        command, *words = [*words.split(), *map(str, more)]
        main = {"solve": solve.main, "evaluate": evaluate.main}[command]
        try:
            code = main(words, program=f"poh-ext {command}")
        except SystemExit as stop:
            code = stop.code
        return (code, *capsys.readouterr())

    return run


def told(out):
    """(name of the maze, moves of its shortest path, planner, passes, whether the planner's path is one)."""
    first, second = out.splitlines()[:2]
    name, shortest = re.fullmatch(r"(.*): the shortest path has (\d+) moves?", first).groups()
    planner, passes, words = re.fullmatch(
        r"(.*) \([\d,]+ parameters, trained on mazes of \d+x\d+ to \d+x\d+\), (\d+) pass(?:es)? in [\d.]+ s: (.*)",
        second,
    ).groups()
    return name, int(shortest), planner, int(passes), words.endswith("exactly a shortest path")


@pytest.mark.parametrize("algorithm", GENERATORS)
def test_mazes_of_every_generator(algorithm, run):
    code, out, _ = run(f"solve --algorithm {algorithm} --size 6x9 --min-path 5 --seed 3")
    name, shortest, planner, passes, exact = told(out)
    expected = sample_tasks(1, (6, 9), algorithm=algorithm, min_path=5, seed=3)
    start, goal = ("{},{}".format(*divmod(int(cell), 9)) for cell in (expected.start, expected.goal))
    assert name == f"6x9 {algorithm} maze, seed 3, from {start} to {goal}" and shortest == int(expected.length) - 1
    assert (planner, passes, code) == ("baseline", 54, 0 if exact else 1)


def test_obstacles_need_no_other_option(run):
    code, out, _ = run("solve --algorithm obstacles --size 10")
    assert code in (0, 1) and told(out)[1] >= 9


@pytest.mark.parametrize("command", ["solve", "evaluate"])
def test_the_help_says_the_least_tolerance(command, run):
    assert "at least the planner's own rest" in " ".join(run(f"{command} --help")[1].split())


@pytest.mark.parametrize("weights", ["baseline", "poh"])
def test_a_planner_has_the_name_that_was_asked_for(weights, run):
    assert told(run(f"solve --size 5 --weights {weights}")[1])[2] == weights
    path = pretrained.SHIPPED / f"{weights}.safetensors"
    row = {"baseline": "looped_baseline", "poh": "poh"}[weights]
    assert told(run("solve --size 5 --weights", path)[1])[2] == f"{path} ({row})"


def test_start_and_goal_are_cells(run):
    name, shortest, *_ = told(run("solve --size 7 --start 6,0 --goal 0,3 --braid 1")[1])
    assert name == "7x7 dfs maze, seed 1, from 6,0 to 0,3" and shortest == 9  # all walls are open
    assert told(run("solve --size 7 --start 6,5")[1])[:2] == ("7x7 dfs maze, seed 1, from 6,5 to 6,6", 1)


def test_a_file_of_tasks(run, tmp_path):
    tasks, file = sample_tasks(4, 8, algorithm="obstacles", min_path=7, seed=2), tmp_path / "a.csv"
    io.write(file, tasks)
    for words, which in (("", 0), ("--task 2", 2)):
        name, shortest, *_ = told(run(f"solve {file} {words}")[1])
        assert name == f"{file}: a maze of 8x8, task {which} of 4" and shortest == int(tasks.length[which]) - 1
    model, _, _ = pretrained.load("baseline")
    with torch.no_grad():
        table = model.policy(tasks.mazes, tasks.start, tasks.goal, passes=64, tolerance=1e-3)
    expected = (greedy_rollout(table, tasks).steps == tasks.length - 1).tolist()
    assert [run(f"solve {file} --task {i}")[0] for i in range(4)] == [0 if exact else 1 for exact in expected]


@pytest.mark.parametrize("start, code", [(0, 0), (1, 1)])
def test_the_walk_that_is_shown_is_judged(start, code, run, tmp_path, monkeypatch):
    """1 x 4 cells, goal at the right end. The second cell points back: a walk from the first has been there already."""
    pytest.importorskip("PIL.Image")
    table, said, outcome = torch.tensor([[[0.0, 0, 0, 1]] * 4]), [], animation._outcome
    table[0, 1, 2] = 2
    monkeypatch.setattr(solve, "_scores", lambda model, task, after, tolerance: [table] * len(after))
    monkeypatch.setattr(animation, "_outcome", lambda *words: said.append(outcome(*words)) or said[-1])
    (tmp_path / "m.txt").write_text("....\n")
    found, out, _ = run(
        "solve", tmp_path / "m.txt", "--start", f"0,{start}", "--goal", "0,3", "--gif", tmp_path / "a.gif"
    )
    moves = 3 - start + 2 * code
    assert found == code and f"reached in {moves} moves, {'not' if code else 'exactly'} a shortest path" in out
    assert said == [f"goal reached in {moves} moves: {'not 2' if code else 'a shortest path'}"]


def test_a_file_of_mazes_with_start_and_goal(run, tmp_path):
    mazes, file = generate_mazes(2, 5, seed=4), tmp_path / "m.txt"
    io.write(file, mazes)
    name, shortest, *_ = told(run(f"solve {file} --task 1 --start 0,0 --goal 4,2")[1])
    assert name == f"{file}: a maze of 5x5, task 1 of 2"
    assert shortest == int(mazes[1].distances(torch.tensor([22]))[0, 0])


def test_the_nearest_of_several_goals_is_walked_to(run, tmp_path):
    images = pytest.importorskip("PIL.Image")
    mazes = MazeBatch(torch.tensor([[[8, 12, 12, 12, 4]]], dtype=torch.uint8))
    io.write(tmp_path / "a.txt", MazeTasks(mazes, torch.tensor([1]), torch.tensor([[4, 0]])))
    code, out, _ = run("solve", tmp_path / "a.txt", "--png", tmp_path / "a.png", "--gif", tmp_path / "a.gif")
    assert code == 0 and told(out)[1] == 1 and told(out)[4] and out.count("wrote") == 2
    assert images.open(tmp_path / "a.gif").n_frames > 2


def test_a_large_maze_shows_progress_and_the_same_states(run, monkeypatch):
    """Parts of a run are kept short here, so that there are many."""
    monkeypatch.setattr(solve, "LARGE", 1)
    monkeypatch.setattr("poh_ext.models.base.FIRST_PART", 5)
    monkeypatch.setattr("poh_ext.models.base.PART_SECONDS", 0.0)
    seconds = iter(range(0, 10_000, 3))
    monkeypatch.setattr("poh_ext.training.progress.time.monotonic", lambda: next(seconds))
    code, _, wrong = run("solve --size 6")
    lines = [line.split("  ")[0] for line in wrong.splitlines()]
    what = "solving, faster once cells rest: pass"
    assert code == 0 and lines[:2] == [f"{what} {n}/36" for n in (10, 20)] and len(lines) > 2


@pytest.mark.parametrize("planner", ["baseline", "poh"])
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_a_run_in_parts_has_the_same_states_to_the_bit(planner, tolerance, monkeypatch):
    monkeypatch.setattr("poh_ext.models.base.FIRST_PART", 3)
    model, _, _ = pretrained.load(planner)
    tasks, made = sample_tasks(2, 8, min_path=20, seed=1), []
    arguments = {"after": (4, 50), "tolerance": tolerance}
    with torch.no_grad():
        whole = model.hidden_passes(tasks.mazes, tasks.start, tasks.goal, **arguments)
        parts = model.hidden_passes(tasks.mazes, tasks.start, tasks.goal, **arguments, done=made.append)
    assert all(map(torch.equal, whole, parts))
    assert made[-1] == 50 and 4 in made and made == sorted(set(made)) and 3 < len(made) < 20


def test_done_is_called_after_every_pass_without_a_kernel():
    model, made = PoHPlanner(4, d_model=16, n_heads=2, d_ff=16, depth=1, R=3), []
    tasks = sample_tasks(1, 4, seed=1)
    model.hidden_passes(tasks.mazes, tasks.start, tasks.goal, after=(3,), done=made.append)
    assert made == [1, 2, 3]


def test_evaluation_of_braids_and_densities(run, tmp_path):
    words = "--mazes 5:4:6 --algorithm dfs obstacles --braid 0.2:0.5 --density 0.1 --passes 2 --json"
    code, out, _ = run("evaluate", *words.split(), tmp_path / "e.json")
    lines = [line for line in out.splitlines() if line.startswith("| 5x5")]
    assert code == 0 and [line.split("|")[1].strip() for line in lines] == [
        "5x5 dfs braid 0.2:0.5",
        "5x5 obstacles density 0.1",
    ]
    dfs, obstacles = json.loads((tmp_path / "e.json").read_text())["sets"]
    assert dfs["braid"] == [0.2, 0.5] and obstacles["density"] == 0.1 and "density" not in dfs
    seed = 6_000_005
    for record, loops in ((dfs, {"braid": (0.2, 0.5)}), (obstacles, {"density": 0.1})):
        tasks = sample_tasks(6, 5, min_path=4, algorithm=record["algorithm"], seed=seed, **loops)
        assert record["moves"] == (tasks.length - 1).tolist()


@pytest.mark.parametrize(
    "words, message",
    [
        ("solve --size x", "argument --size: must be a side in cells, or HEIGHTxWIDTH, got 'x'"),
        ("solve --tolerance x", "--tolerance: must be a number (units of the state), at least 0 and finite, got 'x'"),
        ("solve --passes many", "argument --passes: must be a whole number (passes), at least 1, got 'many'"),
        ("solve --seed -1", "argument --seed: must be at least 0, got -1 (seed)"),
        ("solve --seed 99999999999999999999", "argument --seed: must be at most 9223372036854775807, got 9999"),
        ("solve --device nowhere", "argument --device: must be a torch device (cpu, cuda, cuda:1, mps), got 'nowhere'"),
        ("solve --device meta", "argument --device: torch cannot compute on meta ("),
        ("solve --density 0.3", "argument --density: for percolation and obstacles, not for dfs, whose walls --braid"),
        ("solve --braid 0.3 --algorithm percolation", "argument --braid: for dfs, wilson, prim, kruskal, not for perc"),
        ("solve --braid 1.2", "argument --braid: must be a share from 0 to 1, or LOW:HIGH, got '1.2'"),
        ("solve --start 0", "argument --start: must be ROW,COLUMN, two whole numbers that count cells from 0, got '0'"),
        ("solve --size 4 --start 4,0", "argument --start: 4,0 is outside the maze, whose rows are 0 to 3 and columns"),
        ("solve --task 1", "argument --task: there is no FILE that it could be of"),
        ("solve {tmp}/no.txt", "poh-ext solve: error: {tmp}/no.txt: No such file or directory"),
        ("solve {tmp}/m.txt", "{tmp}/m.txt holds mazes without start and goal: give --start ROW,COLUMN and --goal ROW"),
        ("solve {tmp}/m.txt --goal 0,0", "holds mazes without start and goal: give --start ROW,COLUMN, too"),
        ("solve {tmp}/m.txt --seed 1", "argument --seed: {tmp}/m.txt has its own mazes; leave out one of the two"),
        ("solve {tmp}/m.txt --start 0,0 --goal 0,2", "no way leads from 0,0 to 0,2 in this maze; give another --start"),
        ("solve {tmp}/m.txt --start 0,1 --goal 0,2", "argument --start: the cell 0,1 is blocked"),
        ("solve --algorithm obstacles --density 1 --size 4 --start 0,0", "argument --start: the cell 0,0 is blocked"),
        ("solve --algorithm obstacles --density 0.9 --seed 2 --size 4 --start {free}", "the corner that --goal is by"),
        ("solve --algorithm percolation --density 1 --size 3 --start 0,1", "no way leads from 0,1 to 2,2 in this perc"),
        ("solve --algorithm obstacles --density 1 --size 4",
         "solve: error: no path of at least 4 cells in 10000 obst"),
        ("evaluate --passes 0", "argument --passes: factors must be positive and at most 1e+09, got 0 (passes for"),
        ("evaluate --passes 1e300", "--passes: factors must be positive and at most 1e+09, got 1e300 (passes for each"),
        ("evaluate --passes x", "argument --passes: must be a number (passes for each move), positive and at most 1e"),
        ("solve --passes 9223372036854775808", "argument --passes: must be at most 9223372036854775807, got 922337"),
        ("evaluate --mazes 100000:50:3", "argument --mazes: mazes must have SIZE x SIZE <= 67108864 cells, got '1000"),
        ("evaluate --mazes 4:17:3", "argument --mazes: mazes must have PATH <= SIZE x SIZE = 16 cells, got '4:17:3'"),
        ("evaluate --mazes 3:9:9 --algorithm prim --braid 1", "argument --mazes: mazes 3:9:9: no path of at least mi"),
        ("evaluate --mazes 3:9:2 --start junction", "argument --mazes or --start: mazes 3:9:2: no path of at least"),
        ("evaluate --mazes 3:9:2 --start junction", "in a row; the longest path seen from a junction has 7 cells"),
        ("evaluate --density 0.3 --algorithm dfs prim", "argument --density: for percolation and obstacles, not for"),
        ("evaluate --braid 0.3 --algorithm obstacles", "argument --braid: for dfs, wilson, prim, kruskal, not for obs"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line_that_names_the_flag(words, message, run, tmp_path):
    (tmp_path / "m.txt").write_text(".#.\n")
    free = generate_mazes(1, 4, algorithm="obstacles", density=0.9, seed=2).free()[0].nonzero().tolist()
    free = next((f"{row},{column}" for row, column in free), "")
    code, out, wrong = run(words.format(tmp=tmp_path, free=free))
    assert (code, out) == (2, "") and wrong.count("\n") == 1 and message.format(tmp=tmp_path) in wrong


def test_progress_of_a_large_maze_needs_tqdm_and_says_so(run, monkeypatch):
    monkeypatch.setattr(solve, "LARGE", 1)
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    code, out, wrong = run("solve --size 4")
    assert (code, out) == (2, "") and "needs tqdm" in wrong
