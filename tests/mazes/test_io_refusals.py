"""What would be written and could not be read again is refused, and a file's detour is not called a shortest path."""

import pytest
import torch

from poh_ext import MazeBatch, MazeTasks, generate_mazes, io, sample_tasks
from poh_ext.commands import solve

OPEN = MazeBatch.open(1, 3)


def task(start, goal, path=None, mazes=OPEN):
    return MazeTasks(mazes, torch.tensor([start]), torch.tensor([goal]), None if path is None else torch.tensor([path]))


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
@pytest.mark.parametrize(
    "path, goal, reason",
    [([0, 3, 4, 1], 1, "the 2 marks 'o' are not one way"), ([0, 1, 0, 1, 2], 2, "walks a cell twice or passes a goal")],
)
def test_paths_that_marks_do_not_tell_are_not_written(suffix, path, goal, reason, tmp_path):
    with pytest.raises(io.FormatError, match=f"task 0: .*{reason}"):
        io.write(tmp_path / f"a{suffix}", task(0, goal, path))
    assert not list(tmp_path.iterdir())


def test_a_goal_passed_or_out_of_reach_is_not_drawn(tmp_path):
    with pytest.raises(io.FormatError, match="passes a goal"):
        io.write(tmp_path / "a.txt", task(0, [1, 2], [0, 1, 2]))
    apart = MazeBatch.from_free(torch.tensor([[[True, False, True]]]))
    with pytest.raises(io.FormatError, match="no way leads"):
        io.text(task(0, 2, mazes=apart))


def test_movingai_files_hold_what_they_say(tmp_path):
    with pytest.raises(io.FormatError, match=r"\.scen has; write them to a \.map"):
        io.write(tmp_path / "a.scen", OPEN)
    with pytest.raises(io.FormatError, match="there are 2 mazes; a map is one maze"):
        io.write(tmp_path / "a.map", MazeBatch.open(2, 3))
    assert len(io.read(io.write(tmp_path / "b.scen", task(0, 0)))) == 1  # of length 0, not -0


def test_an_answer_without_marks_is_no_answer(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("source,question,answer,rating\na,S  G,S  G,1\nb,S  G,,1\nc,S  G,SooG,1\n")
    with pytest.raises(io.FormatError, match=r"line 4: .* the 2 marks 'o' are not one way"):
        io.read(file)
    assert io.read_hrm(file, answers=False).tasks.length.tolist() == [3, 3, 3]
    file.write_text(file.read_text().replace("SooG", "So G"))
    assert io.read(file).path.tolist() == [[0, 2, 3], [0, 2, 3], [0, 1, 3]]


def test_no_tasks_are_drawn_as_nothing():
    none = sample_tasks(3, 4)[:0]
    assert io.text(none) == "" and io.to_pixels(none).shape == (0, 9, 9, 3)


def test_the_shortest_path_of_a_file_is_found_anew(tmp_path, capsys):
    pytest.importorskip("safetensors")
    file = tmp_path / "long.txt"
    file.write_text("S.G\nooo\n")
    assert io.read(file).length.tolist() == [5]
    assert solve.main([str(file)]) == 0
    assert "the shortest path has 2 moves" in capsys.readouterr().out


def test_faults_are_named_by_what_was_given():
    mazes = generate_mazes(4, 4)
    assert torch.equal(mazes[::-1].passages, mazes.passages.flip(0))
    raster = mazes.raster()
    raster[2, 0, 1] = 0
    for call, error, words in (
        (lambda: MazeBatch.from_raster(raster), ValueError, r"raster\[2, 0, 1\] is open, but lies in the border"),
        (lambda: generate_mazes(1, 10**6), ValueError, "got 1000000: 1000000 x 1000000 cells"),
        (lambda: generate_mazes(1, 3, algorithm=["dfs"]), ValueError, r"algorithm \['dfs'\] is unknown"),
        (lambda: sample_tasks(1, 3, start=["any"]), ValueError, r"start \['any'\] is unknown"),
        (lambda: sample_tasks(1, 3).to("gpu"), ValueError, "device must be a torch.device or its name, got 'gpu'"),
        (lambda: mazes.to(None), TypeError, "device must be a torch.device or its name, got None"),
        (lambda: task(0, 2, [-1, -1]), ValueError, r"path\[0\] is empty, .* but one does"),
        (lambda: sample_tasks(2, 3)[5], IndexError, "index 5 is out of range for 2 mazes"),
        (
            lambda: mazes.shortest_paths(*torch.zeros(2, 4, dtype=torch.int64), length=10**12),
            ValueError,
            r"length must be in \[1, 67108864\]",
        ),
    ):
        with pytest.raises(error, match=words):
            call()
