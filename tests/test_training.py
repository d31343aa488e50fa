"""The trainer and the command line, end to end on tiny mazes."""

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from poh_ext.report import Results
from poh_ext.tasks import sample_tasks
from poh_ext.training import benchmark, cli, device, interrupt, loop, protocol, trial
from poh_ext.training.config import Benchmark12x12Config, ConfigError, ScalingBenchmarkConfig
from poh_ext.training.evaluate import evaluate, evaluate_random, next_move_accuracy
from poh_ext.training.output import prepare_output
from poh_ext.training.planners import build_planner, planner_options
from poh_ext.training.schedule import learning_rate, peak_reached, warmup_warning

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "experiments" / "run_12x12_8m_benchmark.py"
TINY = {"train": 8, "test": 6, "epochs": 2, "maze_size": 5, "batch_size": 4, "d_model": 64, "n_heads": 4, "d_ff": 128,
        "depth": 1, "R": 2, "warmup_steps": 2, "device": "cpu", "precision": "float32"}
TINY_FLAGS = [part for name, value in TINY.items() for part in (f"--{name.replace('_', '-')}", str(value))]
needs_tyro = pytest.mark.skipif(not pytest.importorskip("tyro"), reason="tyro")
pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(**changes) -> Benchmark12x12Config:
    return Benchmark12x12Config(**{**TINY, **changes})


def train(config, name="baseline", seed=3):
    data = protocol.make_data(config, seed)
    model = build_planner(name, config, seed=seed)
    return model, loop.train_planner(model, data.train, config, seed=seed, label=name), data


# -- schedule ---------------------------------------------------------------------------------------------------


def test_schedule_matches_its_closed_form():
    rates = [learning_rate(s, total_steps=100, peak=1e-3, warmup_steps=10) for s in range(100)]
    assert rates[:10] == pytest.approx([1e-4 * (s + 1) for s in range(10)])
    assert rates[9] == max(rates) == 1e-3
    assert rates[99] == pytest.approx(1e-4)
    assert rates[54] == pytest.approx(1e-3 * 0.55)  # half of the decay: midway between the peak and a tenth
    assert all(a > b for a, b in itertools.pairwise(rates[9:]))


def test_schedule_without_warmup_decays_from_the_first_step():
    rates = [learning_rate(s, total_steps=4, peak=1.0, warmup_steps=0) for s in range(4)]
    assert rates == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * (s + 1) / 4)) for s in range(4)])


def test_a_warmup_that_never_ends_is_told():
    text = warmup_warning(total_steps=390, peak=1e-3, warmup_steps=500)
    assert "500" in text and "390" in text and "0.00078" in text
    assert peak_reached(total_steps=390, peak=1e-3, warmup_steps=500) == pytest.approx(7.8e-4)
    assert learning_rate(389, total_steps=390, peak=1e-3, warmup_steps=500) == pytest.approx(7.8e-4)
    assert warmup_warning(total_steps=500, peak=1e-3, warmup_steps=500) is None


# -- options ----------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_document():
    small, scaling = Benchmark12x12Config(), ScalingBenchmarkConfig()
    expected = {"lr": (1e-3, 1e-3), "label_smoothing": (0.1, 0.1), "warmup_steps": (500, 2000),
                "multi_horizon": (1, 3), "validity_mask": (False, False), "route_ent_weight": (0.0, 5e-4),
                "ent_anneal": (False, False), "maze_enc": (False, True), "test": (1000, 1000)}
    for name, values in expected.items():
        assert (getattr(small, name), getattr(scaling, name)) == values, name


@needs_tyro
def test_both_usage_examples_parse():
    basic = ("--train 400 --test 80 --epochs 30 --R 4 --T 4 --cpu --lr 1e-3 --label-smoothing 0.1 --warmup-steps 500 "
             "--multi-horizon 1 --validity-mask --output experiments/results/benchmark_12x12_8m")
    full = basic.replace("--validity-mask", "--maze-enc --validity-mask --route-ent-weight 0")
    a, b = (cli.parse(Benchmark12x12Config, text.split()) for text in (basic, full))
    assert a == Benchmark12x12Config(test=80, cpu=True, validity_mask=True)
    assert b == dataclasses.replace(a, maze_enc=True)
    for config in (a, b):
        config.validate()


@needs_tyro
def test_quick_changes_defaults_and_explicit_flags_win():
    quick = cli.parse(Benchmark12x12Config, ["--quick", "--epochs", "77"])
    preset = Benchmark12x12Config.quick_defaults
    assert quick.quick and quick.epochs == 77 and quick.d_model == preset["d_model"]
    quick.validate()
    assert set(preset) <= {f.name for f in dataclasses.fields(Benchmark12x12Config)}


@needs_tyro
def test_help_tells_default_and_unit_of_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(Benchmark12x12Config, ["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Benchmark12x12Config):
        assert f"--{field.name.replace('_', '-')}" in text, field.name
    assert text.count("(default:") == len(dataclasses.fields(Benchmark12x12Config))


@pytest.mark.parametrize("changes, words", [
    ({"train": 0}, "--train 0: must be at least 1"),
    ({"test": 0}, "--test 0"),
    ({"epochs": 0}, "--epochs 0"),
    ({"R": 0}, "--R 0"),
    ({"T": 0}, "--T 0"),
    ({"lr": 0.0}, "--lr 0.0"),
    ({"lr": math.nan}, "--lr nan"),
    ({"label_smoothing": 1.5}, "--label-smoothing 1.5: must be from 0 to 1"),
    ({"label_smoothing": -0.1}, "--label-smoothing -0.1"),
    ({"warmup_steps": -1}, "--warmup-steps -1"),
    ({"dropout": 1.0}, "--dropout 1.0: must be at least 0 and below 1"),
    ({"multi_horizon": 0}, "--multi-horizon 0"),
    ({"route_ent_weight": -1.0}, "--route-ent-weight -1.0"),
    ({"seeds": 0}, "--seeds 0"),
    ({"seeds": 10_001}, "--seeds 10001"),
    ({"seed": -1}, "--seed -1"),
    ({"batch_size": 0}, "--batch-size 0"),
    ({"validate_every": -1}, "--validate-every -1: must be at least 0"),
    ({"validation": 0}, "--validation 0: must be at least 1"),
    ({"maze_size": 1}, "--maze-size 1"),
    ({"min_path": 1.5}, "--min-path 1.5"),
    ({"n_heads": 5}, "--n-heads 5: must divide --d-model 64"),
    ({"d_model": 8, "n_heads": 1}, "--d-model 8: no PoH planner"),
    ({"rows": ()}, "--rows"),
    ({"rows": ("transformer",)}, "--rows transformer"),
    ({"protocol": "other"}, "--protocol other"),
    ({"decode": "beam"}, "--decode beam"),
    ({"algorithm": "maze"}, "--algorithm maze"),
    ({"cpu": True, "device": "cuda"}, "--cpu contradicts --device cuda"),
    ({"protocol": "as-published", "algorithm": "wilson"}, "contradicts --protocol as-published"),
])
def test_bad_options_are_named_before_any_work(changes, words, tmp_path):
    with pytest.raises(ConfigError) as error:
        benchmark.run_benchmark(tiny(output=tmp_path / "out", **changes))
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_absent_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"--device cuda: torch .* here: .*cpu"):
        device.choose_device(tiny(device="cuda"))


def test_device_order_is_cuda_mps_cpu(monkeypatch):
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert device.choose_device(tiny(device="auto")).type == expected
        assert device.choose_device(tiny(device="auto", cpu=True)).type == "cpu"


def test_precision_follows_the_hardware(monkeypatch):
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(device, "cpu_has_bfloat16", lambda there=native: there)
        assert device.choose_precision(tiny(precision="auto"), torch.device("cpu")) == expected
    assert device.choose_precision(tiny(precision="bfloat16"), torch.device("cpu")) == "bfloat16"


def test_options_that_do_nothing_are_told():
    assert "--ent-anneal" in tiny(ent_anneal=True).notes()[0]
    assert "--route-ent-weight" in tiny(route_ent_weight=0.1, rows=("baseline",)).notes()[0]
    assert tiny(route_ent_weight=0.1, ent_anneal=True).notes() == []
    assert "--validation does nothing without --validate-every" in tiny(validation=7).notes()[0]
    assert "--validate-every does nothing" in tiny(validate_every=1, rows=("random", "untrained_poh")).notes()[0]
    assert "only the end of the training" in tiny(validate_every=50, epochs=49).notes()[0]
    assert tiny(validate_every=1, validation=7).notes() == []


# -- output folder ----------------------------------------------------------------------------------------------


def test_an_output_folder_is_never_overwritten_silently(tmp_path):
    folder = tmp_path / "a" / "run"
    assert prepare_output(folder, overwrite=False) == folder
    assert prepare_output(folder, overwrite=False) == folder  # empty: taken
    (folder / "results.json").write_text("old")
    (folder / "notes.txt").write_text("mine")
    assert prepare_output(folder, overwrite=False) == tmp_path / "a" / "run-2"
    assert (folder / "results.json").read_text() == "old"
    assert prepare_output(folder, overwrite=True) == folder
    assert sorted(p.name for p in folder.iterdir()) == ["notes.txt"]


def test_an_unwritable_output_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/poh")):
        with pytest.raises(ConfigError, match=r"--output .*cannot be written"):
            prepare_output(folder, overwrite=False)
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare_output(tmp_path / "file", overwrite=True)


# -- protocols --------------------------------------------------------------------------------------------------


def test_default_protocol_gives_exactly_what_was_asked_and_no_maze_twice():
    config = tiny(train=100, test=150, maze_size=4, min_path=0.3)
    data = protocol.make_data(config, seed=1)
    assert len(data.train) == 100 and len(data.test) == 150
    assert not torch.isin(data.test.keys(), data.train.keys()).any()
    for tasks in (data.train, data.test):
        assert int(tasks.length.min()) >= config.min_path_cells == 5
    again = protocol.make_data(config, seed=1)
    assert torch.equal(again.test.path, data.test.path) and torch.equal(again.train.start, data.train.start)


def test_mazes_known_from_training_are_replaced():
    config = tiny(train=60, test=60, maze_size=3, min_path=0.3)  # 192 mazes exist: the two draws must collide
    alone = sample_tasks(60, 3, min_path=3, seed=protocol.TEST_SEED_OFFSET)
    data = protocol.make_data(config, seed=0)
    assert torch.isin(alone.keys(), data.train.keys()).any()
    assert len(data.test) == 60
    assert not torch.isin(data.test.keys(), data.train.keys()).any()


def test_too_few_different_mazes_is_an_error():
    with pytest.raises(ConfigError, match=r"--test 5 with --maze-size 2"):
        protocol.make_data(tiny(train=50, test=5, maze_size=2, min_path=0.3), seed=0)


def test_an_impossible_path_length_is_an_error():
    with pytest.raises(ConfigError, match="--min-path"):
        protocol.make_data(tiny(maze_size=8, min_path=1.0, train=200), seed=0)


def test_as_published_filters_three_times_as_many_candidates():
    config = tiny(protocol="as-published", train=100, test=50, maze_size=12)
    data = protocol.make_data(config, seed=42)
    assert 0 < len(data.train) <= 100 and 0 < len(data.test) <= 50
    assert int(data.train.length.min()) >= 51
    assert config.decode_used == "recondition" and tiny().decode_used == "table"
    assert planner_options("baseline", config)["cell_features"] == 1


def test_as_published_planners_cannot_see_walls():
    config = tiny(protocol="as-published", maze_enc=True)
    tasks = sample_tasks(2, 5, min_path=5, seed=0)
    view = protocol.planner_view(tasks.mazes, config)
    assert torch.equal(view.passages[0], view.passages[1])
    assert not torch.equal(tasks.mazes.passages[0], tasks.mazes.passages[1])
    assert protocol.planner_view(tasks.mazes, tiny()) is tasks.mazes


# -- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["baseline", "poh"])
def test_a_small_set_is_learned(name):
    config = tiny(epochs=100, lr=5e-3, warmup_steps=10, label_smoothing=0.0, validity_mask=True, batch_size=8)
    model, training, data = train(config, name)
    first, last = training.curve[0]["loss"], training.curve[-1]["loss"]
    assert last < 0.5 * first
    assert training.steps == config.total_steps(8) == 100
    outcome = evaluate(model, data.train)
    assert outcome.moves_correct > 0.9 * outcome.moves_total


def test_the_same_seed_trains_the_same_weights():
    runs = [train(tiny(), "poh")[0].state_dict() for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values(), strict=True))
    other = train(tiny(), "poh", seed=4)[0].state_dict()
    assert any(not torch.equal(a, b) for a, b in zip(runs[0].values(), other.values(), strict=True))


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train(tiny(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_a_diverged_run_says_so(tmp_path, capsys):
    code = benchmark.run_benchmark(tiny(lr=1e30, warmup_steps=0, epochs=6, output=tmp_path, rows=("baseline",)))
    assert code == 1 and "try a lower --lr" in capsys.readouterr().err
    assert Results.load(tmp_path / "results.json").status == "interrupted"


@pytest.mark.parametrize("changes", [
    {"label_smoothing": 0.3}, {"dropout": 0.3}, {"multi_horizon": 2}, {"validity_mask": True}, {"lr": 2e-2},
    {"warmup_steps": 100}, {"maze_enc": True}, {"R": 3}, {"route_ent_weight": 0.5}, {"batch_size": 3}, {"epochs": 3},
    {"train": 9}, {"min_path": 0.5}, {"algorithm": "wilson"}, {"protocol": "as-published", "train": 20},
    {"precision": "bfloat16"},
], ids=lambda c: next(iter(c)))
def test_every_training_option_has_an_effect(changes):
    def losses(config):
        data = protocol.make_data(config, 3)
        model = build_planner("poh", config, seed=3)
        precision = device.choose_precision(config, torch.device("cpu"))
        training = loop.train_planner(model, data.train, config, seed=3, label="poh", precision=precision)
        return [point["loss"] for point in training.curve]

    base = {"epochs": 4, "lr": 1e-2}
    assert losses(tiny(**base)) != losses(tiny(**{**base, **changes}))


def test_T_decides_when_the_slow_router_runs():
    states = []
    for period in (1, 4):
        model, _, data = train(tiny(R=4, T=period, epochs=3, lr=1e-2), "poh")
        states.append(model(data.test.mazes, data.test.start, data.test.goal))
    assert not torch.equal(*states)


def test_entropy_weight_lowers_entropy_and_annealing_softens_it():
    runs = [train(tiny(epochs=30, lr=1e-2, route_ent_weight=weight, ent_anneal=anneal), "poh")[1]
            for weight, anneal in ((0.0, False), (5.0, False), (5.0, True))]
    entropies = [run.curve[-1]["routing_entropy"] for run in runs]
    assert entropies[1] < entropies[0]
    assert entropies[1] != entropies[2]


def test_maze_enc_adds_parameters_and_looped_baseline_does_not():
    counts = {key: sum(p.numel() for p in build_planner(name, tiny(maze_enc=enc), seed=0).parameters())
              for key, (name, enc) in {"plain": ("baseline", False), "enc": ("baseline", True),
                                       "looped": ("looped_baseline", False)}.items()}
    assert counts["enc"] > counts["plain"] == counts["looped"]
    assert build_planner("looped_baseline", tiny(R=3), seed=0).loops == 3


# -- evaluation -------------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """Scores the true next cell of each path highest."""

    def __init__(self, tasks, size):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        distance = tasks.mazes.distances(tasks.goal).float()
        neighbors = tasks.mazes.neighbors()
        near = distance.gather(1, neighbors.clamp(min=0).flatten(1)).view_as(neighbors)
        self.table = (-near).masked_fill(neighbors < 0, -torch.inf)
        self.calls = []

    def policy(self, mazes, start, goal):
        first = sum(self.calls)
        self.calls.append(len(start))
        return self.table[first:first + len(start)] + self.weight


def test_a_perfect_policy_scores_full_marks_and_its_opposite_none():
    tasks = sample_tasks(10, 6, min_path=8, seed=5)
    oracle = Oracle(tasks, 6)
    outcome = evaluate(oracle, tasks, batch_size=4)
    assert oracle.calls == [4, 4, 2]  # one forward pass per batch
    assert outcome.reached.all() and outcome.optimal.all()
    assert outcome.moves_correct == outcome.moves_total == int((tasks.length - 1).sum())
    assert outcome.paths == [[c for c in path if c >= 0] for path in tasks.path.tolist()]
    correct, total = next_move_accuracy(-oracle.table, tasks)
    assert correct < 0.5 * total  # in a corridor the opposite is behind; a dead end has no other move


def test_decode_recondition_runs_the_network_from_each_position():
    config = tiny(maze_size=6)
    tasks = sample_tasks(4, 6, min_path=8, seed=5)
    model = build_planner("baseline", config, seed=0)
    calls = []
    policy = model.policy
    model.policy = lambda mazes, start, goal: (calls.append(start.clone()), policy(mazes, start, goal))[1]
    evaluate(model, tasks, decode="recondition")
    assert len(calls) > 3 and not torch.equal(calls[1], calls[2])


def test_the_random_policy_is_seeded():
    tasks = sample_tasks(50, 6, min_path=8, seed=5)
    a, b, c = (evaluate_random(tasks, seed) for seed in (0, 0, 1))
    assert a.paths == b.paths != c.paths


# -- whole runs -------------------------------------------------------------------------------------------------


@needs_tyro
def test_a_run_end_to_end_and_again(tmp_path, capsys):
    flags = [*TINY_FLAGS, "--looped-baseline", "--seeds", "2", "--output", str(tmp_path / "run")]
    assert cli.main(Benchmark12x12Config, flags) == 0
    out = capsys.readouterr().out
    assert "GFLOP" in out and "results.json" in out
    results = Results.load(tmp_path / "run" / "results.json")
    assert results.status == "complete" and results.config["seeds"] == 2
    assert results.environment["precision"] == "float32" and results.environment["device"] == "cpu"
    names = [("random", False), ("baseline", False), ("poh", False), ("baseline", True), ("poh", True),
             ("looped_baseline", True)]
    rows = [(row.model, row.trained, row.seed) for row in results.rows]
    assert rows == [(model, trained, seed) for seed in (42, 43) for model, trained in names]
    for row in results.rows:
        assert len(row.reached) == 6 and row.steps == (4 if row.trained else 0)
    assert (tmp_path / "run" / "report.md").exists() and list((tmp_path / "run").glob("*.png"))
    assert cli.main(Benchmark12x12Config, flags) == 0  # a numbered sibling, the same results
    assert "run-2" in capsys.readouterr().out
    again = Results.load(tmp_path / "run-2" / "results.json")
    for a, b in zip(results.rows, again.rows, strict=True):
        assert (a.reached, a.optimal, a.moves_correct, a.curve) == (b.reached, b.optimal, b.moves_correct, b.curve)
    assert cli.main(Benchmark12x12Config, [*flags, "--overwrite", "--seeds", "1", "--rows", "random"]) == 0
    assert len(Results.load(tmp_path / "run" / "results.json").rows) == 2


@needs_tyro
def test_as_published_run_reports_its_caveat(tmp_path):
    flags = [*TINY_FLAGS, "--protocol", "as-published", "--train", "20", "--test", "20", "--output", str(tmp_path)]
    assert cli.main(Benchmark12x12Config, flags) == 0
    results = Results.load(tmp_path / "results.json")
    assert results.protocol == "as-published"
    assert "all-open grid" in (tmp_path / "report.md").read_text()


def test_the_script_runs_from_a_checkout(tmp_path):
    done = subprocess.run([sys.executable, str(SCRIPT), *TINY_FLAGS, "--rows", "baseline", "--output", "run"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").exists()
    assert not any(c in done.stdout + done.stderr for c in "\r\x1b\b"), "control characters in a log"
    assert "left" in done.stderr and "lr" in done.stderr


@needs_tyro
def test_bad_input_is_one_line_and_code_2(tmp_path, capsys):
    assert cli.main(Benchmark12x12Config, ["--lr", "-1", "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "error: --lr -1.0: must be a finite number above 0\n"
    with pytest.raises(SystemExit) as stop:
        cli.main(Benchmark12x12Config, ["--lr", "fast"])
    assert stop.value.code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_finished(number, tmp_path, monkeypatch):
    calls = []

    def train_then_signal(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return loop.train_planner(*args, **kwargs)

    monkeypatch.setattr(trial, "train_planner", train_then_signal)
    assert benchmark.run_benchmark(tiny(output=tmp_path)) == 130
    results = Results.load(tmp_path / "results.json")
    assert results.status == "interrupted"
    assert [row.model for row in results.rows] == ["random", "baseline", "poh", "baseline"]
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "interrupted"


def test_a_second_signal_acts_at_once():
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background
    with interrupt.StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(interrupt.Interrupted, match="SIGINT"):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before
