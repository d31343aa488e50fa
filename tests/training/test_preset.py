"""--preset solve and the options it sets: what they are, what is refused, and a short run from end to end."""

import dataclasses
import itertools
import math
import sys

import pytest
import torch

from poh_ext.models import parameter_count
from poh_ext.models.weights import load
from poh_ext.results import Results
from poh_ext.tasks import sample_tasks
from poh_ext.training import benchmark, cli, estimate, presets, trial
from poh_ext.training.config import Benchmark12x12Config, ConfigError, ScalingBenchmarkConfig
from poh_ext.training.data import FixedBatches, draw, make_data
from poh_ext.training.plan import planned_rows
from poh_ext.training.presets import SOLVE, SOLVERS, solver_config, with_presets
from poh_ext.training.targets import Passes, step_passes
from tests.cases.training import build_planner, planner_options, tiny

pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")
CPU = torch.device("cpu")
QUICK_ROWS = Benchmark12x12Config.quick_defaults["rows"]
MOVES = {"head": "moves", "positions": "none", "train": "online"}


def solve(**changes):
    return dataclasses.replace(with_presets(Benchmark12x12Config(), quick=False, preset="solve"), **changes)


def parse(*words, program=Benchmark12x12Config):
    pytest.importorskip("tyro")
    config = cli.parse(program, words)
    config.check()
    return config


# -- the preset --------------------------------------------------------------------------------------------------


def test_the_preset_is_the_recipe():
    config = parse("--preset", "solve")
    assert config == solve(preset="solve") == parse("--preset=solve")
    assert config.min_path_cells == 50 and config.total_steps(0) == 6000 and config.test_passes == 220
    assert (config.train_R, config.train_R_growth, config.train_R_draw) == ((4, 40), 120, "log")
    assert config.size_range == (5, 12)
    assert (config.rest, config.state_noise, config.deep_supervision) == (0.1, 0.1, 3)
    assert config.kinds == ("dfs", "obstacles", "braid", "few-loops", "percolation", "open")
    assert config.tolerance == 0 and config.validate_every == 0
    counts = {
        name: parameter_count(build_planner(name, config, seed=0))
        for name in ("baseline", "looped_baseline", "poh", "poh_token")
    }
    assert counts == {"baseline": 19_992, "looped_baseline": 19_992, "poh": 30_728, "poh_token": 30_728}
    common = {
        "d_model": 48,
        "n_heads": 4,
        "d_ff": 96,
        "depth": 1,
        "cell_features": 6,
        "maze_enc": False,
        "dropout": 0.0,
        "valid_heads": 4,
        "norm": "post",
        "head": "moves",
        "positions": "none",
        "reinject": True,
        "rest": 0.1,
    }
    assert planner_options("looped_baseline", config) == {**common, "loops": 220}
    assert planner_options("baseline", config) == common
    assert planner_options("poh", config) == {**common, "R": 220, "T": 4, "residual": "none", "route_scale": 4.0}
    assert planner_options("poh_token", config)["routing"] == "token"


def test_flags_beside_the_presets_win_and_presets_combine():
    config = parse("--quick", "--preset", "solve", "--valid-heads", "2", "--train-R", "3,9", "--lr", "1e-3")
    assert config.quick and config.total_steps(0) == 1200 and config.test == 200 and config.train_R_growth is None
    assert (config.valid_heads, config.train_R, config.lr, config.d_model) == (2, (3, 9), 1e-3, 48)
    assert planner_options("poh", config)["valid_heads"] == 2
    assert parse("--preset", "none") == Benchmark12x12Config()
    both = parse(
        "--preset",
        "solve",
        "--depth",
        "2",
        "--parity",
        "depth",
        "--rows",
        "baseline,looped_baseline,poh,poh_token,poh_shallow",
    )
    shapes = {name: planner_options(name, both) for name in both.row_names}
    assert shapes["poh"]["n_heads"] == 4 and shapes["poh"]["d_model"] < 48  # narrower heads, none fewer
    assert shapes["poh_shallow"]["depth"] == 1 and shapes["poh_shallow"]["d_model"] == 48
    scaling = parse("--preset", "solve", "--models", "tiny,medium", program=ScalingBenchmarkConfig)
    assert planner_options("poh", scaling, "medium")["valid_heads"] == 8 and scaling.parity == "depth"


@pytest.mark.parametrize("program", [Benchmark12x12Config, ScalingBenchmarkConfig])
def test_the_defaults_are_the_published_planners(program):
    config = program()
    for scale in config.shapes:
        for name in ("baseline", "looped_baseline", "poh"):
            assert set(planner_options(name, config, scale)) <= {
                "d_model",
                "n_heads",
                "d_ff",
                "depth",
                "cell_features",
                "maze_enc",
                "dropout",
                "loops",
                "R",
                "T",
            }
    assert torch.optim.AdamW(build_planner("poh", tiny(), seed=0).parameters()).defaults["weight_decay"] == (
        config.weight_decay
    )
    assert config.size_range == (config.maze_size, config.maze_size) and config.test_passes == config.R
    assert config.pass_range(0, 9) == (config.R, config.R)
    assert set(SOLVE) < {f.name for f in dataclasses.fields(Benchmark12x12Config)}


@pytest.mark.slow
def test_a_short_run_of_the_preset_learns_and_says_what_its_rows_are(tmp_path, capsys):
    flags = [
        "--quick",
        "--preset",
        "solve",
        "--epochs",
        "2",
        "--steps-per-epoch",
        "15",
        "--test",
        "8",
        "--maze-size",
        "6",
        "--train-sizes",
        "4,6",
        "--R",
        "24",
        "--train-R",
        "4",
        "12",
        "--min-path",
        "0.3",
        "--save-weights",
        "--warmup-steps",
        "5",
        "--ema",
        "0.8",
        "--rows",
        "baseline,looped_baseline,poh,poh_token",
        "--cpu",
        "--precision",
        "float32",
        "--output",
        str(tmp_path / "run"),
    ]
    pytest.importorskip("tyro")
    assert cli.main(Benchmark12x12Config, flags) == 0
    results = Results.load(tmp_path / "run" / "results.json")
    assert [row.model for row in results.rows] == ["baseline", "poh", "looped_baseline", "poh_token"]
    for row in results.rows:
        losses = [point["loss"] for point in row.curve]
        assert row.steps == len(losses) == 30 and sum(losses[-5:]) < 0.8 * sum(losses[:5]), row.model
        path = tmp_path / "run" / "weights" / f"{row.model}-seed42.safetensors"
        model, notes = load(path)
        assert notes["row"] == row.model and notes["steps"] == 30 and notes["config"]["train_sizes"] == [4, 6]
        assert parameter_count(model) == row.params
    costs = {row.model: row.gflop_per_maze for row in results.rows}
    assert costs["looped_baseline"] > 15 * costs["baseline"]  # 24 passes at test
    assert {record["model"]: len(record["weights"]) for record in results.routing} == {"poh": 24, "poh_token": 24}
    report = (tmp_path / "run" / "report.md").read_text()
    assert "the looped baseline is the recurrent one" in report and "PoH per token" in report
    assert "routing per maze or per cell" in report
    assert "(--quick --preset solve)" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["safetensors.torch", "scipy.stats", "matplotlib.figure", "tyro"])
def test_a_missing_package_is_named_before_any_work(module, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tyro")
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(Benchmark12x12Config, ["--quick", "--save-weights", "--output", str(tmp_path / "run")]) == 2
    assert f"needs {module.split('.')[0]}" in capsys.readouterr().err and not (tmp_path / "run").exists()


# -- what is refused, and what is told ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"valid_heads": -1}, "--valid-heads -1: must be at least 0, or all"),
        ({"valid_heads": 5}, "--valid-heads 5: at most the 4 heads"),
        ({"norm": "none"}, "--norm none: must be one of published, pre, post"),
        ({"head": "both"}, "--head both: must be one of cells, moves"),
        ({"positions": "relative"}, "--positions relative"),
        ({"cell_features": 5}, "--cell-features 5: must be one of 4, 6"),
        ({"reinject": "yes"}, "--reinject yes"),
        ({"residual": "add"}, "--residual add"),
        ({"route_scale": 0.0}, "--route-scale 0.0: must be a finite number above 0, or heads"),
        ({"route_scale": "many"}, "--route-scale many"),
        ({"routing": "head"}, "--routing head"),
        ({"routing": "token", "rows": ("poh", "poh_token")}, "--routing token contradicts --rows poh_token"),
        ({"head": "moves", "multi_horizon": 2}, "--multi-horizon 2 contradicts --head moves"),
        ({"supervision": "some"}, "--supervision some"),
        ({"supervision": "all"}, "--supervision all: needs --head moves"),
        ({"train_R": (0, 4)}, "--train-R 0 4: must be the lowest and the highest, from 1 to 10000"),
        ({"train_R": (5, 4)}, "--train-R 5 4"),
        ({"train_R": (2, 4), "R": 1}, "--R 1 contradicts --train-R"),
        ({"test_R": 4, "R": 1}, "--R 1 contradicts --test-R"),
        ({"train_R_draw": "log"}, "--train-R-draw log: needs --train-R, the range that it draws from"),
        ({"train_R_growth": 9}, "--train-R-growth 9: needs --train-R"),
        ({"train_R": (2, 8), "train_R_growth": 7}, "--train-R-growth 7: must be from the upper end of --train-R, 8"),
        ({"grad_passes": 0}, "--grad-passes 0: must be at least 1, or all"),
        ({"test_R": 0}, "--test-R 0: must be at least 1, or R"),
        ({"deep_supervision": 0}, "--deep-supervision 0: must be at least 1"),
        ({"tolerance": -1e-3}, "--tolerance -0.001: must be a finite number, at least 0"),
        ({"tolerance": float("nan")}, "--tolerance nan"),
        ({"tolerance": float("inf")}, "--tolerance inf"),
        ({"train_sizes": (1, 4), **MOVES}, "--train-sizes 1 4: must be the lowest and the highest, from 2 to 256"),
        ({"train_sizes_growth": 9, **MOVES}, "--train-sizes-growth 9: needs --train-sizes, whose upper end grows"),
        (
            {"train_sizes": (3, 5), "train_sizes_growth": 4, **MOVES},
            "--train-sizes-growth 4: must be from the upper end of --train-sizes, 5, to 256",
        ),
        ({"train_sizes": (3, 4), **MOVES, "train": 8}, "--train-sizes 3 4: needs --train online"),
        ({"train_sizes": (3, 4), **MOVES, "head": "cells"}, "--train-sizes 3 4: needs --head moves"),
        ({"train_sizes": (3, 4), **MOVES, "positions": "absolute"}, "--train-sizes 3 4: needs --positions none"),
        ({"ema": 1.0}, "--ema 1.0: must be at least 0 and below 1"),
        ({"ema": float("nan")}, "--ema nan"),
        ({"state_noise": -0.1}, "--state-noise -0.1: must be a finite number, at least 0"),
        ({"weight_decay": -1.0}, "--weight-decay -1.0: must be a finite number, at least 0"),
        ({"preset": "fast"}, "--preset fast: must be one of none, solve"),
        ({"depth": 1, "rows": ("poh_shallow",), "d_model": 48, "d_ff": 96, **MOVES}, "poh_shallow needs --depth 2"),
        *(
            ({"protocol": "as-published", name: value}, "contradicts --protocol as-published")
            for name, value in {
                "valid_heads": 1,
                "norm": "post",
                "head": "moves",
                "positions": "none",
                "cell_features": 6,
                "reinject": "on",
                "residual": "none",
                "route_scale": 2.0,
                "routing": "token",
                "train_R": (2, 3),
                "grad_passes": 1,
                "test_R": 3,
                "deep_supervision": 2,
                "ema": 0.9,
                "tolerance": 1e-3,
                "state_noise": 0.1,
            }.items()
        ),
    ],
)
def test_what_cannot_be_run_is_named(changes, words, tmp_path):
    with pytest.raises(ConfigError) as error:
        benchmark.run_benchmark(tiny(output=tmp_path / "out", **changes))
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"rows": ("baseline",), "residual": "none"}, "--residual does nothing: there is no PoH row"),
        ({"rows": ("baseline",), "route_scale": "heads"}, "--route-scale does nothing"),
        ({"rows": ("poh_token",), "routing": "token"}, None),  # refused
        ({"rows": ("baseline",), "train_R": (2, 3)}, "--train-R does nothing: all trained planners run one pass"),
        ({"rows": ("baseline",), "test_R": 3}, "--test-R does nothing"),
        ({"rows": ("baseline",), "deep_supervision": 2}, "--deep-supervision does nothing"),
        ({"rows": ("baseline",), "state_noise": 0.1}, "--state-noise does nothing: all trained planners run one pass"),
        ({"state_noise": 0.1}, "--state-noise does nothing: all passes have gradients"),
        ({"rows": ("baseline",), "tolerance": 0.1}, "--tolerance does nothing: all trained planners run one pass"),
        ({"R": 1, "tolerance": 0.1}, "--tolerance does nothing with --R 1"),
        ({"rows": ("baseline",), "T": 2}, "--T does nothing: there is no PoH row"),
        ({"rows": ("baseline", "poh_solver"), "T": 2}, "there is no PoH row (poh_solver has options of its own)"),
        ({"rows": ("baseline",), "parity": "none"}, "--parity does nothing: there is no PoH row"),
        ({"rows": ("looped_baseline",), "parity": "width"}, "--parity does nothing: there is no PoH row"),
        ({"rows": ("poh_shallow",), "parity": "none", "depth": 2}, "--parity does nothing: the row poh_shallow keeps"),
        ({"rows": ("baseline",), "reinject": "on"}, "--reinject does nothing: all trained planners run one pass"),
        ({"rows": ("untrained_poh",), "train_R": (2, 3)}, "--train-R does nothing: no planner is trained"),
        (
            {"rows": ("baseline", "looped_solver"), "tolerance": 0.1},
            "--tolerance does nothing: all trained planners run one pass (looped_solver has options of its own)",
        ),
        (
            {"tolerance": 0.1},
            "--tolerance 0.1: it saves time only in planners of one layer whose heads all see neighbours",
        ),
        ({"tolerance": 0.1, "valid_heads": "all", "depth": 2}, "it saves time only in planners of one layer"),
        ({"tolerance": 0.1, "valid_heads": "all"}, "--tolerance 0.1: GFLOP per maze counts every cell in every pass"),
        ({"tolerance": 0.1}, "the baseline runs one pass"),
        ({"grad_passes": 2}, "--grad-passes 2 does nothing: no step runs more than 2 passes"),
        ({"deep_supervision": 3}, "--deep-supervision 3: no more than 2 passes have gradients"),
        ({"train_R": (2, 3), "test_R": 9}, "--R does nothing beside --train-R and --test-R"),
        ({"train_R": (2, 3)}, "the baseline runs one pass"),
        ({"reach": "seen"}, "--reach does nothing without --supervision all"),
        ({**MOVES, "supervision": "all", "min_path": 0.2}, "--min-path holds for the test mazes"),
    ],
)
def test_what_does_nothing_is_told(changes, words):
    config = tiny(**changes)
    if words is None:
        with pytest.raises(ConfigError):
            config.check()
        return
    config.check()
    assert any(words in note for note in config.ineffective())
    assert tiny().ineffective() == []


@pytest.mark.parametrize(
    "flags, notes",
    [
        ("--preset none --rows baseline --rest 2.0", []),  # it acts within a pass
        ("--rows untrained_poh --R 8 --test-R 9 --tolerance 0.1 --rest 0.2 --reinject on", []),
        (
            "--rows looped_solver --R 8 --test-R 20 --tolerance 0.1 --lr 3e-4 --validate-every 40 --test 7",
            ["--lr, --R, --test-R, --tolerance do nothing: looped_solver has options of its own"],
        ),
        ("--rows poh_solver,random --quick --T 2", ["--T does nothing: poh_solver has options of its own"]),
        ("--preset solve --rows baseline", []),
        ("--preset solve --rows looped_baseline", []),  # what the preset says for other rows, nobody asked for
        ("--preset solve --rows looped_baseline --residual rezero", ["--residual does nothing: there is no PoH row"]),
    ],
)
def test_what_does_something_is_not_told_to_do_nothing(flags, notes):
    config = parse(*flags.split())
    found = config.ineffective()
    rate = [note for note in estimate.warnings_of(config, 400) if "warm-up" in note]
    assert bool(rate) == ("baseline" in config.rows and config.preset == "none")
    assert found == notes


# -- passes and sizes --------------------------------------------------------------------------------------------


def test_passes_grow_between_a_fifth_and_three_fifths_of_the_run():
    config = tiny(train_R=(4, 40), train_R_growth=100)
    spans = [config.pass_range(step, 1000) for step in range(1000)]
    assert spans[0] == spans[199] == (4, 40) and spans[400] == (4, 70) and spans[600] == spans[999] == (4, 100)
    assert all(a <= b for a, b in itertools.pairwise(spans))
    assert tiny(train_R=(4, 40)).mean_passes() == 22
    assert config.mean_passes() == pytest.approx((4 + (0.2 * 40 + 0.4 * 70 + 0.4 * 100)) / 2, abs=0.5)


def test_passes_by_the_logarithmic_law():
    config = tiny(**MOVES, train_R=(4, 120), train_R_draw="log", batch_size=2, min_path=0.3)
    runs = [draw(7, step, (5, 12), (4, 120), "log")[1] for step in range(20_000)]
    assert min(runs) == 4 and max(runs) == 120
    for low, high in ((4, 7), (8, 15), (16, 31), (32, 63)):  # of every doubling, as much
        share = sum(low <= run <= high for run in runs) / len(runs)
        assert share == pytest.approx(math.log(2) / math.log(121 / 4), abs=0.02)
    assert config.mean_passes() == pytest.approx(sum(runs) / len(runs), rel=0.02)
    assert {draw(7, step, (5, 12), (6, 6), "log")[1] for step in range(200)} == {6}
    drawn = [step.passes for step in make_data(config, 7).batches.run(0, 50)]
    assert drawn == runs[:50]
    assert drawn == [
        step.passes for step in FixedBatches(sample_tasks(2, 3), 1, 7, passes=(4, 120), law="log").run(0, 50)
    ]
    # Mazes, sides and ends are those of the uniform law.
    uniform = dataclasses.replace(config, train_R_draw="uniform")
    pairs = zip(make_data(config, 7).batches.run(0, 5), make_data(uniform, 7).batches.run(0, 5), strict=True)
    assert all(torch.equal(a.batch.path, b.batch.path) for a, b in pairs)


def test_sizes_grow_in_the_same_way_and_the_mazes_with_them():
    config = tiny(
        **MOVES, train_sizes=(3, 4), train_sizes_growth=8, epochs=10, steps_per_epoch=10, batch_size=2, min_path=0.3
    )
    config.check()
    spans = [config.size_range_at(step, 100) for step in range(100)]
    assert spans[0] == spans[20] == (3, 4) and spans[40] == (3, 6) and spans[60] == spans[99] == (3, 8)
    assert config.size_range == (3, 8)
    batches = make_data(config, 7).batches
    sizes = [step.batch.mazes.height for step in batches.run(0, 100)]
    assert sizes == [batches.side(step) for step in range(100)]
    assert max(sizes[:20]) == 4 and max(sizes[60:]) == 8 and all(a <= b[1] for a, b in zip(sizes, spans, strict=True))
    steady = dataclasses.replace(config, train_sizes=(3, 8), train_sizes_growth=None)
    assert sizes[60:] == [tasks.mazes.height for tasks, *_ in make_data(steady, 7).batches.run(60, 100)]


def test_each_step_draws_its_passes_and_its_size_by_itself():
    config = tiny(**MOVES, train_R=(3, 6), train_sizes=(3, 5), batch_size=2, min_path=0.3)
    batches = make_data(config, 7).batches
    runs = [step.passes for step in batches.run(0, 200)]
    assert set(runs) == {3, 4, 5, 6}
    fixed = FixedBatches(sample_tasks(2, 3), 1, 7, passes=(3, 6))
    assert runs == [step.passes for step in fixed.run(0, 200)]  # a function of the seed and the step
    assert runs != [step.passes for step in make_data(config, 8).batches.run(0, 200)]
    sizes = [step.batch.mazes.height for step in batches.run(0, 40)]
    assert sizes == [draw(7, step, (3, 5), (9, 99))[0] for step in range(40)] and set(sizes) == {3, 4, 5}
    for tasks, *_ in batches.run(0, 20):
        assert int(tasks.length.min()) >= config.min_path_at(tasks.mazes.height)


def test_with_all_cells_supervised_start_and_goal_are_any_cells_and_no_test_maze_is_met():
    config = tiny(**MOVES, supervision="all", train_sizes=(2, 3), maze_size=3, min_path=0.3, test=60, batch_size=50)
    data = make_data(config, 1)
    lengths, rejected = set(), 0
    for step in range(30):
        tasks, _, left_out = data.batches.draw(step)
        again, *_ = data.batches.draw(step)
        assert torch.equal(tasks.start, again.start) and torch.equal(tasks.mazes.passages, again.mazes.passages)
        assert not torch.isin(tasks.keys(), data.test.keys()).any()
        assert tasks.mazes.height == 3 or left_out == 0
        lengths |= set(tasks.length.tolist())
        rejected += left_out
        walked = tasks.mazes.distances(tasks.goal).gather(1, tasks.start[:, None])[:, 0] + 1
        assert torch.equal(walked.long(), tasks.length)
    assert rejected > 50 and {1, 2, 3} <= lengths


@pytest.mark.parametrize(
    "run, grad, states, expected",
    [
        (30, 12, 3, Passes(30, (22, 26, 30), 4)),
        (30, 12, 1, Passes(30, (30,), 12)),
        (30, "all", 1, Passes(30, (30,))),
        (5, 12, 2, Passes(5, (3, 5))),
        (10, 5, 2, Passes(10, (8, 10), 3)),
        (3, 2, 5, Passes(3, (2, 3), 1)),
        (7, "all", 7, Passes(7, (1, 2, 3, 4, 5, 6, 7))),
    ],
)
def test_states_are_spread_over_the_passes_with_gradients(run, grad, states, expected):
    assert step_passes(tiny(grad_passes=grad, deep_supervision=states), run, True) == expected
    assert step_passes(tiny(grad_passes=grad, deep_supervision=states), run, False) == Passes(run, (run,), None, False)


# -- its planners beside others -----------------------------------------------------------------------------------


def test_solver_rows_follow_the_recipe_whatever_the_other_flags_say():
    config = parse(
        "--rows",
        "poh,poh_solver,looped_solver",
        "--lr",
        "3e-4",
        "--dropout",
        "0.3",
        "--seed",
        "7",
        "--test",
        "50",
        "--state-noise",
        "0.5",
    )
    rows = {row.model: row for row in planned_rows(config)}
    assert [(row.model, row.kind, row.trained) for row in rows.values()] == [
        ("poh", "poh", True),
        ("looped_solver", "looped_baseline", True),
        ("poh_solver", "poh", True),
    ]
    recipe = dataclasses.replace(
        solve(preset="solve"), seed=7, test=50, min_path=config.min_path, output=config.output, algorithm="dfs"
    )
    for name, kind in SOLVERS.items():
        assert rows[name].config == recipe and rows[name].run == config
        assert rows[name].options == planner_options(kind, recipe)
        assert rows[name].precision("bfloat16") == "float32"
    assert rows["poh"].run is None and rows["poh"].config.lr == 3e-4 and rows["poh"].precision("bfloat16") == "bfloat16"
    asked = planned_rows(dataclasses.replace(config, precision="bfloat16"))
    assert {row.precision("bfloat16") for row in asked} == {"bfloat16"}
    walked = planned_rows(dataclasses.replace(config, decode="recondition"))
    assert {row.config.decode_used for row in walked} == {"recondition"}
    larger = solver_config(dataclasses.replace(config, maze_size=24))
    assert (larger.R, larger.maze_size, larger.size_range) == (4 * 220, 24, (5, 12))


def test_solvers_are_tested_on_the_mazes_of_the_run_and_trained_on_none_of_them():
    config = tiny(maze_size=3, train=60, test=60, min_path=0.3, rows=("baseline", "poh_solver"))  # 192 mazes exist
    row = planned_rows(config)[1]
    row = dataclasses.replace(row, config=dataclasses.replace(row.config, train_sizes=(3, 3), epochs=1))
    run = make_data(config, 3)
    assert trial.data_of(planned_rows(config)[0], 3, run) is run
    for data in (trial.data_of(row, 3, run), trial.data_of(row, 3)):  # in this process, and in another one
        assert torch.equal(data.test.keys(), run.test.keys()) and torch.equal(data.test.start, run.test.start)
        assert data.test_walls is data.test.mazes
        rejected = 0
        for batch, _, left_out in data.batches.run(0, 10):
            assert not torch.isin(batch.keys(), run.test.keys()).any()
            rejected += left_out
        assert rejected > 0
    assert not torch.equal(make_data(row.config, 3).test.keys(), run.test.keys())


def test_the_memory_of_solver_rows_is_that_of_their_recipe():
    [row] = planned_rows(tiny(batch_size=1, rows=("looped_solver",)))  # passes with gradients: 12; sides up to 12
    needed = estimate.training_memory(row.planner, 12, 32, device=CPU, precision="float32", passes=12)
    kept, skipped = estimate.without_misfits([row], CPU, "float32", available=needed)
    assert kept == [] and f"needs about {estimate.describe_bytes(needed)}, " in skipped[""]
    assert "(batches of 32, by its recipe; --rows can leave it out)" in skipped[""]
    assert estimate.without_misfits([row], CPU, "float32", available=2 * needed) == ([row], {})


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--preset", "solve", "--rows", "poh_solver"],
            "--rows poh_solver contradicts --preset solve: .* row poh again",
        ),
        (["--preset", "solve", "--rows", "poh,looped_solver"], "it would be the row looped_baseline again"),
    ],
)
def test_solver_rows_that_would_be_others_again_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse(*flags)
    with pytest.raises(ConfigError, match=r"--rows looped_solver: only in run_12x12_8m_benchmark\.py"):
        parse("--models", "tiny", "--rows", "looped_solver", program=ScalingBenchmarkConfig)


def test_solvers_are_left_out_where_they_would_answer_nothing():
    rows = ("poh", "baseline", "poh_solver")
    for changes, why in (
        ({"protocol": "as-published"}, "the row poh_solver is left out with --protocol as-published"),
        (
            {"protocol": "as-published", "quick": True, "rows": ("random", *SOLVERS)},
            "the rows looped_solver and poh_solver are left out with --protocol as-published",
        ),
        ({"protocol": "as-published", "quick": True, "rows": QUICK_ROWS}, None),  # not asked for
        ({"ablate": True, "quick": True}, None),
        ({"ablation": True, "quick": True}, None),
    ):
        config = tiny(**{"rows": rows if "protocol" in changes else QUICK_ROWS, "depth": 2, **changes})
        config.check()
        assert not set(config.row_names) & set(SOLVERS)
        assert [note for note in config.ineffective() if "left out" in note] == ([why] if why else [])


def test_the_quick_preset_shows_a_planner_that_solves(tmp_path, capsys):
    config = parse("--quick")
    assert config.row_names == (
        "random",
        "untrained_baseline",
        "untrained_poh",
        "baseline",
        "poh",
        "looped_solver",
        "poh_solver",
    )
    flags = [
        "--quick",
        "--test",
        "6",
        "--train",
        "8",
        "--epochs",
        "1",
        "--maze-size",
        "4",
        "--d-model",
        "64",
        "--d-ff",
        "64",
        "--device",
        "cpu",
        "--output",
        str(tmp_path),
    ]
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"epochs": 1, "steps_per_epoch": 20, "train_sizes": (3, 4)}.items():
            patched.setitem(presets.SOLVERS_QUICK, name, value)
        assert cli.main(Benchmark12x12Config, flags) == 0
    results = Results.load(tmp_path / "results.json")
    rows = {row.model: row for row in results.rows if row.trained}
    assert list(rows) == ["baseline", "poh", "looped_solver", "poh_solver"]
    assert [rows[name].steps for name in rows] == [1, 1, 20, 20]
    assert {len(row.exact) for row in rows.values()} == {6}
    assert "0 of the training mazes" not in rows["baseline"].note
    assert rows["poh_solver"].note.endswith("rejected; trained in float32")
    assert len(results.routing) == 2 and not any("interventions" in record for record in results.routing)
    out = capsys.readouterr().out
    assert "looped solver" in out and "PoH solver" in out
