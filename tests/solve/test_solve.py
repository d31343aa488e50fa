"""The shipped weights, the evaluation, the command line."""

import subprocess
import sys

import pytest

from poh_ext import sample_tasks
from poh_ext.commands import solve as cli
from poh_ext.models.weights import save
from poh_ext.solve import pretrained
from poh_ext.solve.evaluation import exact_over_passes
from tests.cases.solvers import ROWS, SOLVE, fresh
from tests.cases.training import planner_options


@pytest.fixture(params=ROWS)
def planner(request):
    return request.param


def test_shipped_weights_solve_mazes_they_never_met(planner):
    path = pretrained.SHIPPED / f"{planner}.safetensors"
    assert path.stat().st_size < 200_000
    model, recipe, notes = pretrained.load(planner)
    assert recipe.planner == ROWS[planner] and recipe.sizes == (5, 12) and recipe.steps == 6_000
    assert notes["optimal"] >= 0.999  # `make solve` rebuilds them
    output = notes["config"]["output"]
    assert output.startswith(f"experiments/results/solve_{recipe.planner}")  # no path of one machine
    built = fresh(planner).state_dict()
    assert {k: v.shape for k, v in built.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == {"baseline": 19_992, "poh": 30_728}[planner]
    assert model.passes == planner_options("poh", SOLVE)["R"] == 220 and not model.training
    tasks = sample_tasks(60, 12, min_path=50, seed=77)
    solved = exact_over_passes(model, tasks, (0.25, 2.0)).float().mean(1)
    assert solved[0] <= 0.1 and solved[1] == 1  # news goes one cell a pass
    larger = sample_tasks(6, 18, min_path=80, seed=78)
    assert exact_over_passes(model, larger, (2.0,)).all()


def test_files_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file; --save-weights"):
        pretrained.load(tmp_path / "none.pt")
    (tmp_path / "a.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.pt is damaged or no safetensors file"):
        pretrained.load(tmp_path / "a.pt")
    save(tmp_path / "b.pt", fresh("poh"), notes={})
    with pytest.raises(ValueError, match=r"b\.pt does not say what its planner was trained on: 'config'"):
        pretrained.load(tmp_path / "b.pt")


def test_demo_solves_a_maze_with_the_shipped_weights(tmp_path):
    command = [sys.executable, "-m", "poh_ext", "solve", "--size", "12", "--seed", "1", "--png", tmp_path / "m.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "12x12 dfs maze, seed 1" in done.stdout and "exactly a shortest path" in done.stdout
    assert (tmp_path / "m.png").stat().st_size > 200


def test_demo_says_when_the_passes_are_too_few(capsys, planner):
    assert cli.main(["--size", "10", "--passes", "2", "--weights", planner]) == 1
    assert "not a shortest path" in capsys.readouterr().out


def test_evaluation_from_the_command_line(capsys):
    assert (
        cli.main(
            [
                "evaluate",
                "--weights",
                str(pretrained.SHIPPED / "poh.safetensors"),
                "--mazes",
                "4:3:5",
                "6:4:7",
                "--passes",
                "1",
                "3",
                "--algorithm",
                "wilson",
            ]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].count("x") >= 2 and lines[2].startswith("| 4x4 wilson") and lines[4].startswith("| 6x6 wilson")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "1"], "must be at least 2, got 1"),
        (["--passes", "0"], "must be at least 1, got 0"),
        (["--png", "/nowhere/at/all.png"], "its folder does not exist"),
        (["--algorithm", "x"], "invalid choice: 'x'"),
        (["--weights", "none.pt"], "none.pt: no such file"),
        (["evaluate", "--mazes", "12"], "SIZE:PATH:COUNT"),
        (["evaluate", "--mazes", "4:3:2", "--passes", "0"], "factors must be positive"),
    ],
)
def test_bad_options_end_with_code_2_and_say_why(arguments, message, capsys):
    try:
        code = cli.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "module"),
    [(["evaluate"], "scipy.stats"), (["evaluate"], "tqdm"), (["--png", "x.png"], "PIL.Image"), ([], "safetensors")],
)
def test_a_missing_package_is_named_before_any_work(command, module, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(command) == 2
    assert f"needs {module.split('.')[0]}" in capsys.readouterr().err


def test_a_percolation_maze_without_a_way_is_an_error(capsys):
    seeds = (
        seed
        for seed in range(50)
        if cli.main(["--size", "9", "--algorithm", "percolation", "--seed", str(seed), "--passes", "1"]) == 2
    )
    assert next(seeds, None) is not None
    assert "no way leads from corner to corner" in capsys.readouterr().err
