"""The scaling benchmark: its command line, its plan, what does not fit, and going on after an interruption."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from poh_ext.models import parameter_count
from poh_ext.models.planners import PLANNERS
from poh_ext.results import CONTROLS, Results
from poh_ext.training import benchmark, cli, estimate, loop, run_folder, trial
from poh_ext.training.config import Benchmark12x12Config, ConfigError, ScalingBenchmarkConfig
from poh_ext.training.estimate import describe_seconds, without_misfits
from poh_ext.training.plan import planned_rows, planner_config
from tests.cases.training import build_planner
from tests.cases.training import tiny as tiny_12x12

pytest.importorskip("tyro")
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "parameter_scaling_benchmark.py"
CPU = torch.device("cpu")
EXAMPLE = """--maze-size 16 --train 1000 --test 100 --epochs 50
  --R 4 --T 4 --seed 42
  --lr 1e-3 --label-smoothing 0.1 --warmup-steps 2000
  --multi-horizon 3 --validity-mask
  --route-ent-weight 5e-4 --ent-anneal
  --output experiments/results/parameter_scaling_enhanced"""
pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")
small = functools.partial(tiny_12x12, maze_size=4)
tiny = functools.partial(
    ScalingBenchmarkConfig,
    train=8,
    test=6,
    epochs=2,
    maze_size=4,
    batch_size=4,
    R=2,
    warmup_steps=2,
    device="cpu",
    precision="float32",
    models=("tiny",),
)


def measured(row):
    """What a row says about the planner, without the times it took."""
    return (
        row.key,
        row.seed,
        row.params,
        row.steps,
        row.reached,
        row.optimal,
        row.moves_correct,
        row.moves_total,
        row.curve,
        row.paths,
        row.config,
    )


# -- command line ------------------------------------------------------------------------------------------------


def test_the_third_usage_example_parses_to_the_defaults_and_what_it_names():
    config = cli.parse(ScalingBenchmarkConfig, EXAMPLE.split())
    config.check()
    assert config == ScalingBenchmarkConfig(
        test=100, validity_mask=True, ent_anneal=True, output=Path("experiments/results/parameter_scaling_enhanced")
    )
    assert config.maze_enc and config.multi_horizon == 3 and config.epochs == 50 and config.warmup_steps == 2000


@pytest.mark.parametrize(
    "words",
    [
        ["--models", "small,tiny"],
        ["--models", "tiny", "small"],
        ["--models=tiny,small"],
        ["--models", "tiny,", "small", "--lr", "1e-3"],
    ],
)
def test_lists_are_read_with_commas_and_with_spaces(words):
    assert list(cli.parse(ScalingBenchmarkConfig, words).shapes) == ["tiny", "small"]
    rows = [word.replace("--models", "--rows").replace("small", "poh").replace("tiny", "baseline") for word in words]
    for config_type in (ScalingBenchmarkConfig, Benchmark12x12Config):
        assert cli.parse(config_type, rows).row_names == ("baseline", "poh")


def test_models_are_sizes_and_rows_are_rows(capsys):
    for config_type, words in (
        (ScalingBenchmarkConfig, ["--models", "baseline"]),
        (ScalingBenchmarkConfig, ["--d-model", "64"]),
        (Benchmark12x12Config, ["--models", "tiny"]),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.parse(config_type, words)
        assert stop.value.code == 2
    with pytest.raises(ConfigError, match="--models: name at least one of tiny, small"):
        tiny(models=()).check()


def test_commas_elsewhere_are_left_alone():
    words = ["--models", "tiny,small", "--output", "a,b"]
    assert cli.split_lists(ScalingBenchmarkConfig, words) == ["--models", "tiny", "small", "--output", "a,b"]
    assert cli.split_lists(ScalingBenchmarkConfig, ["--train_R=3,9"]) == ["--train_R", "3", "9"]


def test_every_size_has_baseline_and_poh_of_equal_size_and_one_random_policy():
    rows = planned_rows(ScalingBenchmarkConfig(protocol="as-published"))
    assert [row.key for row in rows].count(("", "random", False)) == 1
    counts = {}
    assert [row.key for row in rows[:3]] == [("", name, False) for name in CONTROLS]
    for row in rows[3:]:
        counts[row.scale, row.model] = parameter_count(PLANNERS[row.planner.kind], 16, **row.options)
    assert counts == {
        ("tiny", "baseline"): 533_568,
        ("tiny", "poh"): 561_921,
        ("small", "baseline"): 2_638_272,
        ("small", "poh"): 2_667_605,
        ("medium", "baseline"): 13_142_464,
        ("medium", "poh"): 13_065_777,
        ("large", "baseline"): 43_324_096,
        ("large", "poh"): 42_810_785,
        ("xl", "baseline"): 101_830_592,
        ("xl", "poh"): 111_935_985,
    }
    for scale in ("tiny", "xl"):
        keys = {row.key for row in rows if row.scale == scale}
        assert keys == {(scale, model, trained) for model in ("baseline", "poh") for trained in (True, False)}


# -- plan --------------------------------------------------------------------------------------------------------


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark._Run, "run_rows", lambda *_: pytest.fail("a row was run"))
    words = [
        "--models",
        "tiny",
        "--maze-size",
        "4",
        "--train",
        "8",
        "--test",
        "6",
        "--dry-run",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "run"),
    ]
    assert cli.main(ScalingBenchmarkConfig, words) == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    line = next(line for line in text.splitlines() if line.strip().startswith("tiny   poh"))
    params = parameter_count(build_planner("poh", tiny(), seed=0, scale="tiny"))
    for part in (f"{params:,}", "MiB", " 50 "):
        assert part in line
    assert "in all" in text and "d_model 108" in text and "longer than the run" in text
    assert "each size" not in text


def test_the_plan_says_what_each_size_costs(capsys, monkeypatch):
    seconds = {"tiny": 2.0, "small": 30.0}  # per maze
    monkeypatch.setattr(estimate, "seconds_per_maze", lambda row, *_, **__: seconds[row.scale])
    monkeypatch.setattr(estimate, "training_memory", lambda planner, *_, **__: planner.d_model << 20)
    words = [
        "--models",
        "tiny,small",
        "--maze-size",
        "4",
        "--train",
        "8",
        "--test",
        "6",
        "--epochs",
        "1",
        "--seeds",
        "3",
        "--no-routing-intervention",
        "--dry-run",
        "--device",
        "cpu",
        "--precision",
        "float32",
    ]
    assert cli.main(ScalingBenchmarkConfig, words) == 0
    text = capsys.readouterr().out
    # Two planners on 8 mazes, and a third of a step for each of 6 test mazes; PoH has as many passes at test.
    lines = [line.split() for line in text[text.index("each size") :].splitlines()[1:3]]
    for line, (scale, width) in zip(lines, (("tiny", 128), ("small", 256)), strict=True):
        each = describe_seconds(2 * 3 * seconds[scale] * (8 + 6 / 3))
        assert line == [scale, *f"{each}, {width} MiB of memory at most".split()]
    assert f"about {describe_seconds(60 * (2.0 + 30.0))} in all" in text


def test_timing_leaves_the_run_as_it_is():
    config = small()
    row = planned_rows(dataclasses.replace(config, rows=("poh",)))[0]
    data = benchmark.make_data(config, 1)
    before = build_planner("poh", config, seed=0).state_dict()
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    assert estimate.seconds_per_maze(row, data.train, device=CPU, precision="float32", check=lambda: None) > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    after = build_planner("poh", config, seed=0).state_dict()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), after.values(), strict=True))


@pytest.mark.parametrize(
    "seconds, text",
    [(0.31, "0.31 s"), (42, "42 s"), (190, "3 min 10 s"), (3600, "1 h"), (19200, "5 h 20 min"), (183600, "2 d 3 h")],
)
def test_durations_are_readable(seconds, text):
    assert estimate.describe_seconds(seconds) == text


# -- memory ------------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_planner_the_batch_and_the_precision():
    def needed(batch=8, precision="float32", size=8, name="poh", scale="tiny"):
        planner = planner_config(name, tiny(maze_size=size, models=(scale,)), scale)
        return estimate.training_memory(planner, size, batch, device=CPU, precision=precision)

    assert needed() < needed(batch=32) < needed(batch=32, size=16)
    assert needed(precision="bfloat16") < needed()
    assert needed(name="baseline") < needed() < needed(scale="small")
    xl = planner_config("poh", tiny(maze_size=8, models=("xl",)), "xl")
    parameters = parameter_count(PLANNERS[xl.kind], 8, **xl.keywords())
    assert needed(batch=1, scale="xl") > 16 * parameters > 16 * 10**8


def test_memory_counts_what_autograd_keeps():
    config = tiny(maze_size=8)
    batch = benchmark.make_data(dataclasses.replace(config, train=16), 1).train
    model = build_planner("poh", config, seed=0, scale="tiny")
    weights = {p.data_ptr() for p in model.parameters()}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        model.hidden(batch.mazes, batch.start, batch.goal)
    real = sum(t.untyped_storage().nbytes() for p, t in kept.items() if p not in weights)
    told = estimate.training_memory(planner_config("poh", config, "tiny"), 8, 16, device=CPU, precision="float32")
    told -= 16 * parameter_count(model) + estimate.FIXED
    assert real <= told <= 1.8 * real


def test_available_memory_reads_the_kernel_and_the_container(tmp_path, monkeypatch):
    meminfo, cgroups = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal:  100 kB\nMemAvailable:   64 kB\n")
    cgroups.mkdir()
    assert estimate.available_memory(CPU, meminfo=meminfo, cgroups=cgroups) == 64 * 1024
    (cgroups / "memory.max").write_text("max\n")
    (cgroups / "memory.current").write_text("10\n")
    assert estimate.available_memory(CPU, meminfo=meminfo, cgroups=cgroups) == 64 * 1024
    (cgroups / "memory.max").write_text("5010\n")
    assert estimate.available_memory(CPU, meminfo=meminfo, cgroups=cgroups) == 5000
    (cgroups / "memory").mkdir()  # cgroups v1
    (cgroups / "memory/memory.limit_in_bytes").write_text("3000\n")
    (cgroups / "memory/memory.usage_in_bytes").write_text("1000\n")
    assert estimate.available_memory(CPU, meminfo=meminfo, cgroups=cgroups) == 2000
    assert estimate.available_memory(CPU, meminfo=tmp_path / "none", cgroups=tmp_path) > 2**20  # not Linux
    monkeypatch.delattr(os, "sysconf")  # Windows
    assert estimate.available_memory(CPU, meminfo=tmp_path / "none", cgroups=tmp_path) >= 2000


def test_a_size_that_does_not_fit_is_skipped_whole_with_the_estimate():
    config = tiny(models=("tiny", "small", "medium"), maze_size=8, batch_size=32, train=32)
    rows = planned_rows(config)
    kept, skipped = without_misfits(rows, CPU, "float32", available=2**40)
    assert kept == rows and skipped == {}
    # Enough for the baseline of this size, not for its PoH
    poh = estimate.training_memory(planner_config("poh", config, "medium"), 8, 32, device=CPU, precision="float32")
    kept, skipped = without_misfits(rows, CPU, "float32", available=poh)
    assert {row.scale for row in kept} == {"", "tiny", "small"}
    assert list(skipped) == ["medium"] and "poh: training needs about" in skipped["medium"]
    may = [estimate.describe_bytes(n) for n in (poh, int(0.9 * poh), poh)]
    assert "needs about {}, but only {} of the {} that are free may be used".format(*may) in skipped["medium"]


def test_a_run_says_what_it_skipped_before_it_trains(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("poh_ext.training.estimate.available_memory", lambda device: 340 << 20)
    config = tiny(models=("tiny", "medium"), output=tmp_path / "run")
    assert benchmark.run_benchmark(config) == 0
    text = capsys.readouterr().out
    assert text.index("skipped medium") < text.index("reached")
    results = Results.load(tmp_path / "run" / "results.json")
    assert {row.scale for row in results.rows} == {"", "tiny"} and "skipped medium" in results.warnings[0]
    monkeypatch.setattr("poh_ext.training.estimate.available_memory", lambda device: 1 << 20)
    with pytest.raises(ConfigError, match="no planner fits the memory: skipped tiny: baseline: training needs"):
        benchmark.run_benchmark(dataclasses.replace(config, output=tmp_path / "other"))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_going_on_with_less_memory_skips_nothing_that_was_trained(checkpoint, tmp_path, monkeypatch):
    config = small(output=tmp_path, rows=("baseline", "poh"))

    def free(amount):
        monkeypatch.setattr("poh_ext.training.estimate.available_memory", lambda device: amount)

    free(1 << 40)
    interrupted_run(config, monkeypatch, trainings=0 if checkpoint else 1)
    if checkpoint:
        left = tmp_path / "checkpoints" / "baseline-seed42" / "step-00000001.pt"
        left.parent.mkdir(parents=True)
        left.write_bytes(b"")
    free(1 << 20)
    with pytest.raises(ConfigError, match=r"its run trained the planners before; .* more memory than there is now: "):
        benchmark.run_benchmark(config)
    assert Results.load(tmp_path / "results.json").status == "interrupted"
    free(1 << 40)
    assert benchmark.run_benchmark(config) == 0
    free(1 << 20)  # too little for any training, and none is left
    assert benchmark.run_benchmark(dataclasses.replace(config, resume=True)) == 0
    assert sum(row.trained for row in Results.load(tmp_path / "results.json").rows) == 2


# -- interruption ------------------------------------------------------------------------------------------------


def interrupted_run(config, monkeypatch, trainings):
    """Run, and ask for a stop when so many trainings are done."""
    done = []

    def train(*args, check, **kwargs):
        if kwargs.get("quiet"):
            return loop.train_planner(*args, check=check, **kwargs)
        if len(done) == trainings:
            raise benchmark.Interrupted("SIGINT")
        done.append(1)
        return loop.train_planner(*args, check=check, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(trial, "train_planner", train)
        assert benchmark.run_benchmark(config) == 130
    return Results.load(config.output / "results.json")


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny, small])
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(make, tmp_path, monkeypatch, capsys):
    config = make(output=tmp_path / "run", seeds=2, multi_horizon=2, route_ent_weight=0.01)
    partial = interrupted_run(config, monkeypatch, trainings=1)
    assert partial.status == "interrupted" and sum(row.trained for row in partial.rows) == 1
    capsys.readouterr()
    assert benchmark.run_benchmark(config) == 0
    text = capsys.readouterr().out
    assert "going on with the interrupted run" in text and "finished" in text
    assert not (tmp_path / "run-2").exists()
    whole = Results.load(config.output / "results.json")
    assert whole.status == "complete" and whole.created == partial.created
    assert whole.rows[: len(partial.rows)] == partial.rows  # kept, their times too
    assert benchmark.run_benchmark(dataclasses.replace(config, output=tmp_path / "other")) == 0
    straight = Results.load(tmp_path / "other" / "results.json")
    assert list(map(measured, whole.rows)) == list(map(measured, straight.rows))
    assert (tmp_path / "run" / "mazes.png").exists()
    # Complete: the same command is a new run, --resume has nothing left to do
    assert benchmark.run_benchmark(dataclasses.replace(config, resume=True)) == 0
    assert "is complete" in capsys.readouterr().out
    assert Results.load(config.output / "results.json").rows == whole.rows


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"lr": 2e-3}, "--lr was 0.001, not 0.002"),
        ({"seeds": 2}, "--seeds was 1, not 2"),
        ({"models": ("tiny", "small")}, "--models was tiny, not tiny small"),
        ({"precision": "bfloat16"}, "precision was float32, not bfloat16"),
        ({"maze_size": 5}, "it is 'Plain"),
    ],
)
def test_other_options_are_another_run_and_the_first_difference_is_named(changes, words, tmp_path, monkeypatch, capsys):
    config = tiny(output=tmp_path / "run", rows=("random", "untrained_poh", "baseline"))
    before = interrupted_run(config, monkeypatch, trainings=0)
    other = dataclasses.replace(config, **changes)
    with pytest.raises(ConfigError) as error:
        benchmark.run_benchmark(dataclasses.replace(other, resume=True))
    assert words in str(error.value) and "--resume" in str(error.value)
    monkeypatch.setattr(benchmark._Run, "run_rows", lambda run: None)  # where it writes is what counts here
    assert benchmark.run_benchmark(other) == 0
    assert words in capsys.readouterr().out
    assert (tmp_path / "run-2" / "results.json").exists()
    assert Results.load(tmp_path / "run" / "results.json") == before


def test_a_run_in_a_numbered_sibling_is_found(tmp_path, monkeypatch):
    config = tiny(output=tmp_path / "run", rows=("random", "untrained_poh", "baseline"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")

    def stop(*_, **__):
        raise benchmark.Interrupted("SIGTERM")

    with monkeypatch.context() as patched:
        patched.setattr(trial, "evaluate_control", stop)
        assert benchmark.run_benchmark(config) == 130
    assert Results.load(tmp_path / "run-2" / "results.json").rows == []
    assert benchmark.run_benchmark(config) == 0
    assert Results.load(tmp_path / "run-2" / "results.json").status == "complete"
    assert not (tmp_path / "run-3").exists()


def test_a_run_that_is_still_going_on_is_left_alone(tmp_path, monkeypatch):
    config = tiny(output=tmp_path / "run", rows=("random", "untrained_poh", "baseline"))
    interrupted_run(config, monkeypatch, trainings=0)
    monkeypatch.setattr(run_folder, "WAIT", 0.0)
    with run_folder.holding(config.output):
        with pytest.raises(ConfigError, match="still going on"):
            benchmark.run_benchmark(dataclasses.replace(config, resume=True))
        with pytest.raises(ConfigError, match=r"another run \(process \d+\) is writing there"):
            benchmark.run_benchmark(dataclasses.replace(config, overwrite=True))
    assert not run_folder.in_use(config.output)


def test_resume_without_a_run_or_with_overwrite_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--resume: nothing to go on with; .*run does not exist"):
        benchmark.run_benchmark(tiny(output=tmp_path / "run", resume=True))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a results file"):
        benchmark.run_benchmark(tiny(output=tmp_path / "run", resume=True))
    with pytest.raises(ConfigError, match="--resume contradicts --overwrite"):
        benchmark.run_benchmark(tiny(output=tmp_path / "run", resume=True, overwrite=True))


def test_the_script_runs_from_a_checkout(tmp_path):
    words = ["--models", "tiny", "--maze-size", "4", "--train", "8", "--test", "6", "--dry-run"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "params" in done.stdout and list(tmp_path.iterdir()) == []
