"""The recipe: training that goes on where it stopped, the shipped weights, the evaluation, the command line."""

import math
import subprocess
import sys

import pytest
import torch

from poh_ext import sample_tasks
from poh_ext.solve import cli, weights
from poh_ext.solve.evaluate import exact_over_passes
from poh_ext.solve.recipe import PLANNERS, Recipe
from poh_ext.solve.train import state_path, train
from poh_ext.training.interrupt import Interrupted

TINY = Recipe(steps=6, batch_size=4, sizes=(3, 4), passes=(2, 5), grad_passes=2, warmup_steps=2)
QUIET = {"say": lambda text: None, "watched": 4}


@pytest.fixture(params=PLANNERS)
def planner(request):
    return request.param


def test_interrupted_training_ends_in_the_same_weights(tmp_path, planner):
    recipe = Recipe(**{**vars(TINY), "planner": planner})
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    train(recipe, whole, **QUIET)
    for stop_after in (2, 3):  # before any step of the second run it is at step 2
        calls = iter(range(stop_after))

        def check(calls=calls):
            if next(calls, None) is None:
                raise Interrupted("test")

        with pytest.raises(Interrupted):
            train(recipe, parts, check=check, **QUIET)
        assert state_path(parts).exists() and not parts.exists()
    train(recipe, parts, **QUIET)
    assert not state_path(parts).exists()
    (a, made, notes), (b, *_) = weights.load(whole), weights.load(parts)
    assert made == recipe and notes["precision"] == "float32" and not a.training
    fresh = recipe.build().state_dict()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name
    assert any(not torch.equal(tensor, fresh[name]) for name, tensor in a.state_dict().items())


def test_a_state_of_another_training_is_refused(tmp_path):
    output = tmp_path / "a.pt"

    def stop():
        raise Interrupted("test")

    with pytest.raises(Interrupted):
        train(TINY, output, check=stop, **QUIET)
    with pytest.raises(ValueError, match=r"a training with seed 0, not 1; give the same options"):
        train(Recipe(**{**vars(TINY), "seed": 1}), output, **QUIET)
    with pytest.raises(ValueError, match="with precision 'float32', not 'bfloat16'"):
        train(TINY, output, precision="bfloat16", **QUIET)
    state_path(output).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="delete it to start anew"):
        train(TINY, output, **QUIET)


@pytest.mark.parametrize(("change", "message"), [
    ({"planner": "cnn"}, "planner must be one of baseline, poh, got 'cnn'"),
    ({"algorithm": "x"}, "algorithm must be one of dfs"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"sizes": (1, 5)}, r"sizes must be \(lowest, highest\) with 2 <="),
    ({"passes": (5, 4)}, r"passes must be .* got \(5, 4\)"),
    ({"lr": math.inf}, "lr must be positive, got inf"),
])
def test_recipes_that_cannot_be_run_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


def test_recipe_builds_by_seed_and_survives_a_file(planner):
    recipe = Recipe(planner=planner, seed=5)
    assert Recipe.from_record(recipe.record()) == recipe
    assert sum(p.numel() for p in recipe.build().parameters()) == {"baseline": 19_992, "poh": 30_728}[planner]
    a, b, c = (Recipe(planner=planner, seed=seed).build().state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_shipped_weights_solve_mazes_they_never_met(planner):
    path = weights.SHIPPED / f"{planner}.pt"
    assert path.stat().st_size < 200_000
    model, recipe, notes = weights.load(planner)
    assert recipe == Recipe(planner=planner) and notes["exact"] > 0.95  # `make solve` rebuilds them
    tasks = sample_tasks(60, 12, min_path=50, seed=77)
    solved = exact_over_passes(model, tasks, (0.25, 2.0)).float().mean(1)
    assert solved[0] <= 0.5 and solved[1] >= 0.95  # with few passes only dead ends can be told from the way
    larger = sample_tasks(6, 18, min_path=80, seed=78)
    assert exact_over_passes(model, larger, (2.0,)).float().mean() >= 0.8


def test_files_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file; .* solve train"):
        weights.load(tmp_path / "none.pt")
    (tmp_path / "a.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.pt is damaged or no checkpoint"):
        weights.load(tmp_path / "a.pt")
    weights.save(tmp_path / "b.pt", torch.nn.Linear(2, 2), TINY, {})
    with pytest.raises(ValueError, match=r"b\.pt is of another planner"):
        weights.load(tmp_path / "b.pt")


def test_demo_solves_a_maze_with_the_shipped_weights(tmp_path):
    command = [sys.executable, "-m", "poh_ext", "solve", "--size", "12", "--seed", "1", "--png", tmp_path / "m.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "12x12 dfs maze, seed 1" in done.stdout and "exactly a shortest path" in done.stdout
    assert (tmp_path / "m.png").stat().st_size > 200


def test_demo_says_when_the_passes_are_too_few(capsys, planner):
    assert cli.main(["--size", "10", "--passes", "2", "--weights", planner]) == 1
    assert "not a shortest path" in capsys.readouterr().out


def test_training_and_evaluation_from_the_command_line(tmp_path, capsys):
    output = tmp_path / "w.pt"
    assert cli.main(["train", "--steps", "2", "--planner", "baseline", "--seed", "3", "--precision", "float32",
                     "--output", str(output)]) == 0
    assert "step 2/2" in capsys.readouterr().out
    assert weights.load(output)[1] == Recipe(seed=3, steps=2)
    assert cli.main(["evaluate", "--weights", str(output), "--mazes", "4:3:5", "6:4:7", "--passes", "1", "3",
                     "--algorithm", "wilson"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].count("x") >= 2 and lines[2].startswith("| 4x4 wilson") and lines[3].startswith("| 6x6 wilson")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--size", "1"], "must be at least 2, got 1"),
    (["--passes", "0"], "must be at least 1, got 0"),
    (["--png", "/nowhere/at/all.png"], "its folder does not exist"),
    (["--algorithm", "x"], "invalid choice: 'x'"),
    (["--weights", "none.pt"], "none.pt: no such file"),
    (["train"], "--output"),
    (["train", "--steps", "0", "--output", "x"], "must be at least 1, got 0"),
    (["train", "--output", "/nowhere/at/all.pt"], "its folder does not exist"),
    (["evaluate", "--mazes", "12"], "SIZE:PATH:COUNT"),
    (["evaluate", "--mazes", "4:3:2", "--passes", "0"], "factors must be positive"),
])
def test_bad_options_end_with_code_2_and_say_why(arguments, message, capsys):
    try:
        code = cli.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("command", "module"), [
    (["train", "--output", "x.pt"], "tqdm"), (["evaluate"], "scipy.stats"), (["--png", "x.png"], "PIL.Image"),
])
def test_a_missing_package_is_named_before_any_work(command, module, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match="2"):
        cli.main(command)
    assert f"needs {module.split('.')[0]}" in capsys.readouterr().err


def test_a_percolation_maze_without_a_way_is_an_error(capsys):
    seeds = (seed for seed in range(50) if cli.main(["--size", "9", "--algorithm", "percolation", "--seed", str(seed),
                                                     "--passes", "1"]) == 2)
    assert next(seeds, None) is not None
    assert "no way leads from corner to corner" in capsys.readouterr().err
