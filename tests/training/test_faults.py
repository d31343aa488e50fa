"""Bad days of a run: a full disk, a folder that goes, a clock set back, two runs in one folder, files made to harm.

Whatever happens, the user gets a line that says what and how to go on, and the same command ends with the rows that a
run without the fault has.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import re
import shutil
import time

import pytest
import torch

from poh_ext.results import VALIDATION_FIELDS, Results
from poh_ext.training import benchmark, logs, loop, progress, run_folder, sweep, trial, workers
from poh_ext.training.checkpoint import Checkpoints
from poh_ext.training.config import Benchmark12x12Config, ConfigError
from poh_ext.training.data import make_data
from poh_ext.training.progress import Interrupted
from tests.cases.training import TINY, build_planner

pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")
ROWS = ("random", "baseline", "poh")
tiny = functools.partial(Benchmark12x12Config, **{**TINY, "epochs": 3, "rows": ROWS})  # 6 steps for each planner
posix = pytest.mark.skipif(os.name != "posix", reason="a system with locks and limits on the size of files")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The rows of a run without a fault."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("straight")
    assert benchmark.run_benchmark(tiny(output=folder)) == 0
    return rows(folder)


def rows(folder):
    found = Results.load(folder / "results.json")
    assert found.status == "complete"
    times = {"train_seconds": 0, "train_mazes_per_second": 0, "eval_mazes_per_second": 0}
    return [dataclasses.replace(row, **times) for row in found.rows]


@contextlib.contextmanager
def before_step(monkeypatch, step, fault, planner="PoH"):
    """`fault()` happens in the training of one planner, before a step (from 0)."""

    def faulty(*args, check, label, **kwargs):
        steps = iter(range(1000))

        def with_fault():
            if next(steps) == step:
                fault()
            check()

        return loop.train_planner(*args, check=with_fault if planner in label else check, label=label, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(trial, "train_planner", faulty)
        yield


def the_error(capsys):
    """The one line of the error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


def assert_clean(folder):
    assert not list(folder.rglob("*.part")) and not (folder / run_folder.LOCK).exists()


# -- a disk that is full ----------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("what", ["checkpoints/poh-seed42/step-00000004.pt", "logs/poh-seed42.jsonl"])
def test_a_file_that_cannot_be_written_on_ends_the_run_with_a_line(what, straight, tmp_path, monkeypatch, capsys):
    """A limit on the size of files fails as a full disk does: part of what is written is taken, then nothing."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    config, log = tiny(output=tmp_path / "run"), tmp_path / "run" / "logs" / "poh-seed42.jsonl"

    def full():
        size = 20_000 if what.startswith("checkpoints") else log.stat().st_size + 30
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    try:
        with before_step(monkeypatch, 3, full):
            assert benchmark.run_benchmark(config) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run = tmp_path / "run"
    assert the_error(capsys) == (
        f"error: {run / what}: File too large; {run} keeps 2 finished rows and the last checkpoint; "
        "the same command goes on from there"
    )
    assert_clean(run)
    assert Results.load(run / "results.json").status == "interrupted"
    assert benchmark.run_benchmark(config) == 0
    out, err = capsys.readouterr()
    assert "going on after step 2 of PoH" in out and "checkpoint" not in err and rows(run) == straight
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 7))


def test_a_report_that_cannot_be_written_is_written_by_resume(straight, tmp_path, monkeypatch, capsys):
    config = tiny(output=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("poh_ext.report.report.write_atomically", full_disk)
        assert benchmark.run_benchmark(config) == 1
    assert the_error(capsys) == (
        f"error: {tmp_path / 'index.html'}: No space left on device; the results in {tmp_path} are complete; the same "
        "command with --resume writes the report"
    )
    assert benchmark.run_benchmark(dataclasses.replace(config, resume=True)) == 0
    assert (tmp_path / "report.md").exists() and rows(tmp_path) == straight


def full_disk(path, data):
    raise OSError(28, "No space left on device", str(path))


def test_an_error_of_a_file_elsewhere_is_not_of_the_folder(tmp_path, monkeypatch):
    """Such as standard output, which has no name: see poh_ext._program.run."""
    for name in (None, str(tmp_path.parent / "elsewhere")):
        with monkeypatch.context() as patched:
            patched.setattr(benchmark._Run, "print_plan", lambda self, name=name: full_disk_at(name))
            with pytest.raises(OSError, match="No space left"):
                benchmark.run_benchmark(tiny(output=tmp_path / "run", rows=("random",)))
        shutil.rmtree(tmp_path / "run")


def full_disk_at(name):
    raise OSError(28, "No space left on device", name)


def test_a_signal_is_heard_where_the_terminal_is_gone(monkeypatch):
    monkeypatch.setattr("sys.stderr", open(os.devnull))
    with progress.StopSignals() as stop:
        stop._handle(15, None)
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.check()


# -- a folder that goes -----------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_run_whose_folder_goes_writes_what_it_holds_and_goes_on(how, straight, tmp_path, monkeypatch, capsys):
    config, run = tiny(output=tmp_path / "run"), tmp_path / "run"
    fault = functools.partial(*((shutil.rmtree, run) if how == "removed" else (run.rename, tmp_path / "away")))
    with before_step(monkeypatch, 3, fault):
        assert benchmark.run_benchmark(config) == 1
    assert the_error(capsys) == (
        f"error: --output {run} was removed or renamed, with the logs and weights in it; 2 rows are finished and "
        "written anew; the same command goes on from there"
    )
    assert_clean(run)
    assert benchmark.run_benchmark(config) == 0
    assert "going on after step 3 of PoH" in capsys.readouterr().out and rows(run) == straight


@posix
def test_a_folder_that_goes_after_the_training_loses_no_row(straight, tmp_path, monkeypatch, capsys):
    config, evaluate = tiny(output=tmp_path / "run"), trial._evaluate

    def removed(*args):
        shutil.rmtree(config.output)
        return evaluate(*args)

    with monkeypatch.context() as patched:
        patched.setattr(trial, "_evaluate", removed)
        assert benchmark.run_benchmark(dataclasses.replace(config, rows=("baseline",))) == 1
    assert "1 row is finished and written anew" in the_error(capsys)
    assert Results.load(config.output / "results.json").rows[0].curve == straight[1].curve
    with monkeypatch.context() as patched:
        patched.setattr(benchmark._Run, "run_rows", lambda self: shutil.rmtree(self.folder))
        assert benchmark.run_benchmark(dataclasses.replace(config, rows=("baseline",))) == 1
    assert the_error(capsys).endswith("; the results are written anew")
    assert (config.output / "report.md").exists() and rows(config.output)[0].curve == straight[1].curve


@posix
def test_a_folder_that_cannot_be_made_again_is_named(tmp_path, monkeypatch, capsys):
    parent = tmp_path / "parent"

    def replaced():
        shutil.rmtree(parent)
        parent.write_text("a file")

    with before_step(monkeypatch, 1, replaced, "baseline"):
        assert benchmark.run_benchmark(tiny(output=parent / "run")) == 1
    run = parent / "run"
    assert the_error(capsys) == f"error: {run}: Not a directory; {run} holds no results any more"


@posix
def test_a_folder_taken_by_another_run_is_left_to_it(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"

    def taken():
        run.rename(tmp_path / "away")
        run.mkdir()
        (run / "results.json").write_text("another's")

    with before_step(monkeypatch, 3, taken):
        assert benchmark.run_benchmark(tiny(output=run)) == 1
    message = the_error(capsys)
    assert f"--output {run} was removed or renamed, and another run writes there now; {run}-2 keeps 2 fin" in message
    assert [path.name for path in run.iterdir()] == ["results.json"]
    assert [row.model for row in Results.load(tmp_path / "run-2" / "results.json").rows] == ["random", "baseline"]


@posix
def test_a_lock_that_is_removed_is_made_again(straight, tmp_path, monkeypatch):
    lock = tmp_path / run_folder.LOCK
    with before_step(monkeypatch, 3, lock.unlink), before_step(monkeypatch, 4, lambda: lock.stat(), "baseline"):
        assert benchmark.run_benchmark(tiny(output=tmp_path)) == 0
    assert rows(tmp_path) == straight
    with run_folder.holding(tmp_path) as hold:
        lock.unlink()
        assert not run_folder.in_use(tmp_path)
        hold.check()
        assert run_folder.in_use(tmp_path)
        lock.unlink()
        monkeypatch.setattr(run_folder.os, "open", lambda *_: full_disk_at(str(lock)))
        with pytest.raises(OSError, match="No space left"):
            hold.check()


@posix
def test_a_file_system_without_locks_is_no_other_run(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(run_folder.fcntl, "flock", unknown)
    with run_folder.holding(tmp_path) as hold:
        hold.check()
        assert not run_folder.in_use(tmp_path)


@posix
def test_a_lock_that_is_made_again_leaves_what_workers_are_writing(tmp_path):
    part = tmp_path / "checkpoints" / ".step-00000001.pt.123.part"
    with run_folder.holding(tmp_path) as hold:
        part.parent.mkdir()
        part.touch()
        (tmp_path / run_folder.LOCK).unlink()
        hold.check()
        assert part.exists()
    with run_folder.holding(tmp_path):
        assert not part.exists()


@posix
def test_after_a_stop_of_a_run_with_overwrite_the_way_on_is_without_it(tmp_path, monkeypatch, capsys):
    config = tiny(output=tmp_path / "run", overwrite=True)

    def stop():
        raise Interrupted("a test")

    with before_step(monkeypatch, 3, stop):
        assert benchmark.run_benchmark(config) == 130
    said = capsys.readouterr().err
    assert "stopped by a test; 2 rows are finished; the same command without --overwrite goes on from there" in said
    assert benchmark._again(config, "--resume") == "the same command with --resume and without --overwrite"
    assert benchmark.run_benchmark(dataclasses.replace(config, overwrite=False)) == 0
    assert "going on with the interrupted run" in capsys.readouterr().out


# -- two runs in one folder -------------------------------------------------------------------------------------


@posix
def test_a_second_run_takes_another_folder_and_removes_nothing(tmp_path, monkeypatch):
    config, seen = tiny(output=tmp_path / "run", rows=("random", "baseline")), []
    monkeypatch.setattr(run_folder, "WAIT", 0.0)

    def second():
        before = sorted(path for path in config.output.rglob("*"))
        with pytest.raises(ConfigError, match=rf"--output .*run: another run \(process {os.getpid()}\) is writing"):
            benchmark.run_benchmark(dataclasses.replace(config, overwrite=True))
        assert benchmark.run_benchmark(dataclasses.replace(config, rows=("random",))) == 0
        assert benchmark.run_benchmark(dataclasses.replace(config, epochs=1)) == 0
        seen.append(sorted(path for path in config.output.rglob("*")) == before)

    with before_step(monkeypatch, 3, second, "baseline"):
        assert benchmark.run_benchmark(config) == 0
    assert seen == [True]
    assert [len(rows(tmp_path / name)) for name in ("run", "run-2", "run-3")] == [2, 1, 2]


@posix
def test_the_same_run_is_waited_for_while_it_stops(straight, tmp_path, monkeypatch, capsys):
    config = tiny(output=tmp_path)
    with before_step(monkeypatch, 3, lambda: (_ for _ in ()).throw(Interrupted("SIGTERM"))):
        assert benchmark.run_benchmark(config) == 130
    hold = run_folder.Hold(tmp_path)
    monkeypatch.setattr(run_folder.time, "sleep", lambda seconds: hold.release())
    assert benchmark.run_benchmark(config) == 0
    assert f"still going on in {tmp_path}: waiting 30 s for its end" in capsys.readouterr().out
    assert rows(tmp_path) == straight


@posix
def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    for name in (".results.json.7.part", ".running"):
        (tmp_path / name).write_text("half")
    assert benchmark.run_benchmark(tiny(output=tmp_path, rows=("random",))) == 0
    assert len(rows(tmp_path)) == 1
    for name in ("weights/.a.safetensors.7.part", "checkpoints/a/.step-00000001.pt.7.part", ".mine.part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    run_folder.Hold(tmp_path).release()
    assert [path.name for path in tmp_path.rglob("*.part")] == [".mine.part"]


# -- a clock that is set back -----------------------------------------------------------------------------------


def test_a_clock_that_goes_back_changes_nothing(straight, tmp_path, monkeypatch):
    days = iter(range(10**9, 0, -86400))
    monkeypatch.setattr(time, "time", lambda: next(days))
    config = tiny(output=tmp_path, validate_every=1, validation=4)
    with before_step(monkeypatch, 3, lambda: (_ for _ in ()).throw(Interrupted("SIGTERM"))):
        assert benchmark.run_benchmark(config) == 130
    assert benchmark.run_benchmark(config) == 0
    for row, plain in zip(Results.load(tmp_path / "results.json").rows, straight, strict=True):
        assert row.curve == plain.curve and (row.train_seconds or 0) >= 0
        assert [point["step"] for point in row.validation] == ([2, 4, 6] if row.trained else [])


def test_events_after_the_clock_was_set_back_come_after_those_before(tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = tiny(output=tmp_path)
    data = make_data(config, 1)
    options = {"config": config, "options": {}, "tasks": data.test, "walls": data.test_walls, "precision": "float32"}
    for now, done, steps in ((3e9, 0, (1, 2, 3)), (2e9, 2, (3, 4)), (1e9, 3, (4, 5))):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        board = logs.Board(tmp_path / "events", step=done, **options)
        for step in steps:
            board.step({"step": step, "loss": 10.0 * done + step})
        board.close()
    shown = events.EventAccumulator(str(tmp_path / "events")).Reload().Scalars("training/loss")
    assert [(event.step, event.value) for event in shown] == [(1, 1), (2, 2), (3, 23), (4, 34), (5, 35)]


# -- files made to harm -----------------------------------------------------------------------------------------


def deep(levels=200_000):
    return "[" * levels + "]" * levels


def test_results_and_logs_of_lists_in_lists_are_damaged(tmp_path):
    (tmp_path / "results.json").write_text(deep())
    with pytest.raises(ValueError, match=r"results.json is damaged or not a results file"):
        Results.load(tmp_path / "results.json")
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1}}\n{deep()}\n{{"step": 2}}\n')
    logs.History(tmp_path / "log.jsonl", step=2).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n'


def change(path, *keys):
    """A setter of what lies below the keys of a checkpoint; it removes what becomes None."""

    def set_to(value):
        record = torch.load(path, weights_only=True)
        at = record
        for key in keys[:-1]:
            at = at[key]
        if value is None:
            del at[keys[-1]]
        else:
            at[keys[-1]] = value
        torch.save(record, path)

    return set_to


HUGE = torch.zeros(1).expand(1 << 40)  # one number in the file
HARM = [
    (("optimizer",), None, "KeyError: 'optimizer'"),
    (("random",), None, "it lacks random"),
    (("code",), 1, "it has code"),
    (("label",), 3, "label is a int, not a str"),
    (("model", "out.bias"), "float64", "out.bias is .*float64, not .*float32"),
    (("optimizer", "state"), [1], "AttributeError"),
    (("optimizer", "state", 0), {}, "the optimizer's state of parameter 0 lacks"),
    (("optimizer", "state", 0, "exp_avg"), HUGE, r"exp_avg is \[1099511627776\] of"),
    (("optimizer", "state", 10_000), {}, "IndexError"),
    (("optimizer", "param_groups", 0, "betas"), (2.0, 2.0), "its optimizer has other settings"),
    (("random", 0, "cpu"), torch.zeros(3, dtype=torch.uint8), r"cpu is \[3\]"),
    (("random", 0, "cpu"), "zeros", "RuntimeError"),
    (("random",), [], "random has 0 items, not 1"),
    (("training", "steps"), 10**9, "it is of step 1000000000 of 6"),
    (("training", "steps"), "all", "steps is a str, not a int"),
    (("training", "curve"), [dict.fromkeys(loop.CURVE, "low")], "its learning curve holds more than numbers"),
    (("training", "curve"), [{"loss": 1.0}], "its learning curve is not of step, epoch, loss"),
    (("training", "validation"), [dict.fromkeys(VALIDATION_FIELDS, 10**400)], "must be finite numbers"),
    (("training", "validation"), [{}], r"validation\[0\] must have the fields"),
]


def test_a_checkpoint_made_to_harm_is_refused_with_its_reason(tmp_path, capsys):
    config, me = tiny(), {"experiment": "", "parts": {}, "config": {}, "environment": {}}
    checkpoints = Checkpoints(tmp_path, me)
    train = functools.partial(
        loop.train_planner, data=make_data(config, 5).batches, config=config, seed=5, label="poh",
        checkpoints=checkpoints, quiet=True,
    )  # fmt: skip
    train(build_planner("poh", config, seed=5))
    older, path = sorted(tmp_path.iterdir())
    whole = path.read_bytes()
    older.unlink()
    bias = next(name for name in build_planner("poh", config, seed=5).state_dict() if name.endswith("bias"))

    def stop():
        raise Interrupted("here")

    for keys, value, words in HARM:
        if keys == ("model", "out.bias"):
            keys, words = ("model", bias), words.replace("out.bias", "bias")
            value = torch.load(path, weights_only=True)["model"][bias].double()
        if isinstance(value, str) and value == "zeros":
            value = torch.zeros_like(torch.get_rng_state())
        change(path, *keys)(value)
        with pytest.raises(Interrupted):
            train(build_planner("poh", config, seed=5), check=stop)
        err = capsys.readouterr().err
        assert "is damaged: " in err and "starting anew" in err, (keys, err)
        assert re.search(words, err), (keys, err)
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        path.write_bytes(whole)
    train(build_planner("poh", config, seed=5), check=stop)  # there is no step left to stop before
    out, err = capsys.readouterr()
    assert "going on after step 6" in out and not err


# -- workers that die -------------------------------------------------------------------------------------------


def test_a_process_ends_with_torchrun_that_started_it(monkeypatch):
    parents, asked, ended = iter([7, 7, 1, 1, 1]), [], []
    monkeypatch.setattr(workers.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(workers.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(workers.os, "_exit", ended.append)
    monkeypatch.setattr(workers, "GRACE", 0.05)
    monkeypatch.setattr(workers, "POLL", 0.01)
    with workers.ending_with_torchrun(asked.append):
        deadline = time.monotonic() + 60
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
    assert asked == ["the death of torchrun"] and ended == [1]


def test_an_exchange_with_a_dead_process_is_named(monkeypatch):
    monkeypatch.setattr(workers.dist, "is_torchelastic_launched", lambda: True)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    for name in ("init_process_group", "destroy_process_group", "get_rank", "broadcast_object_list"):
        monkeypatch.setattr(workers.dist, name, lambda *args, **kwargs: 0)
    with pytest.raises(workers.WorkersLost, match=r"another process of torchrun died \(Connection closed by peer\)$"):
        with workers.joined(tiny()):
            raise RuntimeError("[/gloo/tcp/pair.cc:5] Connection closed by peer. Typically\nmore")
    with pytest.raises(RuntimeError, match="of another kind"), workers.joined(tiny()):
        raise RuntimeError("of another kind")


def test_a_worker_of_ray_that_dies_again_and_again_is_named(tmp_path, capsys, monkeypatch):
    ray = pytest.importorskip("ray", reason="ray is not installed")

    class Cluster:
        exceptions = ray.exceptions

        def get(self, reference):
            raise reference

    with pytest.raises(workers.WorkersLost, match="the worker of poh-seed42 died, and so in 5 more tries: "):
        sweep._result(Cluster(), ray.exceptions.WorkerCrashedError(), "poh-seed42")
    full = OSError(28, "No space left on device", "run/logs/a")
    with pytest.raises(OSError, match="run/logs/a") as raised:
        sweep._result(Cluster(), ray.exceptions.RayTaskError("task", "", full), "poh-seed42")
    assert raised.value is full

    def lost(*_):
        raise workers.WorkersLost("the worker of poh-seed42 died, and so in 5 more tries: killed")
        yield

    monkeypatch.setattr(benchmark, "sweep", lost)
    assert benchmark.run_benchmark(tiny(output=tmp_path, ray="local")) == 1
    assert the_error(capsys) == (
        "error: the worker of poh-seed42 died, and so in 5 more tries: killed; "
        f"{tmp_path} keeps 0 finished rows; the same command goes on from there"
    )
