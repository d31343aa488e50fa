"""poh_ext.io: what is written is read again as it was, and files of other projects are read as they read them."""

import itertools

import pytest
import torch

import poh_ext
from poh_ext import MazeBatch, MazeTasks, io, sample_tasks
from tests.cases.maze_files import BLOCKED, GOALS, MANY, MAP, ONE, WALLS, assert_same

HELD = {
    "ascii": [WALLS, BLOCKED, GOALS, WALLS.mazes, BLOCKED.mazes],
    "hrm": [BLOCKED, io.as_blocked(sample_tasks(4, 5, seed=5))],
    "movingai": [MAP, MAP.mazes[:1]],
    "micromouse": [ONE, MANY, WALLS.mazes[:1]],
    "npz": [WALLS, BLOCKED, GOALS, MAP, WALLS.mazes, BLOCKED.mazes, MAP.mazes, WALLS[:0]],
    "safetensors": [WALLS, BLOCKED, GOALS, MAP, WALLS.mazes, BLOCKED.mazes, MAP.mazes, WALLS[:0]],
}  # fmt: skip


@pytest.mark.parametrize("format, what", [(name, what) for name, held in HELD.items() for what in held])
def test_what_is_written_is_read(format, what, tmp_path):
    path = tmp_path / "file"
    assert io.write(path, what, format=format) == path
    assert_same(io.read(path, format=format), what)


def test_each_format_is_tested():
    assert set(HELD) == set(io.FORMATS)
    assert all("(read, write)" in about for about in io.FORMATS.values())


@pytest.mark.parametrize("name, what", [
    ("a.csv", BLOCKED), ("a.txt", WALLS), ("a.txt", BLOCKED), ("A.MAP", MAP.mazes[:1]), ("a.map.scen", MAP),
    ("a.scen", MAP), ("a.npz", GOALS), ("a.safetensors", GOALS), ("a", WALLS),
])  # fmt: skip
def test_the_suffix_tells_the_format(name, what, tmp_path):
    assert_same(io.read(io.write(tmp_path / name, what)), what)


@pytest.mark.parametrize(
    "format, what", [("hrm", BLOCKED), ("movingai", MAP), ("movingai", MAP.mazes[:1]), ("micromouse", MANY)]
)
def test_the_first_line_of_a_text_tells_the_format(format, what, tmp_path):
    assert_same(io.read(io.write(tmp_path / "a.txt", what, format=format)), what)


def test_windows_line_ends_and_byte_order_marks_are_read(tmp_path):
    for name, what in (("a.csv", BLOCKED), ("a.txt", WALLS), ("a.map", MAP.mazes[:1])):
        path = io.write(tmp_path / name, what)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        assert_same(io.read(path), what)


def test_drawings():
    tasks = io.parse("S.#G\n .#.\n....")
    assert tasks.size == (3, 4) and tasks.path.tolist() == [[0, 4, 8, 9, 10, 11, 7, 3]]
    assert tasks.mazes.free().sum() == 10 and tasks.goal.tolist() == [3]
    assert io.text(tasks) == "S.#G\no.#o\noooo\n"
    assert io.text(tasks, paths=torch.tensor([[0, 1, -1]])) == "So#G\n..#.\n....\n"
    longer = io.parse("S.G\no.o\nooo")  # a given path stays, though a shorter one is there
    assert longer.path.tolist() == [[0, 3, 6, 7, 8, 5, 2]]
    walls = "+---+---+\n| S | G |\n+   +   +\n| o   o |\n+---+---+\n| # | # |\n+---+---+\n"
    assert io.parse(walls).mazes.passages.tolist() == [[[2, 2], [9, 5], [0, 0]]]
    assert io.parse(walls).mazes.free().tolist() == [[[True, True], [True, True], [False, False]]]
    assert io.text(io.parse(walls)) == walls
    assert io.parse(walls.replace("+", "o").replace("\n", "\r\n")).path.tolist() == [[0, 2, 3, 1]]
    two = io.parse("SG\n..\n\n\n.S\n.G\n")
    assert two.path.tolist() == [[0, 1], [1, 3]] and io.text(two) == "SG\n..\n\n.S\n.G\n"
    assert io.parse("S.G.G\n").goal.tolist() == [[2, 4]]


@pytest.mark.parametrize("text, message", [
    ("", "text: there is no maze"),
    ("S.G\n..\n", r"text, line 2: the row has 2 characters, but the first one \(line 1\) has 3: rows have one length"),
    ("S.G\n.x.", "text, line 2, column 2: 'x' is unknown; accepted: '#', ' ', '.', 'S', 'G', 'o'"),
    ("S\tG", r"text, line 1, column 2: '\\t' is unknown"),
    ("..G", "text, line 1: there is no start; one 'S' is accepted"),
    ("S.G\n.S.", "text, line 2, column 2: there is a second start; one 'S' is accepted"),
    ("S..", "text, line 1: there is no goal"),
    ("S#G", "text, line 1, column 1: no way leads from the start to a goal"),
    ("SoG\n.o.", "text, line 1, column 1: the 2 marks 'o' are not one way"),
    ("SooG\noo..", "the 4 marks 'o' are not one way"),
    ("SG\n\nSG.", "text, line 3: a maze of 1 x 3 cells below one of 1 x 2: one size is accepted"),
    ("SG\n\n..", "text, line 3: there is no start"),
    ("+---+\n| S |\n", "text, line 2: the maze has 2 lines; 2 for each row of cells and one more"),
    ("+---\n| S \n+---", "text, line 1: the row has 4 characters; 4 for each cell and one more"),
    ("+---+\n| S  \n+---+", r"text, line 2, column 5: ' ' is out of place; accepted here: '\|'"),
    ("+---+\n|S  |\n+---+", "text, line 2, column 2: 'S' is out of place; accepted here: ' '"),
    ("+---+\n|   |\n+-- +\n|   |\n+---+", "text, line 3, column 4: ' ' is out of place; accepted here: '-'"),
    ("+---+\n|   |\n+  -+\n|   |\n+---+", "text, line 3, column 4: '-' is out of place; accepted here: ' '"),
    ("+---+\n|   |\n----+\n|   |\n+---+", r"text, line 3, column 1: '-' is out of place; accepted here: 'o' or '\+'"),
    ("+---+\n| # |\n+   +\n|   |\n+---+", "text, line 2, column 3: the blocked cell '#' is open to a side"),
])  # fmt: skip
def test_bad_drawings(text, message):
    with pytest.raises(io.FormatError, match=message):
        io.parse(text)


def test_a_micromouse_maze(request, tmp_path):
    path = request.path.parent / "io_data" / "classic.txt"
    tasks = io.read(path)
    assert tasks.size == (16, 16) and tasks.start.tolist() == [240]
    assert tasks.goal.tolist() == [[119, 120, 135, 136]]
    assert io.write(tmp_path / "out.txt", tasks, format="micromouse").read_bytes() == path.read_bytes()
    lines = path.read_text().splitlines()
    for row, column in itertools.product(range(16), repeat=2):  # as the project's own tests find walls
        middle, center = 2 * row + 1, 4 * column + 2
        sides = (
            lines[middle - 1][center],
            lines[middle + 1][center],
            lines[middle][center - 2],
            lines[middle][center + 2],
        )
        assert tasks.mazes.passages[0, row, column] == sum((side == " ") << bit for bit, side in enumerate(sides))


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(FileNotFoundError):
        io.read(path)
    path.write_bytes("S.G".encode("utf-16"))
    with pytest.raises(io.FormatError, match=r"a.txt: the text is UTF-16; UTF-8 is accepted"):
        io.read(path)
    path.write_bytes(b"S.G\n.\xe9.")
    with pytest.raises(io.FormatError, match=r"a.txt, line 2: the byte 0xe9 is not UTF-8"):
        io.read(path)


def test_sizes_that_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("poh_ext.io._source.MAX_CELLS", 8)
    with pytest.raises(io.FormatError, match="line 1: 3 x 3 cells are too many; at most 8 are accepted"):
        io.parse("S.G\n...\n...")
    monkeypatch.setattr("poh_ext.io._source.MAX_BYTES", 8)
    (tmp_path / "a.txt").write_text("S.G\n...\n...")
    with pytest.raises(io.FormatError, match=r"a.txt: the file is larger than 8 bytes"):
        io.read(tmp_path / "a.txt")


ALONE = MazeTasks(MazeBatch.from_free(torch.tensor([[[True, False, True]] * 3])), torch.tensor([0]), torch.tensor([2]))
LARGE = MazeTasks(MazeBatch.open(1, 363), torch.tensor([0]), torch.tensor([2]))
THERE = MazeTasks(MazeBatch.open(1, 3), torch.tensor([4]), torch.tensor([4]))


@pytest.mark.parametrize("name, what, message", [
    ("a.csv", io.as_blocked(WALLS), "the mazes are 9 x 15; the format hrm has square grids"),
    ("a.csv", sample_tasks(1, 5), r"walls between free cells.*poh_ext.io.as_blocked"),
    ("a.csv", io.as_blocked(GOALS), "task 0 has several goals; the format hrm has one"),
    ("a.csv", ALONE, "task 0 has no path"),
    ("a.csv", THERE, "task 0 starts on a goal, cell 4"),
    ("a.map", BLOCKED.mazes, "there are 6 mazes; a map is one maze"),
    ("a.map", BLOCKED.mazes[:0], "there are 0 mazes; a map is one maze"),
    ("a.map", WALLS.mazes[:1], "walls between free cells; the format movingai"),
    ("a.map", MAP, "a map has no starts and goals; write the tasks to a .scen or .txt"),
    ("a.scen", io.as_blocked(GOALS[:1]), "task 0 has several goals; the format movingai has one"),
    ("a.scen", ALONE, "task 0 has no path"),
    ("a.csv", BLOCKED[:0], "there are no tasks; the format hrm has at least one"),
    ("a.csv", LARGE, "a grid of 363 x 363 has more characters than csv readers take in a field"),
    ("a.txt", THERE, "a.txt: task 0 starts on a goal"),
    ("a.txt", WALLS[:0], "there are no mazes; a file of drawings has at least one"),
])  # fmt: skip
def test_what_a_format_cannot_hold(name, what, message, tmp_path):
    with pytest.raises(io.FormatError, match=message):
        io.write(tmp_path / name, what)
    assert not list(tmp_path.iterdir())


def test_bad_arguments(tmp_path):
    path = tmp_path / "a.txt"
    for call, error, message in (
        (lambda: io.read(path, format="mazes"), ValueError, "format 'mazes' is unknown; accepted: ascii, hrm"),
        (lambda: io.write(tmp_path / "a.png", WALLS), ValueError, r"suffix '\.png' tells no format; accepted: \.csv"),
        (lambda: io.write(path, 3), TypeError, "mazes_or_tasks must be a MazeBatch or MazeTasks, got int"),
        (lambda: io.write(tmp_path / "a.npz", WALLS, paths=WALLS.path), ValueError, "ascii and hrm, not for npz"),
        (lambda: io.write(path, WALLS.mazes, paths=WALLS.path), TypeError, "paths is for MazeTasks, not for"),
        (lambda: io.write(path, WALLS, paths=WALLS.path[:2]), ValueError, r"paths must be \[5, L\]"),
        (lambda: io.write(path, WALLS, paths=WALLS.path.int()), TypeError, "paths must be"),
        (lambda: io.write(path, WALLS, paths=WALLS.path + 99), ValueError, r"paths\[0, 0\] = \d+ is neither a cell"),
        (lambda: io.write(tmp_path / "a.csv", BLOCKED.mazes), TypeError, "tasks must be MazeTasks"),
        (lambda: io.write_hrm(path, BLOCKED, source=["a"]), ValueError, "source must have 6 items"),
        (lambda: io.write_hrm(path, BLOCKED, rating=[1]), ValueError, "rating must have 6 items"),
        (lambda: io.write_map(path, BLOCKED), TypeError, "mazes must be a MazeBatch"),
        (lambda: io.write_scenarios(path, BLOCKED.mazes), TypeError, "tasks must be MazeTasks"),
        (lambda: io.write_scenarios(path, MAP, octile=[1.0]), ValueError, "octile must have 30 items"),
        (lambda: io.write_scenarios(path, MAP, octile=[-1.0] * 30), ValueError, "octile must be finite"),
        (lambda: io.write_micromouse(path, WALLS), io.FormatError, "there are 5 mazes; the format micromouse has one"),
        (lambda: io.write_micromouse(path, BLOCKED[:1]), io.FormatError, "there are blocked cells"),
        (lambda: io.parse(b"SG"), TypeError, "text must be a str, got bytes"),
        (lambda: io.text([1]), TypeError, "a MazeBatch or MazeTasks can be written, got list"),
        (lambda: io.write_npz(path, [1]), TypeError, "a MazeBatch or MazeTasks can be written, got list"),
        (lambda: io.as_blocked(3), TypeError, "a MazeBatch or MazeTasks is accepted, got int"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    assert not list(tmp_path.iterdir())


def test_a_micromouse_file_holds_one_maze(tmp_path):
    (tmp_path / "a.txt").write_text("o---o\n|   |\no---o\n\no---o\n|   |\no---o\n")
    assert len(io.read(tmp_path / "a.txt")) == 2
    with pytest.raises(io.FormatError, match=r"a.txt, line 5: the maze ends at an empty line"):
        io.read_micromouse(tmp_path / "a.txt")


def test_blocked_grids_of_mazes_with_walls():
    tasks = io.as_blocked(WALLS)
    assert torch.equal(tasks.mazes.free(), WALLS.mazes.raster() == 0)
    assert torch.equal(tasks.length, 2 * WALLS.length - 1)
    assert_same(MazeTasks(tasks.mazes, tasks.start, tasks.goal), tasks)  # in perfect mazes the shortest path is the one
    rows, columns = tasks.path.clamp(min=0) // 15, tasks.path.clamp(min=0) % 15
    assert torch.equal((rows[:, ::2] // 2 * 7 + columns[:, ::2] // 2)[WALLS.path >= 0], WALLS.path[WALLS.path >= 0])
    goals = io.as_blocked(GOALS)
    assert goals.goal.shape == (3, 2) and goals.goal[1, 1] == -1
    shared = io.as_blocked(MAP)
    assert shared.mazes.passages.stride(0) == 0 and shared.size == (41, 63)
    MazeTasks(shared.mazes, shared.start, shared.goal, shared.path)  # which checks them
    assert poh_ext.io is io
