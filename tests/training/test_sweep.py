"""Sweeps on Ray give the results of the serial run, lose nothing with a worker, and stop with a checkpoint."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from poh_ext.results import Results
from poh_ext.training import benchmark, sweep, workers
from poh_ext.training.config import Benchmark12x12Config, ConfigError
from poh_ext.training.loop import Diverged
from poh_ext.training.progress import Interrupted
from tests.cases.training import TINY

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "run_12x12_8m_benchmark.py"
OWN = {**TINY, "train": 10, "epochs": 60}  # 180 steps

ROWS = ("random", "baseline", "poh")
pytestmark = pytest.mark.usefixtures("one_thread")
tiny = functools.partial(Benchmark12x12Config, **OWN)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    assert not ray.is_initialized()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("serial")
    assert benchmark.run_benchmark(tiny(output=folder, save_weights=True, rows=ROWS)) == 0
    return folder


def program(folder, *flags):
    words = [
        part
        for name, value in {**OWN, "output": folder}.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words, "--save-weights", "--rows", *ROWS, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_lines(process, count, *logs):
    deadline = time.monotonic() + 600
    while not all(log.exists() and log.read_bytes().count(b"\n") >= count for log in logs):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the sweep does not get on"
        time.sleep(0.01)


def workers_of(driver, row):
    """Ids of the processes below the driver that have the row's log open."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (ValueError, OSError):
            continue
    for pid in parents:
        above = pid
        while above in parents and above != driver:
            above = parents[above]
        try:
            opened = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if above == driver and any(name.endswith(f"{row}-seed42.jsonl") for name in opened):
            found.append(pid)
    return found


def assert_same(a, b):
    rows = [
        [
            dataclasses.replace(row, train_seconds=0, train_mazes_per_second=0, eval_mazes_per_second=0)
            for row in Results.load(folder / "results.json").rows
        ]
        for folder in (a, b)
    ]
    assert rows[0] == rows[1] and Results.load(b / "results.json").status == "complete"
    assert Results.load(a / "results.json").routing == Results.load(b / "results.json").routing
    names = sorted(path.name for path in (a / "weights").iterdir())
    assert names == sorted(path.name for path in (b / "weights").iterdir()) and len(names) == 2
    for name in names:
        mine, theirs = (load_file(folder / "weights" / name) for folder in (a, b))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert not (b / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the worker to kill in /proc")
def test_two_workers_one_killed_give_the_serial_results(serial, tmp_path):
    run = tmp_path / "run"
    process = program(run, "--ray", "local")
    try:
        wait_for_lines(process, 30, run / "logs" / "baseline-seed42.jsonl", run / "logs" / "poh-seed42.jsonl")
        victims = workers_of(process.pid, "poh")
        assert len(victims) == 1 and victims != [process.pid] and process.poll() is None
        os.kill(victims[0], signal.SIGKILL)
        text = process.communicate(timeout=600)[0]
    finally:
        process.terminate()
    assert process.returncode == 0, text
    assert "going on after step" in text and "\x1b" not in text, text
    assert_same(serial, run)


@pytest.mark.slow
def test_a_stopped_sweep_writes_a_checkpoint_and_goes_on_without_ray(serial, tmp_path):
    config = tiny(output=tmp_path, save_weights=True, ray="local", rows=("poh",))
    log = tmp_path / "logs" / "poh-seed42.jsonl"

    def stop_in_mid_training():
        deadline = time.monotonic() + 600
        while not (log.exists() and log.read_bytes().count(b"\n") >= 5) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_in_mid_training)
    stopper.start()
    assert benchmark.run_benchmark(config) == 130
    stopper.join()
    steps = [int(path.stem.removeprefix("step-")) for path in (tmp_path / "checkpoints" / "poh-seed42").iterdir()]
    assert 5 <= max(steps) == log.read_bytes().count(b"\n") < 180  # the last step taken, not the last epoch
    assert benchmark.run_benchmark(dataclasses.replace(config, ray="off", resume=True)) == 0
    weights = [load_file(folder / "weights" / "poh-seed42.safetensors") for folder in (serial, tmp_path)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_what_cannot_be_honoured_is_refused_before_any_work(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--ray mars: must be off, auto, local or HOST:PORT"):
        tiny(ray="mars").check()
    with monkeypatch.context() as patched:
        patched.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"--ray: ray is not installed; pip install 'poh_ext\[sweep\]'"):
            benchmark.run_benchmark(tiny(ray="local", output=tmp_path / "run"))
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setattr(benchmark, "joined", lambda config: _entered(workers.Workers(2)))
    with pytest.raises(ConfigError, match="--ray contradicts torchrun"):
        benchmark.run_benchmark(tiny(ray="local", output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


class _entered:
    def __init__(self, value):
        self.value = value

    def __enter__(self):
        return self.value

    def __exit__(self, *_):
        pass


class FakeRay:
    """What a sweep uses of Ray, where no processes are needed to see what it does."""

    def __init__(self, cpus=4, error=None):
        self.cpus, self.error = cpus, error

    def init(self, **_):
        if self.error is not None:
            raise self.error

    def cluster_resources(self):
        return {"CPU": self.cpus}


def test_a_cluster_that_is_missing_or_too_small_is_named():
    for error in (ConnectionError("Could not find any running Ray instance.\nMore"), ValueError("bad address")):
        with pytest.raises(ConfigError, match=r"--ray auto: no cluster there \((Could|bad).*--ray local starts"):
            sweep._connect(FakeRay(error=error), tiny(ray="auto"))
    place = sweep.Place(Path("run"), torch.device("cpu"), "float32", {})
    with pytest.raises(ConfigError, match=r"--ray: a trial needs 1 CPU .*OMP_NUM_THREADS.* the cluster has 0"):
        next(sweep._collect(FakeRay(cpus=0), [(None, 1)], place, lambda: None))


def test_the_handlers_of_the_program_are_kept(monkeypatch):
    class Rude(FakeRay):
        def init(self, **_):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sweep._connect(Rude(), tiny(ray="local"))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert issubclass(Interrupted, Exception)


def test_a_trial_that_diverged_is_an_outcome_that_ends_no_other():
    class TaskError(Exception):
        cause = Diverged("poh (seed 1) diverged: the loss is nan at step 2")

    def get(reference):
        raise TaskError

    ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayTaskError=TaskError))
    assert sweep._result(ray, None, "poh") is TaskError.cause
