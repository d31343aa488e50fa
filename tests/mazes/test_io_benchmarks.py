"""Files of benchmarks, Maze-Hard and MovingAI: what they say, and every way in which they are refused."""

import itertools
import re

import numpy as np
import pytest
import torch

from poh_ext import MazeBatch, MazeTasks, generate_mazes, io
from poh_ext.io._octile import octile_length
from tests.cases.maze_files import MAP, assert_same


def test_maze_hard_files(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("source,question,answer,rating\nx y,S # G    ,S # Goo  ,7\n")
    with pytest.raises(io.FormatError, match="the 2 marks 'o' are not one way"):
        io.read_hrm(path)
    path.write_text('source,question,answer,rating\nx y,S # G    ,So# G    ,7\n"a,b",S   G    ,S  oG    ,\n')
    tasks, source, rating = io.read_hrm(path)
    assert source == ["x y", "a,b"] and rating == ["7", ""]
    assert tasks.size == (3, 3) and tasks.path.tolist() == [[0, 1, 4], [0, 3, 4]]
    assert tasks.mazes.free()[0].tolist() == [[True, True, False], [True, True, True], [True, True, True]]
    written = io.write_hrm(tmp_path / "out.csv", tasks, source=source, rating=rating)
    assert written.read_bytes() == path.read_bytes()
    walk = torch.tensor([[0, 3, 6, 7], [0, -1, -1, -1]])
    io.write(written, tasks, paths=walk)
    assert written.read_text().splitlines()[1] == "poh_ext,S # G    ,S #oG oo ,3"
    assert io.read_hrm(written, answers=False).tasks.path.tolist() == [[0, 3, 4], [0, 3, 4]]


HEADER = "source,question,answer,rating\n"


@pytest.mark.parametrize("text, message", [
    ("", "the file is empty; the first line is 'source,question,answer,rating'"),
    ("question,answer\n", "line 1: the header is 'question,answer'; accepted: 'source,question,answer,rating'"),
    (HEADER, "there is no question below the header"),
    (HEADER + "a,SG  ,SG  \n", r"line 2: 3 columns; accepted: 4"),
    (HEADER + "a,SG,SG,1\n", r"line 2: the question has 2 characters; N \* N are accepted"),
    (HEADER + "a,,,1\n", r"line 2: the question has 0 characters"),
    (HEADER + "a,SG  ,,1\nb,SG       ,,1\n", "line 3: the question has 9 characters, but the first question has 4"),
    (HEADER + "a,SG  ,SG ,1\n", "line 2: the answer has 3 characters"),
    (HEADER + "a,SG. ,SG  ,1\n", "line 2: row 2, column 1 of the grid: in the question, '.' is unknown; acc"),
    (HEADER + "a,SG  ,SGü ,1\n", "line 2: row 2, column 1 of the grid: in the answer, 'ü' is unknown"),
    (HEADER + "a,SG# ,SGo ,1\n", "line 2: row 2, column 1 of the grid: the answer has 'o' where the question has '#'"),
    (HEADER + "a,SG  ,GS  ,1\n", "the answer has 'G' where the question has 'S'"),
    (HEADER + "a,SGG ,,1\n", "line 2: row 2, column 1 of the grid: there is a second goal; one 'G' is accepted"),
    (HEADER + "a,SGS ,,1\n", "there is a second start"),
    (HEADER + "a, G  ,,1\n", "line 2: there is no start"),
    (HEADER + "a,S   ,,1\n", "line 2: there is no goal"),
    (HEADER + "\na,SG  ,,1\na,S##G,,1\n", "line 4: row 1, column 1 of the grid: no way leads"),
    (HEADER + 'a,"SG  ,,1\n', "line 2: no csv"),
    (HEADER + "a," + "S" * 200_000 + ",,1\n", "line 2: no csv: field larger than field limit"),
])  # fmt: skip
def test_bad_maze_hard_files(text, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(io.FormatError, match=f"^{re.escape(str(path))}.*{message}"):
        io.read(path)


FOUR = "type octile\nheight 3\nwidth 4\nmap\n.GS@\nOTW.\n....\n"


def test_movingai_files(tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "four.map").write_text(FOUR + "\n")
    mazes = io.read(tmp_path / "maps" / "four.map")
    assert mazes.free().tolist() == [[[True, True, True, False], [False, False, False, True], [True] * 4]]
    path = tmp_path / "four.map.scen"
    lines = ["version 1.0", "0\tfour.map\t4\t3\t0\t2\t3\t1\t3.41421356", "1\tfour.map\t4\t3\t2\t0\t0\t0\t2"]
    path.write_text("\n".join(lines) + "\n\n")
    tasks, octile, bucket, line, file = io.read_scenarios(path, map=tmp_path / "maps")
    assert tasks.start.tolist() == [8, 2] and tasks.goal.tolist() == [7, 0]
    assert tasks.path.tolist() == [[8, 9, 10, 11, 7], [2, 1, 0, -1, -1]]
    assert octile.tolist() == [3.41421356, 2.0] and octile.dtype == torch.float64
    assert bucket.tolist() == [0, 1] and line.tolist() == [2, 3] and file == tmp_path / "maps" / "four.map"
    for given in (file, tmp_path / "maps"):
        assert_same(io.read_scenarios(path, map=given).tasks, tasks)
    path.write_text("\n".join(lines).replace("four.map\t", "maps/four.map\t"))
    assert_same(io.read(path), tasks)
    path.write_text("\n".join(lines).replace("four.map\t", "else/where.map\t"))
    io.write_map(tmp_path / "four.map", mazes)
    assert_same(io.read(path), tasks)  # under the name of the scenarios
    path.write_text("\n".join([*lines, "0 four.map 4 3 0 0 0 2 2", "0 four.map 4 3 0 0 3 0 2"]))
    some = io.read_scenarios(path, skip_unreachable=True)
    assert some.line.tolist() == [2, 3] and len(some.tasks) == 2
    with pytest.raises(io.FormatError, match=r"four.map.scen, line 5: the goal, x 3, y 0, is blocked"):
        io.read_scenarios(path)


def test_many_tasks_on_one_map_hold_it_once(tmp_path):
    path = io.write_scenarios(tmp_path / "a.scen", MAP, octile=[20.0] * 30)
    read = io.read(path)
    assert len(read) == 30 and read.mazes.passages.stride(0) == 0
    for suffix in ("npz", "safetensors"):
        again = io.read(io.write(tmp_path / f"a.{suffix}", read))
        assert again.mazes.passages.stride(0) == 0
        assert (tmp_path / f"a.{suffix}").stat().st_size < 20_000


def test_octile_lengths_are_those_of_dijkstra():
    sparse = pytest.importorskip("scipy.sparse")
    from scipy.sparse.csgraph import dijkstra

    free = generate_mazes(1, (15, 22), algorithm="obstacles", density=0.3, seed=5).free()[0].numpy()
    cells = [(row, column) for row, column in np.argwhere(free).tolist()]
    edges = {}
    for (row, column), down, right in itertools.product(cells, (-1, 0, 1), (-1, 0, 1)):
        beside = [(row + down, column), (row, column + right), (row + down, column + right)]
        if (down, right) != (0, 0) and all(cell in cells for cell in beside):
            edges[row * 22 + column, (row + down) * 22 + column + right] = (down * down + right * right) ** 0.5
    graph = sparse.csr_matrix((list(edges.values()), tuple(zip(*edges, strict=True))), shape=(free.size, free.size))
    wanted = dijkstra(graph)
    for start, goal in itertools.product([row * 22 + column for row, column in cells[::9]], repeat=2):
        assert octile_length(free, start, goal) == pytest.approx(wanted[start, goal], abs=1e-9)


def test_lengths_that_are_written(tmp_path):
    """The two examples of the format's page: 1 for a step, 3.41421 for two steps and a diagonal one."""
    mazes = MazeBatch.open(1, (14, 5))
    cells = torch.tensor([[11 * 5 + 1, 13 * 5 + 1], [12 * 5 + 1, 12 * 5 + 4]])
    io.write(tmp_path / "arena.map.scen", MazeTasks(mazes, *cells))
    assert (tmp_path / "arena.map.scen").read_text().splitlines() == [
        "version 1",
        "0\tarena.map\t5\t14\t1\t11\t1\t12\t1.00000000",
        "0\tarena.map\t5\t14\t1\t13\t4\t12\t3.41421356",
    ]
    assert (tmp_path / "arena.map").read_text() == "type octile\nheight 14\nwidth 5\nmap\n" + 14 * ".....\n"


@pytest.mark.parametrize("old, new, message", [
    ("type octile", "type tile", "line 1: the map begins with 'type tile'; accepted: 'type octile'"),
    ("height 3", "height x", "line 2: the header has 'height x'; accepted: 'height N' or 'width N'"),
    ("height 3", "width 4", "line 3: the header has 'width 4'; accepted: 'height N'"),
    ("height 3", "height 1000000000", "line 2: a map of 1000000000 x 4 cells; 1 to 67108864 cells are accepted"),
    ("height 3", "height " + "9" * 5000, "line 2: the header has 'height 9999"),
    ("height 3", "height 0", "line 2: a map of 0 x 4 cells"),
    ("height 3", "height 4", "line 8: 3 rows follow; the header says height 4"),
    ("height 3", "height 2", "line 7: 3 rows follow; the header says height 2"),
    ("width 4", "width 5", "line 5: the row has 4 characters; the header says width 5"),
    ("map\n", "mop\n", "line 4: the header has 'mop'; accepted: 'map'"),
    ("OTW.", "OTW", "line 6: the row has 3 characters"),
    ("OTW.", "OTX.", "line 6, column 3: 'X' is unknown; accepted: '.', 'G', 'S', '@', 'O', 'T', 'W'"),
])  # fmt: skip
def test_bad_maps(old, new, message, tmp_path):
    path = tmp_path / "a.map"
    path.write_text(FOUR.replace(old, new, 1))
    with pytest.raises(io.FormatError, match=f"^{re.escape(str(path))}, {re.escape(message)}"):
        io.read(path)


@pytest.mark.parametrize("text, message", [
    ("", "line 1: the scenarios begin with ''; accepted: 'version 1'"),
    ("version 2\n", "line 1: the scenarios begin with 'version 2'; accepted: 'version 1'"),
    ("version 1\n", "there is no scenario below the version"),
    ("version 1\n0\ta.map\t4\t3\n", "line 2: 4 fields; accepted: 9"),
    ("version 1\n0\ta.map\t4\t3\t-1\t0\t0\t0\t1\n", "line 2: start x is '-1'; a whole number"),
    ("version 1\n0\ta.map\t4\t3\t" + "1" * 30 + "\t0\t0\t0\t1\n", "line 2: start x is '1111"),
    ("version 1\n0\ta.map\t4\t3\t0\t0\t1\t0\tnan\n", "line 2: optimal length is 'nan'; a number of at least 0"),
    ("version 1\n0\ta.map\t4\t3\t0\t0\t1\t0\t1\n0\tb.map\t4\t3\t0\t0\t1\t0\t1\n", "line 3: the map is 'b.map', but"),
    ("version 1\n0\ta.map\t8\t6\t0\t0\t1\t0\t1\n", "line 2: map width and height are 8 and 6, but .* has 4 and 3"),
    ("version 1\n0\ta.map\t4\t3\t4\t0\t1\t0\t1\n", "line 2: the start is x 4, y 0; accepted: x < 4, y < 3"),
    ("version 1\n0\ta.map\t4\t3\t0\t0\t0\t1\t1\n", "line 2: the goal, x 0, y 1, is blocked in .*a.map"),
    ("version 1\n0\ta.map\t4\t3\t0\t0\t0\t2\t1\n", "line 2: no way without diagonal moves leads from start to goal in"),
])  # fmt: skip
def test_bad_scenarios(text, message, tmp_path):
    (tmp_path / "a.map").write_text(FOUR)
    path = tmp_path / "a.map.scen"
    path.write_text(text)
    with pytest.raises(io.FormatError, match=f"^{re.escape(str(path))}.*{message}"):
        io.read(path)


def test_a_map_that_is_not_there(tmp_path):
    path = tmp_path / "in" / "b.scen"
    path.parent.mkdir()
    (tmp_path / "a.map").write_text(FOUR)
    for name in ("a.map", "../a.map", str(tmp_path / "a.map"), "..", "x" * 5000, "a\0b"):  # none but beside it
        path.write_text(f"version 1\n0\t{name}\t4\t3\t0\t0\t1\t0\t1\n")
        with pytest.raises(io.FormatError, match=r"b.scen, line 2: the map .* is not there; looked for .*b\.map"):
            io.read(path)


def test_a_map_of_others_is_not_replaced(tmp_path):
    (tmp_path / "a.map").write_text(FOUR)
    with pytest.raises(FileExistsError, match="another map is there already"):
        io.write_scenarios(tmp_path / "a.scen", MAP, octile=[1.0] * 30)
    with pytest.raises(io.FormatError, match=r"a\.map: a \.map is the name of the map"):
        io.write_scenarios(tmp_path / "a.map", MAP)
    assert (tmp_path / "a.map").read_text() == FOUR and not (tmp_path / "a.scen").exists()


def test_a_map_with_the_same_free_cells_stays(tmp_path):
    (tmp_path / "a.map").write_text(FOUR)
    tasks = MazeTasks(io.read(tmp_path / "a.map"), torch.tensor([0]), torch.tensor([2]))
    assert_same(io.read(io.write(tmp_path / "a.scen", tasks)), tasks)
    assert (tmp_path / "a.map").read_text() == FOUR
