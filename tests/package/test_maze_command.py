"""`poh-ext maze`: files and drawings hold the mazes that poh_ext makes, and bad options are named."""

from xml.etree import ElementTree

import pytest
import torch

from poh_ext import MazeTasks, generate_mazes, io, sample_tasks
from poh_ext.commands import maze


@pytest.fixture
def run(capsys):
    """(exit code, standard output, standard error) of `poh-ext maze words`."""

    def run(*words):
        try:
            code = maze.main(list(map(str, words)), program="poh-ext maze")
        except SystemExit as stop:
            code = stop.code
        return (code, *capsys.readouterr())

    return run


def same(a, b):
    return torch.equal(a.mazes.passages, b.mazes.passages) and torch.equal(a.start, b.start) and all(
        x.view(-1).tolist() == y.view(-1).tolist() for x, y in ((a.goal, b.goal), (a.length, b.length))
    )  # fmt: skip


def test_make_writes_the_tasks_of_sample_tasks(run, tmp_path):
    file = tmp_path / "a.csv"
    words = "--size 10 --algorithm obstacles --density 0.2:0.3 --count 7 --min-path 12 --seed 3 --output"
    code, out, wrong = run("make", *words.split(), file)
    expected = sample_tasks(7, 10, algorithm="obstacles", density=(0.2, 0.3), min_path=12, seed=3)
    low, high = int(expected.length.min()), int(expected.length.max())
    assert (code, wrong) == (0, "")
    assert out == f"wrote {file}: 7 tasks of 10x10, paths of {low} to {high} cells\n"
    assert same(io.read(file), expected)
    code, out, _ = run("make", "--size", "3x5", "--braid", "1", "--min-path", "0.3", "--output", tmp_path / "b.txt")
    assert code == 0 and ": 1 task of 3x5, paths of " in out
    found = io.read(tmp_path / "b.txt")
    assert same(found, sample_tasks(1, (3, 5), braid=1.0, min_path=5, seed=1))
    assert torch.equal(found.mazes.passages, type(found.mazes).open(1, (3, 5)).passages)


def test_convert_keeps_the_tasks(run, tmp_path):
    tasks = sample_tasks(3, 8, algorithm="obstacles", min_path=6, seed=2)
    io.write(tmp_path / "a.csv", tasks)
    assert run("convert", tmp_path / "a.csv", tmp_path / "b.txt")[0] == 0
    (tmp_path / "b.txt").rename(tmp_path / "b.maze")
    code, out, _ = run("convert", tmp_path / "b.maze", tmp_path / "c", "--from", "ascii", "--format", "hrm")
    assert code == 0 and "3 tasks of 8x8" in out
    assert same(io.read(tmp_path / "c", format="hrm"), tasks)


def test_a_map_of_others_is_a_line(run, tmp_path):
    io.write(tmp_path / "a.scen", io.as_blocked(sample_tasks(1, 4, seed=1)))
    (tmp_path / "b.map").write_text("mine")
    code, out, wrong = run("convert", tmp_path / "a.scen", tmp_path / "b.scen")
    assert (code, out, wrong.count("\n")) == (1, "", 1)
    assert wrong.startswith(f"error: {tmp_path / 'b.map'}: another map is there already; choose another name")
    assert (tmp_path / "b.map").read_text() == "mine" and not (tmp_path / "b.scen").exists()


def test_print_draws_what_can_be_read_again(run, tmp_path):
    code, out, told = run("print", "--size", "4x7", "--seed", "5")
    expected = generate_mazes(1, (4, 7), seed=5)
    found = io.parse(out)
    assert code == 0 and torch.equal(found.mazes.passages, expected.passages)
    assert (found.start.tolist(), found.goal.view(-1).tolist()) == ([0], [27]) and "o" not in out
    assert told == f"4x7 dfs maze, seed 5, corner to corner: the shortest path has {int(found.length) - 1} moves\n"
    marked = run("print", "--size", "4x7", "--seed", "5", "--path")[1]
    assert marked.count("o") == int(found.length) - 2 and marked.replace("o", " ") == out
    io.write(tmp_path / "a.txt", generate_mazes(3, 4, seed=1))
    code, out, told = run("print", tmp_path / "a.txt", "--task", 2)
    assert torch.equal(io.parse(out).passages, generate_mazes(3, 4, seed=1).passages[2:])
    assert told == f"{tmp_path / 'a.txt'}: a maze of 4x4, task 2 of 3\n"
    code, out, told = run("print", tmp_path / "a.txt", "--start", "0,1", "--goal", "3,3", "--path")
    assert code == 0 and io.parse(out).start.tolist() == [1] and "the shortest path has" in told


def test_print_says_where_no_way_leads(run, tmp_path):
    (tmp_path / "a.txt").write_text("..#.\n")
    code, out, told = run("print", tmp_path / "a.txt", "--start", "0,0", "--goal", "0,3")
    assert (code, out) == (0, "S.#G\n") and told.endswith(": no way leads to the goal\n")


def test_print_draws_pictures(run, tmp_path):
    images = pytest.importorskip("PIL.Image")
    png, svg = tmp_path / "a.png", tmp_path / "a.svg"
    code, out, told = run("print", "--size", 6, "--algorithm", "obstacles", "--path", "--png", png, "--svg", svg)
    assert (code, out, told) == (0, f"wrote {png}\nwrote {svg}\n", "")
    with images.open(png) as image:
        assert image.format == "PNG"
    classes = {part.get("class") for part in ElementTree.fromstring(svg.read_text()).iter()}
    assert {"walls", "blocked", "shortest", "start", "goal"} <= classes


def test_without_a_command_its_help_is_printed(run):
    code, out, _ = run()
    assert code == 0 and out.startswith("usage: poh-ext maze make|convert|print")


@pytest.mark.parametrize(
    "words, message",
    [
        ("make", "poh-ext maze make: error: argument --output: name the file to write"),
        ("make --output {tmp}/a.foo", "argument --output: {tmp}/a.foo: the suffix '.foo' tells no format"),
        ("make {out} --count 0", "argument --count: must be at least 1, got 0 (tasks)"),
        ("make {out} --count x", "argument --count: must be a whole number (tasks), at least 1, got 'x'"),
        ("make {out} --format x", "argument --format: invalid choice: 'x'"),
        ("make {out} --size 3x3x3", "argument --size: must be a side in cells, or HEIGHTxWIDTH, got '3x3x3'"),
        ("make {out} --size 0x3", "argument --size: must be at least 1, got 0 (cells of a side)"),
        ("make {out} --size 1x1", "argument --size: must have at least 2 cells in all, got 1x1"),
        ("make {out} --size 9999", "argument --size: must have at most 67108864 cells in all, got 9999"),
        ("make {out} --density 0.5:0.3", "argument --density: must be a share from 0 to 1, or LOW:HIGH"),
        ("make {out} --braid nan", "argument --braid: must be a share from 0 to 1, or LOW:HIGH, got 'nan'"),
        ("make {out} --density 0.3", "argument --density: for percolation and obstacles, not for dfs"),
        ("make {out} --algorithm obstacles --braid 0.3", "argument --braid: for dfs, wilson, prim, kruskal, "),
        ("make {out} --min-path x", "argument --min-path: must be a number (cells, or a share of all cells)"),
        ("make {out} --min-path 2.5", "argument --min-path: must be a whole number of cells, or a share"),
        ("make {out} --min-path -1", "argument --min-path: must be at least 0"),
        ("make {out} --min-path 1e308", "argument --min-path: must be at least 0 and at most 6.71089e+07, got 1e308"),
        ("make {out} --min-path 901", "argument --min-path: 901 cells, but a maze of 30x30 has only 900"),
        ("make {out} --size 3 --algorithm obstacles --min-path 9",
         "argument --min-path: no path of at least 9 cells in 10000 obstacles mazes"),
        ("convert {tmp}/no.csv {tmp}/a.txt", "poh-ext maze convert: error: {tmp}/no.csv: No such file or directory"),
        ("convert {tmp}/m.txt {tmp}/a.foo", "argument OUT: {tmp}/a.foo: the suffix '.foo' tells no format"),
        ("convert {tmp}/m.txt {tmp}", "cannot be written: it is a folder"),
        ("convert {tmp}/bad.txt {tmp}/a.csv", "error: {tmp}/bad.txt, line 1, column 2: "),
        ("convert {tmp}/m.txt {tmp}/a.csv", "{tmp}/a.csv: the format has starts and goals, which these mazes have not"),
        ("convert {tmp}/on.scen {tmp}/a.map", "{tmp}/a.map: a map has no starts and goals; write the tasks to a .scen"),
        ("convert {tmp}/on.scen {tmp}/a.txt", "error: {tmp}/a.txt: task 1 starts on a goal"),
        ("print {tmp}/on.scen --task 1", "{tmp}/on.scen: a maze of 2x3, task 1 of 2: the start is a goal, and"),
        ("print --size 3 --start 0,0 --goal 0,0", "3x3 dfs maze, seed 1, from 0,0 to 0,0: the start is a goal"),
        ("print {tmp}/wall.txt --start 0,0 --goal 0,2 --path",
         "{tmp}/wall.txt: a maze of 1x3: no way leads from 0,0 to 0,2 in this maze; give another --start"),
        ("print {tmp}/wall.txt --start 0,0 --goal 0,2 --path --svg {tmp}/a.svg", "{tmp}/wall.txt: a maze of 1x3: no"),
        ("print --size 3 --algorithm percolation --density 1 --path", "no way leads from corner to corner in this"),
        ("print --size 1x50 --algorithm obstacles", "seen has 24 cells; 25 cells are the default of --min-path"),
        ("print --size 5 --start -1,0", "argument --start: must be ROW,COLUMN, two whole numbers that count"),
        ("print --size 5 --density -.5:1", "argument --density: must be a share from 0 to 1, or LOW:HIGH, got '-.5"),
        ("print --task 1", "argument --task: there is no FILE that it could be of"),
        ("print --from hrm", "argument --from: there is no FILE that it could be of"),
        ("print {tmp}/m.txt --size 3", "argument --size: {tmp}/m.txt has its own mazes; leave out one of the two"),
        ("print {tmp}/m.txt --min-path 3", "argument --min-path: {tmp}/m.txt has its own mazes"),
        ("print {tmp}/m.txt --task 1", "argument --task: {tmp}/m.txt has the tasks 0 to 0, not 1"),
        ("print {tmp}/m.txt --path", "argument --path: {tmp}/m.txt holds mazes without start and goal"),
        ("print {tmp}/m.txt --start 0,0", "holds mazes without start and goal: give --goal ROW,COLUMN, too"),
        ("print {tmp}/m.txt --start 2,0", "argument --start: 2,0 is outside the maze, whose rows are 0 to 1"),
        ("print {tmp}/m.txt --goal 1,1", "argument --goal: the cell 1,1 is blocked"),
        ("print {tmp}/m.txt --goal 1", "argument --goal: must be ROW,COLUMN, two whole numbers that count"),
        ("print {tmp}/m.txt --svg {tmp}/a.png", "cannot be written: the name must end in .svg"),
        ("print --min-path 5 --start 0,0", "argument --min-path: it draws start and goal; leave out --start"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line_that_names_them(words, message, run, tmp_path):
    (tmp_path / "m.txt").write_text("...\n.#.\n")
    (tmp_path / "bad.txt").write_text("S?G\n")
    (tmp_path / "wall.txt").write_text(".#.\n")
    tasks = MazeTasks(io.parse("...\n.#.\n"), torch.tensor([0, 2]), torch.tensor([2, 2]))
    io.write(tmp_path / "on.scen", tasks)
    before = sorted(tmp_path.iterdir())
    code, out, wrong = run(*words.format(tmp=tmp_path, out=f"--output {tmp_path}/a.csv").split())
    assert code == 2 and out == "" and wrong.count("\n") == 1
    assert message.format(tmp=tmp_path) in wrong and sorted(tmp_path.iterdir()) == before


def test_pictures_need_pillow_and_say_so_first(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    code, out, wrong = run("print", "--png", "x.png")
    assert (code, out) == (2, "") and "needs PIL" in wrong
