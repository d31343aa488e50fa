"""Never lose a run: checkpoints, going on from them bit for bit, damage, and kills of a real program."""

import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from poh_ext.results import Results
from poh_ext.training import benchmark, checkpoint, loop, run_folder, trial
from poh_ext.training.checkpoint import Checkpoints
from poh_ext.training.config import Benchmark12x12Config, ConfigError
from poh_ext.training.data import make_data
from poh_ext.training.evaluate import Validation
from poh_ext.training.logs import History
from poh_ext.training.plan import planned_rows
from poh_ext.training.progress import Interrupted
from tests.cases.training import TINY, build_planner

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "run_12x12_8m_benchmark.py"
# 3 epochs of 3 steps, the last one of 2 mazes.
OWN = {**TINY, "train": 10, "epochs": 3, "lr": 1e-2, "route_ent_weight": 0.01}
# All that --preset solve switches on, and deep supervision.
SOLVE = {
    "train": "online",
    "steps_per_epoch": 3,
    "train_sizes": (3, 4),
    "train_sizes_growth": 6,
    "supervision": "all",
    "train_R": (2, 4),
    "train_R_growth": 9,
    "grad_passes": 3,
    "R": 8,
    "ema": 0.99,
    "deep_supervision": 2,
    "weight_decay": 0.1,
    "d_model": 16,
    "d_ff": 24,
    "dropout": 0.1,
    "cell_features": 6,
    "valid_heads": 3,
    "norm": "post",
    "head": "moves",
    "positions": "none",
    "reinject": "on",
    "residual": "none",
    "route_scale": "heads",
    "parity": "none",
}
VALIDATED = {**SOLVE, "validate_every": 2, "validation": 4}
ME = {"experiment": "a test", "parts": {"row": "poh"}, "config": {"lr": 1e-3}, "environment": {"device": "cpu"}}
pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")
tiny = functools.partial(Benchmark12x12Config, **OWN)


def stop_before(step):
    """A check that asks for a stop before the given step (from 0)."""
    calls = iter(range(10**6))

    def check():
        if next(calls) == step:
            raise Interrupted("SIGTERM")

    return check


def train(folder, config, name="poh", check=lambda: None, identity=ME):
    """(weights and optimiser's last state, training, log) of one training in a folder."""
    model = build_planner(name, config, seed=5)
    logs = []

    def watch(step):
        logs.append(History(folder / "log.jsonl", step=step))
        return logs

    checkpoints, data = Checkpoints(folder / "checkpoints", identity), make_data(config, 5)
    validation = Validation(config, data.validation, "float32") if data.validation else None
    try:
        training = loop.train_planner(
            model,
            data.batches,
            config,
            seed=5,
            label=name,
            check=check,
            checkpoints=checkpoints,
            watch=watch,
            validation=validation,
        )
    finally:
        for log in logs:
            log.close()
    return model.state_dict(), training, lines(folder / "log.jsonl")


def lines(path):
    """The log without its times and its lines of validation."""
    return [
        {k: v for k, v in json.loads(line).items() if k != "seconds"}
        for line in path.read_text().splitlines()
        if "validation" not in json.loads(line)
    ]


def points(path):
    """The lines of validation, as a row has them; without times."""
    found = [json.loads(line) for line in path.read_text().splitlines() if "validation" in json.loads(line)]
    return [{"step": line["step"], "epoch": line["epoch"], **line["validation"]} for line in found]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- going on ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, changes",
    [
        ("poh", {}),
        ("baseline", {"ent_anneal": True}),
        ("poh", {"train": "online", "steps_per_epoch": 3}),
        ("poh", {"precision": "bfloat16"}),
        ("looped_baseline", SOLVE),
        ("poh_token", {**SOLVE, "precision": "bfloat16"}),
        ("poh", VALIDATED),
        (
            "poh",
            {
                "ema": 0.9,
                "train_R": (1, 4),
                "grad_passes": 2,
                "R": 3,
                "deep_supervision": 2,
                "weight_decay": 0.3,
                "state_noise": 0.1,
            },
        ),
    ],
    ids=["poh", "baseline", "online", "bfloat16", "solve", "solve-token", "validated", "options"],
)
def test_a_training_stopped_before_any_step_goes_on_bit_for_bit(name, changes, tmp_path, capsys):
    config = tiny(**changes)
    weights, whole, log = train(tmp_path / "straight", config, name)
    assert len(log) == whole.steps == 9
    for step in range(9):
        folder = tmp_path / str(step)
        with pytest.raises(Interrupted):
            train(folder, config, name, stop_before(step))
        assert len(lines(folder / "log.jsonl")) == step
        again, training, log_again = train(folder, config, name)
        assert f"going on after step {step} " in capsys.readouterr().out
        assert same(again, weights)
        assert log_again == log and training.curve == whole.curve and training.steps == whole.steps
        kept = [{name: value for name, value in point.items() if name != "seconds"} for point in training.validation]
        assert kept == points(folder / "log.jsonl") == points(tmp_path / "straight" / "log.jsonl")
        assert [point["step"] for point in kept] == ([6, 9] if config.validate_every else [])
    assert not same(train(tmp_path / "other", dataclasses.replace(config, lr=2e-2), name)[0], weights)


def test_a_training_stopped_again_and_again_goes_on(tmp_path):
    weights, whole, _ = train(tmp_path / "straight", tiny())
    for _ in range(8):
        with pytest.raises(Interrupted):
            train(tmp_path / "run", tiny(), check=stop_before(1))  # one step each time
    again, training, _ = train(tmp_path / "run", tiny())
    assert same(again, weights) and training.curve == whole.curve


def test_the_last_two_checkpoints_are_kept_one_for_each_epoch(tmp_path, monkeypatch):
    written = []
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, state: written.append(step) or save(self, step, state))
    train(tmp_path, tiny())
    assert written == [3, 6, 9]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000006.pt", "step-00000009.pt"]
    record = torch.load(tmp_path / "checkpoints" / "step-00000009.pt", weights_only=True)
    assert (record["format"], record["version"], record["step"]) == (checkpoint.FORMAT, checkpoint.VERSION, 9)
    assert record["identity"] == ME
    part = tmp_path / "checkpoints" / ".step-00000012.pt.1.part"  # of a process that was killed while it wrote
    part.write_bytes(b"half")
    assert Checkpoints(tmp_path / "checkpoints", ME).load(build_planner("poh", tiny(), seed=0))["step"] == 9
    assert not part.exists()


def test_the_time_of_writing_checkpoints_is_not_that_of_the_training(tmp_path, monkeypatch):
    save, clock = Checkpoints.save, [0.0]

    def slow(self, step, state):
        clock[0] += 1000
        return save(self, step, state)

    monkeypatch.setattr(Checkpoints, "save", slow)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    _, training, _ = train(tmp_path, tiny())
    assert training.seconds == 0.0 and clock[0] == 3000.0  # a checkpoint for each epoch


def test_a_run_on_another_gpu_is_another_run(tmp_path, monkeypatch):
    def environment(gpu):
        monkeypatch.setattr(
            "torch.cuda.get_device_properties", lambda device: SimpleNamespace(name=gpu, total_memory=0)
        )
        where = SimpleNamespace(device=torch.device("cuda" if gpu else "cpu"), count=1)
        return benchmark._Run(tiny(output=tmp_path), None, [], where, None).results.environment

    on = {gpu: checkpoint.identity("a run", {}, environment(gpu)) for gpu in ("H100", "A100", None)}
    assert environment("H100")["hardware"]["device"] == "cuda"
    assert checkpoint.first_difference(on["H100"], on["H100"]) is None
    assert checkpoint.first_difference(on["H100"], on["A100"]) == "hardware gpu was H100, not A100"
    earlier = json.loads(json.dumps(on[None]))
    del earlier["environment"]["hardware gpu"]  # of a checkpoint that does not tell it
    assert checkpoint.first_difference(earlier, on[None]) is None


# -- what is damaged or foreign ---------------------------------------------------------------------------------


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0x10
    path.write_bytes(data)


def rewrite(path, **changes):
    record = torch.load(path, weights_only=True)
    record.update(changes)
    torch.save({k: v for k, v in record.items() if v is not None}, path)


class Evil:
    def __reduce__(self):
        return print, ("run by the pickle",)


DAMAGE = {
    "bits": (lambda path: flip(path, 0.5), "is damaged: the checksum of"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "is damaged or no checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged or no checkpoint"),
    "text": (lambda path: path.write_text("checkpoint"), "is damaged or no checkpoint"),
    "code": (lambda path: torch.save({"format": Evil()}, path), "is damaged or no checkpoint"),
    "kind": (lambda path: torch.save(torch.zeros(3), path), "is not a poh_ext training checkpoint"),
    "version": (lambda path: rewrite(path, version=99), "has version 99; this poh_ext reads 1"),
    "lacks": (lambda path: rewrite(path, model=None), "is damaged: it lacks 'model'"),
    "options": (
        lambda path: rewrite(path, identity={**ME, "config": {"lr": 2e-3}}),
        "is of another training: --lr was 0.002, not 0.001",
    ),
    "row": (
        lambda path: rewrite(path, identity={**ME, "parts": {"row": "baseline"}}),
        "is of another training: row was baseline, not poh",
    ),
    "device": (
        lambda path: rewrite(path, identity={**ME, "environment": {"device": "cuda"}}),
        "is of another training: device was cuda, not cpu",
    ),
    "shapes": (lambda path: rewrite(path, model={"weight": torch.zeros(2)}), "is of another planner"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_checkpoint_is_named_and_the_one_before_it_used(damage, tmp_path, capsys):
    weights, _, log = train(tmp_path / "straight", tiny())
    with pytest.raises(Interrupted):
        train(tmp_path / "run", tiny(), check=stop_before(7))
    newest = tmp_path / "run" / "checkpoints" / "step-00000007.pt"
    change, words = DAMAGE[damage]
    change(newest)
    capsys.readouterr()
    again, _, log_again = train(tmp_path / "run", tiny())
    out, err = capsys.readouterr()
    assert f"checkpoint {newest} {words}" in err and "step-00000006.pt" in err
    assert "going on after step 6 " in out and "run by the pickle" not in out
    assert same(again, weights) and log_again == log


def test_where_no_checkpoint_can_be_used_the_training_starts_anew_and_says_so(tmp_path, capsys):
    weights, *_ = train(tmp_path / "straight", tiny())
    with pytest.raises(Interrupted):
        train(tmp_path / "run", tiny(), check=stop_before(7))
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        flip(path, 0.4)
    again, _, log = train(tmp_path / "run", tiny())
    out, err = capsys.readouterr()
    assert err.count("is damaged") == 2 and "starting anew" in err and "going on" not in out
    assert same(again, weights) and [line["step"] for line in log] == list(range(1, 10))


def test_after_damage_the_new_checkpoints_are_kept_and_gone_on_from(tmp_path, capsys):
    weights, *_ = train(tmp_path / "straight", tiny())
    with pytest.raises(Interrupted):
        train(tmp_path / "run", tiny(), check=stop_before(7))
    folder = tmp_path / "run" / "checkpoints"
    for path in folder.iterdir():
        flip(path, 0.4)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", tiny(), check=stop_before(2))
    assert [path.name for path in folder.iterdir()] == ["step-00000002.pt"]  # below those that are damaged
    capsys.readouterr()
    again, *_ = train(tmp_path / "run", tiny())
    assert "going on after step 2 of poh" in capsys.readouterr().out and same(again, weights)


def test_a_damaged_checkpoint_is_not_one_of_the_two_that_are_kept(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, tiny(), check=stop_before(8))
    flip(tmp_path / "checkpoints" / "step-00000008.pt", 0.4)
    with pytest.raises(Interrupted):
        train(tmp_path, tiny(), check=stop_before(1))  # after step 6
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000006.pt",
        "step-00000007.pt",
    ]


def test_a_flip_anywhere_never_gives_other_weights(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, tiny(), check=stop_before(4))
    path = tmp_path / "checkpoints" / "step-00000004.pt"
    whole, original = path.read_bytes(), torch.load(path, weights_only=True)
    model, draws, refused = build_planner("poh", tiny(), seed=5), random.Random(0), 0
    for _ in range(40):
        path.write_bytes(whole)
        flip(path, draws.random())
        try:
            record = checkpoint.read_archive(path, checkpoint.FORMAT, checkpoint.VERSION)
        except ValueError:
            refused += 1
            continue
        assert same(record["model"], original["model"])  # the flip was in what pads the archive
    assert refused > 20 and model is not None


def test_a_log_that_was_cut_off_goes_on_where_it_is_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    log = History(path, step=2)
    log.step({"step": 3, "loss": float("nan")})
    log.close()
    assert path.read_bytes() == b'{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": null}\n'
    History(path, step=0).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "a, b, words",
    [
        ({"quick": True}, {}, "--epochs of the solver rows was 10, not 60"),
        ({}, {"precision": "bfloat16"}, "--precision of the solver rows was float32, not bfloat16"),
        ({"quick": True, "precision": "auto"}, {"quick": True, "precision": "float32"}, None),
        ({"quick": True, "rows": ("poh",)}, {"precision": "bfloat16", "rows": ("poh",)}, None),
        ({"quick": True, "ablate": True}, {"ablate": True}, None),  # without solvers
    ],
)
def test_runs_with_other_solvers_are_other_runs(a, b, words):
    runs = [tiny(**{"rows": ("poh", "looped_solver"), "precision": "auto", **changes}) for changes in (a, b)]
    assert checkpoint.first_difference(*(checkpoint.identity("a run", run.to_dict(), {}) for run in runs)) == words


def test_a_checkpoint_of_a_solver_in_another_precision_is_of_another_training(tmp_path):
    # Where auto means bfloat16, a run asked for either is in bfloat16, but its solvers are not.
    place = trial.Place(tmp_path, torch.device("cpu"), "bfloat16", {"precision": "bfloat16"})
    for name, words in (("looped_solver", "precision was float32, not bfloat16"), ("poh", None)):
        rows = [planned_rows(tiny(rows=(name,), precision=precision))[0] for precision in ("auto", "bfloat16")]
        auto, asked = (trial.trial_checkpoints(row, 1, place).identity for row in rows)
        assert checkpoint.first_difference(auto, asked) == words


# -- whole runs -------------------------------------------------------------------------------------------------


def stop_in(monkeypatch, where):
    """Run a benchmark that stops in the training of its second trained row."""
    trainings = []

    def stopping(*args, check, **kwargs):
        trainings.append(1)
        return loop.train_planner(*args, check=stop_before(where) if len(trainings) == 2 else check, **kwargs)

    monkeypatch.setattr(trial, "train_planner", stopping)


def test_a_benchmark_stopped_in_a_training_goes_on_within_it(tmp_path, monkeypatch, capsys):
    straight, run = (tiny(output=tmp_path / name, save_weights=True) for name in ("straight", "run"))
    assert benchmark.run_benchmark(straight) == 0
    with monkeypatch.context() as patched:
        stop_in(patched, 5)
        assert benchmark.run_benchmark(run) == 130
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["poh-seed42"]
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for changes in ({"resume": True}, {}):
        assert benchmark.run_benchmark(dataclasses.replace(run, dry_run=True, **changes)) == 0
        out = capsys.readouterr().out
        assert f"going on with the interrupted run in {run.output}: 4 rows are finished" in out
        assert out.count("  finished\n") == 1  # of two planners
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert benchmark.run_benchmark(dataclasses.replace(run, resume=True)) == 0
    out, err = capsys.readouterr()
    assert "going on after step 5 of PoH (seed 42)" in out and "checkpoint" not in err
    assert_same_run(tmp_path / "straight", tmp_path / "run")
    with run_folder.holding(run.output), pytest.raises(ConfigError, match="another run is writing there"):
        benchmark.run_benchmark(dataclasses.replace(run, dry_run=True, overwrite=True))
    assert benchmark.run_benchmark(dataclasses.replace(run, dry_run=True)) == 0  # complete: a run would be a new one
    assert f"output {tmp_path / 'run-2'}\n" in capsys.readouterr().out and not (tmp_path / "run-2").exists()


def test_rows_finished_before_weights_were_asked_for_are_told(tmp_path, monkeypatch, capsys):
    config = tiny(output=tmp_path, rows=("untrained_poh", "baseline", "poh"))
    with monkeypatch.context() as patched:
        stop_in(patched, 5)
        assert benchmark.run_benchmark(config) == 130
    asked = dataclasses.replace(config, save_weights=True)
    assert benchmark.run_benchmark(asked) == 0
    said = "no weights for 1 row that was finished before; --overwrite trains them anew"
    assert f"note: {said}\n" in capsys.readouterr().out and said in Results.load(tmp_path / "results.json").warnings
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["poh-seed42.safetensors"]
    assert benchmark.run_benchmark(dataclasses.replace(asked, resume=True, tensorboard=True)) == 0
    out = capsys.readouterr().out
    assert said in out and "no files for TensorBoard for 2 rows that were finished before; --overwrite" in out


def assert_same_run(a, b):
    """Everything that two runs left but the times."""
    rows = [
        [
            dataclasses.replace(row, train_seconds=0, train_mazes_per_second=0, eval_mazes_per_second=0)
            for row in Results.load(folder / "results.json").rows
        ]
        for folder in (a, b)
    ]
    assert rows[0] == rows[1] and Results.load(b / "results.json").status == "complete"
    names = sorted(path.name for path in (a / "weights").iterdir())
    assert names == sorted(path.name for path in (b / "weights").iterdir()) and names
    for name in names:
        assert same(*(load_file(folder / "weights" / name) for folder in (a, b)))
    for log in (a / "logs").iterdir():
        assert lines(log) == lines(b / "logs" / log.name)
    assert not (b / "checkpoints").exists() and not (a / "checkpoints").exists()


def test_overwrite_removes_what_an_earlier_run_left_and_nothing_else(tmp_path, monkeypatch):
    config = tiny(output=tmp_path / "run", save_weights=True)
    stop_in(monkeypatch, 5)
    assert benchmark.run_benchmark(config) == 130
    for name in ("checkpoints", "logs", "weights"):
        assert any((config.output / name).iterdir())
    (config.output / "logs" / "mine.txt").write_text("mine")
    again = dataclasses.replace(config, overwrite=True, save_weights=False, rows=("random",))
    assert benchmark.run_benchmark(again) == 0
    assert not (config.output / "checkpoints").exists() and not (config.output / "weights").exists()
    assert [path.name for path in (config.output / "logs").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("fault", ["mazes", "memory", "stop"])
def test_overwrite_removes_nothing_for_a_run_that_cannot_be_made(fault, tmp_path, monkeypatch, capsys):
    config = tiny(output=tmp_path / "run", rows=("random", "baseline"))
    assert benchmark.run_benchmark(config) == 0
    before = {path: path.read_bytes() for path in config.output.rglob("*") if path.is_file()}
    again = dataclasses.replace(config, overwrite=True)
    if fault == "stop":

        def stop(run):
            raise Interrupted("a test")

        monkeypatch.setattr(benchmark._Run, "print_plan", stop)
        assert benchmark.run_benchmark(again) == 130
        assert f"stopped by a test; {config.output} is as it was before\n" in capsys.readouterr().err
    else:
        if fault == "memory":
            monkeypatch.setattr("poh_ext.training.estimate.available_memory", lambda device: 1 << 20)
        with pytest.raises(
            ConfigError, match={"mazes": "--test 6 with", "memory": "no planner fits the memory"}[fault]
        ):
            benchmark.run_benchmark(dataclasses.replace(again, maze_size=2) if fault == "mazes" else again)
    assert {path: path.read_bytes() for path in config.output.rglob("*") if path.is_file()} == before


def program(folder, *flags):
    words = [
        part
        for name, value in {**OWN, "epochs": 12, "output": folder}.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words, "--rows", "baseline,poh", "--save-weights", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_lines(process, log, count):
    """Until the log has so many lines, or the program ends."""
    deadline = time.monotonic() + 600
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < count):
        assert time.monotonic() < deadline, "the program does not get on"
        time.sleep(0.0005)


@pytest.mark.slow
@pytest.mark.release
def test_a_program_killed_at_random_points_ends_with_the_same_weights(tmp_path):
    pytest.importorskip("tyro")
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert benchmark.run_benchmark(tiny(epochs=12, output=straight, save_weights=True, rows=("baseline", "poh"))) == 0
    draws, codes, said = random.Random(time.time_ns()), [], []
    # After the first checkpoint of 12 and well before the last; then anywhere in the second planner's 36 steps.
    for name, least, most, number in (
        ("baseline", 4, 28, signal.SIGKILL),
        ("poh", 0, 36, signal.SIGKILL),
        ("poh", 4, 36, signal.SIGTERM),
    ):
        process = program(run)
        wait_for_lines(process, run / "logs" / f"{name}-seed42.jsonl", draws.randint(least, most))
        time.sleep(draws.random() * 0.01)
        process.send_signal(number)
        said.append(process.communicate(timeout=600))
        codes.append(process.returncode)
        if process.returncode == 0:
            break  # it was through before the signal
    process = program(run, "--resume")
    said.append(process.communicate(timeout=600))
    assert process.returncode == 0, said
    assert codes[0] == -signal.SIGKILL and codes[-1] in (-signal.SIGKILL, -signal.SIGTERM, 130, 0), said
    assert not any("checkpoint /" in error for _, error in said), said  # a kill damages none
    assert any("going on after step" in out for out, _ in said), said
    assert not list(tmp_path.glob("run-*")), "a new run was started"
    assert_same_run(straight, run)
