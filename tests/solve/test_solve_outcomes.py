"""The evaluation's sets, table, file of raw outcomes and plot, and its command line."""

import dataclasses
import json
import sys

import pytest
import torch

from poh_ext._program import INTERRUPTED
from poh_ext.commands import solve as cli
from poh_ext.report.statistics import estimate
from poh_ext.solve import pretrained
from poh_ext.solve.evaluation import (
    DEFAULT_SETS,
    TEST_SEED,
    MazeSet,
    Outcome,
    exact_over_passes,
    measure,
    save_json,
    seen_in_training,
)
from poh_ext.solve.evaluation_report import ABREAST, accuracy_over_passes, table_lines
from poh_ext.solve.pretrained import Recipe
from poh_ext.training.data import make_data
from tests.cases.solvers import SOLVE


def outcome(factors=(1.0, 2.0), solved=((True, False, False), (True, True, False)), start="any"):
    return Outcome(
        MazeSet(9, 4, 3), "prim", start, list(factors), [5, 9, 4], [list(row) for row in solved], [4, 6, 4], 1, 2.6
    )


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_mazes_met_in_training_are_counted():
    """Among the 192 mazes of 3x3 many are met again; the program's own test mazes never are."""
    config = dataclasses.replace(SOLVE, train_sizes=(2, 3), maze_size=3, min_path=0.3, batch_size=4, test=30)
    recipe, data = Recipe("poh", 5, 40, config), make_data(config, 5)
    batches = [tasks for tasks, *_ in data.batches.run(0, 40)]
    assert {batch.mazes.height for batch in batches} == {2, 3}
    known = {
        tuple(maze) for batch in batches if batch.mazes.height == 3 for maze in batch.mazes.passages.flatten(1).tolist()
    }
    tasks = MazeSet(3, 2, 50).tasks("dfs")
    expected = sum(tuple(maze) in known for maze in tasks.mazes.passages.flatten(1).tolist())
    assert seen_in_training(recipe, tasks) == expected > 0
    assert seen_in_training(recipe, data.test) == 0
    assert seen_in_training(recipe, MazeSet(4, 2, 5).tasks("dfs")) == 0
    growing = dataclasses.replace(
        config, train_sizes=(2, 2), train_sizes_growth=3, min_path=0.2, epochs=1, test=20, steps_per_epoch=10
    )
    batches = [batch for batch, *_ in make_data(growing, 5).batches.run(0, 10)]
    assert {batch.mazes.height for batch in batches[:3]} == {2} and batches[-1].mazes.height == 3
    assert seen_in_training(Recipe("poh", 5, 10, growing), batches[-1]) == 4
    fixed = dataclasses.replace(config, train=20, train_sizes=None)
    assert seen_in_training(Recipe("poh", 5, 10, fixed), make_data(fixed, 5).train) == 20


@pytest.mark.parametrize("text", ["12:50", "12:50:x", "1:2:3", "12:1:3", "12:50:0"])
def test_sets_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="mazes must"):
        MazeSet.parse(text)


def test_default_sets_survive_being_written():
    assert [MazeSet.parse(str(s)) for s in DEFAULT_SETS] == list(DEFAULT_SETS)


def test_outcomes_are_those_of_every_set_algorithm_and_start():
    model, recipe, _ = pretrained.load("baseline")
    recipe = dataclasses.replace(recipe, steps=5)
    sets, factors = [MazeSet(5, 4, 6), MazeSet(6, 4, 7)], [0.1, 2.0]
    found = list(measure(model, recipe, sets, factors, algorithms=["dfs", "wilson"], starts=["any", "junction"]))
    assert [(o.mazes, o.algorithm, o.start) for o in found] == [
        (s, algorithm, start) for s in sets for algorithm in ("dfs", "wilson") for start in ("any", "junction")
    ]
    for o in found:
        tasks = o.mazes.tasks(o.algorithm, o.start)
        assert o.lengths == tasks.length.tolist() and len(tasks) == o.mazes.count
        assert o.solved == exact_over_passes(model, tasks, factors).tolist()
        ways = (tasks.mazes.neighbors() >= 0).sum(2).gather(1, tasks.start[:, None])
        assert o.start == "any" or int(ways.min()) >= 3
    assert found[1].name == "5x5 dfs from a junction" and found[2].name == "5x5 wilson"


@pytest.mark.parametrize(
    ("sets", "factors", "message"),
    [
        ([MazeSet(3, 2, 1), MazeSet(2, 2, 1)], [1.0], "from a junction .* 2 x 2"),
        ([MazeSet(3, 2, 1)], [], "factors must"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(sets, factors, message):
    with pytest.raises(ValueError, match=message):
        measure(None, Recipe("poh", 0, 1, SOLVE), sets, factors, starts=["junction"])


def test_table_holds_shares_and_wilson_intervals():
    o = outcome(start="dead-end")
    head, rule, line, known = table_lines([o], o.factors)
    assert cells(known) == ["could be known", "", "", "", "", "66.7", "100.0", ""]  # of 4, 8, 3 and 8, 16, 6 passes
    assert len({text.count("|") for text in (head, rule, line, known)}) == 1 and len(head) == len(line) == len(known)
    one, two = (estimate({0: row}) for row in o.solved)
    assert cells(line) == [
        "9x9 prim",
        "dead-end",
        "4-9",
        "3",
        "1",
        f"{one.percent:.1f} [{one.wilson[0]:.1f}-{one.wilson[1]:.1f}]",
        f"{two.percent:.1f} [{two.wilson[0]:.1f}-{two.wilson[1]:.1f}]",
        "3",
    ]
    assert cells(head)[5:7] == ["1 x", "2 x"] and cells(line)[5].startswith("33.3 [")


def test_many_factors_are_written_one_below_the_other():
    factors = [float(n) for n in range(1, ABREAST + 2)]
    o = outcome(factors, [[n > 3, True, False] for n in range(len(factors))])
    wide = list(table_lines([outcome(factors[:-1], o.solved[:-1])], factors[:-1]))
    long = list(table_lines([o, o], factors))
    assert len(wide) == 4 and len(long) == 2 + 2 * len(factors)
    assert len({len(line) for line in long if not line.startswith("|---")}) == 1 and len(long[0]) < 140
    assert cells(long[2])[7] == "66.7" and cells(long[3])[7] == "100.0"
    assert [cells(line)[5] for line in long[2 : 2 + len(factors)]] == [f"{factor:g}" for factor in factors]
    assert cells(long[2])[6].startswith("33.3") and cells(long[8])[6].startswith("66.7")
    assert cells(long[3])[:5] == [""] * 5


def test_lines_come_as_soon_as_outcomes_do():
    def slowly():
        yield outcome()
        raise KeyboardInterrupt

    table = table_lines(slowly(), [1.0, 2.0])
    assert cells([next(table) for _ in range(3)][2])[0] == "9x9 prim"
    assert cells(next(table))[0] == "could be known"
    with pytest.raises(KeyboardInterrupt):
        next(table)


def test_file_holds_the_outcome_on_every_maze(tmp_path):
    o = outcome()
    record = json.loads(save_json(tmp_path / "a.json", [o], {"weights": "x.pt", "complete": False}).read_text())
    assert record["weights"] == "x.pt" and record["complete"] is False and record["environment"]["versions"]["torch"]
    assert record["sets"] == [
        {
            "size": 9,
            "min_path": 4,
            "count": 3,
            "algorithm": "prim",
            "start": "any",
            "seed": TEST_SEED + 9,
            "met_in_training": 1,
            "seconds": 2.6,
            "moves": [4, 8, 3],
            "passes_to_know": [4, 6, 4],
            "one_shortest_path": "",
            "solved": {"1": "100", "2": "110"},
        }
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_plot_shows_shares_and_bands_over_rising_factors():
    first, second = outcome((2.0, 0.5), ((True, True, False), (True, False, False))), outcome(start="corridor")
    axis = accuracy_over_passes([first, second], "title").axes[0]
    assert axis.get_xscale() == "log" and axis.get_title() == "title"
    x, y = axis.lines[0].get_data()
    assert list(x) == [0.5, 2.0] and y == pytest.approx([100 / 3, 200 / 3])
    assert list(axis.lines[1].get_data()[1]) == [0.0, 100.0] and axis.lines[1].get_linestyle() == ":"
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    intervals = [estimate({0: row}).wilson for row in first.solved]
    assert {round(v, 6) for v in band} == {round(v, 6) for interval in intervals for v in interval}
    names = [text.get_text() for text in axis.figure.legends[0].get_texts()]
    assert names == ["9x9 prim, n = 3", "9x9 prim from a corridor, n = 3"]


def test_one_command_makes_table_file_and_plot(tmp_path, capsys):
    data, image = tmp_path / "e.json", tmp_path / "e.png"
    assert (
        cli.main(
            [
                "evaluate",
                "--mazes",
                "4:3:6",
                "--algorithm",
                "dfs",
                "percolation",
                "dfs",
                "--start",
                "any",
                "corridor",
                "--passes",
                "1",
                "0.5",
                "1",
                "--json",
                str(data),
                "--plot",
                str(image),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out.splitlines()
    assert [cells(line)[:2] for line in printed[2:6]] == [
        ["4x4 dfs", "any"],
        ["could be known", ""],
        ["4x4 dfs", "corridor"],
        ["could be known", ""],
    ]
    assert printed[10:] == [f"wrote {data}", f"wrote {image}"] and image.read_bytes()[:4] == b"\x89PNG"
    record = json.loads(data.read_text())
    assert record["complete"] is True and record["weights"] == "baseline"
    assert record["notes"]["row"] == "looped_baseline"
    assert record["tolerance"] == pretrained.load("baseline")[0].rest > 1e-3  # what was in force, not the default
    assert [list(s["solved"]) for s in record["sets"]] == [["1", "0.5"]] * 4


def test_what_was_measured_before_a_stop_is_kept(tmp_path, monkeypatch):
    data, calls = tmp_path / "e.json", []

    def stopped_at_the_second(model, tasks, factors, *, tolerance, done):
        calls.append(len(tasks))
        done(len(tasks))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return torch.ones(len(factors), len(tasks), dtype=torch.bool)

    monkeypatch.setattr("poh_ext.solve.evaluation.exact_over_passes", stopped_at_the_second)
    assert cli.main(["evaluate", "--mazes", "4:3:5", "5:3:6", "--json", str(data)]) == INTERRUPTED
    record = json.loads(data.read_text())
    assert record["complete"] is False and [s["size"] for s in record["sets"]] == [4] and calls == [5, 6]


def test_a_long_evaluation_says_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr("poh_ext.solve.evaluation.CELLS_AT_ONCE", 16)  # a maze at a time
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    seconds = iter(range(0, 1000, 10))
    monkeypatch.setattr("poh_ext.training.progress.time.monotonic", lambda: next(seconds))
    assert cli.main(["evaluate", "--mazes", "4:3:5", "--start", "corridor"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in told] == [f"4x4 dfs from a corridor: maze {n}/5" for n in (2, 4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--start", "exit"], "invalid choice: 'exit'"),
        (["--algorithm", "dfs", "x"], "invalid choice: 'x'"),
        (
            ["--json", "/nowhere/at/all.json"],
            "--json: /nowhere/at/all.json cannot be written: its folder does not exist",
        ),
        (["--plot", "/nowhere/at/all.png"], "--plot: /nowhere/at/all.png cannot be written: its folder does not exist"),
        (["--mazes", "2:2:1", "--start", "junction"], "no path of at least min_path = 2 cells from a junction"),
        (["--passes", "inf"], "factors must be positive"),
    ],
)
def test_bad_options_end_with_code_2_and_say_why(options, message, capsys):
    try:
        code = cli.main(["evaluate", *options])
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    assert code == 2 and message in captured.err and not captured.out


def test_a_plot_without_matplotlib_is_refused_before_any_work(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["evaluate", "--plot", "x.png"]) == 2
    assert "needs matplotlib" in capsys.readouterr().err


def test_mazes_with_one_shortest_path_are_counted_apart():
    o = dataclasses.replace(outcome(), unique=[True, False, True])
    assert o.identical == [(1, 2), (1, 2)]  # solved: 100 and 110
    line = list(table_lines([o], o.factors))[-1]
    assert cells(line)[0] == "the only path" and cells(line)[3] == "2" and cells(line)[5:7] == ["50.0", "50.0"]
    assert o.record()["one_shortest_path"] == "101"
    for same in ([True] * 3, [False] * 3, []):  # without loops, or nothing to count
        assert cells(list(table_lines([dataclasses.replace(o, unique=same)], o.factors))[-1])[0] == "could be known"
