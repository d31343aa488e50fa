"""Data-parallel training: the parts of a batch add up to it, and torchrun's curve is that of one process."""

import dataclasses
import functools
import json
import os
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
from poh_ext.training import benchmark, loop, run_folder, workers
from poh_ext.training.config import Benchmark12x12Config, ConfigError
from poh_ext.training.data import make_data
from poh_ext.training.progress import Interrupted
from poh_ext.training.step import Objective, planning_loss
from poh_ext.training.targets import step_passes, term_weights
from poh_ext.training.workers import Workers
from tests.cases.training import TINY, build_planner

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "run_12x12_8m_benchmark.py"
# 9 mazes in batches of 4: the last batch of an epoch has one maze, and one of two processes none.
OWN = {**TINY, "train": 9, "epochs": 8, "lr": 5e-3, "dropout": 0.0, "multi_horizon": 3, "route_ent_weight": 0.05}
pytestmark = pytest.mark.usefixtures("one_thread")
tiny = functools.partial(Benchmark12x12Config, **OWN)


@pytest.mark.parametrize(
    "changes",
    [{}, {"validity_mask": True}, {"protocol": "as-published", "train": 40}],
    ids=["mean", "mask", "position_mean"],
)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_parts_of_a_batch_add_up_to_its_loss_and_gradient(count, changes):
    config = tiny(**changes)
    batch = make_data(config, 1).train[:5]
    assert len(set(batch.length.tolist())) > 1  # so that a mean of the parts' means would be another number
    model = build_planner("poh", config, seed=1)
    torch.nn.init.constant_(model.alpha, 0.5)
    objective = Objective(model, config, "float32")
    passes = step_passes(config, config.R, looped=True)
    whole = objective(batch, passes, 0.05)
    expected = torch.autograd.grad(whole[0], list(model.parameters()), allow_unused=True)
    totals, gradients = torch.zeros(3), [torch.zeros_like(p) for p in model.parameters()]
    for rank in range(count):
        part, weights, share = Workers(count, rank).part(batch, config, passes)
        assert (weights is None) == (count == 1)
        values = objective(part, passes, 0.05, weights, share)
        totals += torch.stack(values).detach()
        for sum_, g in zip(
            gradients, torch.autograd.grad(values[0], list(model.parameters()), allow_unused=True), strict=True
        ):
            sum_ += 0 if g is None else g
    torch.testing.assert_close(totals, torch.stack(whole).detach(), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["default", "as-published"])
def test_term_weights_are_those_of_the_reductions(name):
    config = tiny(protocol=name, train=40)
    batch = make_data(config, 1).train[:5]
    model = build_planner("baseline", config, seed=1)
    hidden = torch.randn(5, 25, 64)
    terms = planning_loss(hidden, model.head, batch, config, reduction="none")
    expected = planning_loss(hidden, model.head, batch, config)
    torch.testing.assert_close((terms * term_weights(batch.length, config)).sum(), expected)


def test_devices_that_cannot_be_shared_out_are_refused(monkeypatch):
    monkeypatch.setattr(workers.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refusals = {"mps": "there is one such device", "cuda": r"more processes here than there are GPUs \(1\)"}
    for device, words in refusals.items():
        monkeypatch.setattr(workers, "choose_device", lambda config, kind=device: torch.device(kind))
        with pytest.raises(ConfigError, match=f"--device {device}: torchrun started.*{words}"), workers.joined(tiny()):
            pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with workers.joined(tiny()) as alone:
        assert alone is workers.ALONE


# -- torchrun ---------------------------------------------------------------------------------------------------


@pytest.fixture
def started():
    """Programs to end if the test fails before they do."""
    processes = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.terminate()


def torchrun(config, *flags):
    words = [
        part
        for name, value in {**OWN, "output": config.output}.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(SCRIPT),
            *words,
            "--rows",
            "baseline,poh",
            "--save-weights",
            *flags,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=config.output.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_lines(process, log, count):
    """Until the log has so many lines, or the program ends."""
    deadline = time.monotonic() + 600
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < count):
        assert time.monotonic() < deadline, "the program does not get on"
        time.sleep(0.001)


def curves(config):
    results = Results.load(config.output / "results.json")
    assert results.status == "complete"
    return {row.model: row.curve for row in results.rows}


def weights(config):
    return {path.name: load_file(path) for path in (config.output / "weights").iterdir()}


@pytest.mark.slow
def test_two_processes_train_as_one_also_after_an_interruption(tmp_path, started):
    pytest.importorskip("tyro")
    one, two = (tiny(output=tmp_path / name, rows=("baseline", "poh"), save_weights=True) for name in ("one", "two"))
    assert benchmark.run_benchmark(one) == 0
    # SIGTERM to torchrun stops all at one step; the same command goes on from there.
    process = torchrun(two)
    started.append(process)
    wait_for_lines(process, two.output / "logs" / "baseline-seed42.jsonl", 4)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=600)[0]
    assert "stopped by" in text and Results.load(two.output / "results.json").status == "interrupted", text
    process = torchrun(two, "--resume")
    started.append(process)
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 0 and "going on after step" in text, text
    assert "in each of 2 processes" in text, text
    for line in ("trained in", "Plain transformer against", "files:\n"):  # the first alone speaks
        assert text.count(line) == (2 if line == "trained in" else 1), text
    expected, found = curves(one), curves(two)
    for name, curve in expected.items():
        assert [point["step"] for point in curve] == [point["step"] for point in found[name]] == list(range(1, 25))
        for a, b in zip(curve, found[name], strict=True):
            assert (a["routing_entropy"] is None) == (b["routing_entropy"] is None) == (name == "baseline")
            for key in ("loss", "cross_entropy", *(("routing_entropy",) if name == "poh" else ())):
                assert b[key] == pytest.approx(a[key], rel=2e-4), (name, a["step"], key)
        assert curve[-1]["loss"] < 0.95 * curve[0]["loss"]
    # Only the first wrote: each step stands in the log once.
    log = (two.output / "logs" / "poh-seed42.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, 25))
    with pytest.raises(ConfigError, match="processes was 2, not None"):
        benchmark.run_benchmark(dataclasses.replace(two, resume=True))


@pytest.mark.slow
@pytest.mark.release
def test_two_processes_end_with_the_same_weights_whether_interrupted_or_not(tmp_path, started):
    pytest.importorskip("tyro")
    straight, stopped = (
        tiny(output=tmp_path / name, rows=("baseline", "poh"), save_weights=True) for name in ("a", "b")
    )
    for config, flags, interrupt in ((straight, (), False), (stopped, (), True), (stopped, ("--resume",), False)):
        process = torchrun(config, *flags)
        started.append(process)
        if interrupt:
            wait_for_lines(process, config.output / "logs" / "baseline-seed42.jsonl", 4)
            process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=600)[0]
        assert interrupt or process.returncode == 0, text
    assert "going on after step" in text
    again, whole = weights(stopped), weights(straight)
    assert again.keys() == whole.keys() and len(again) == 2
    for name in again:
        assert all(torch.equal(again[name][key], whole[name][key]) for key in whole[name])


class _OfTwo(Workers):
    """The first of two processes, of which the other was asked to stop."""

    def agree(self, wish):
        return True

    def collect(self, item):
        return [item, Interrupted("the death of torchrun")]


def test_the_first_says_why_another_process_was_asked_to_stop():
    saved = []
    trainer = SimpleNamespace(check=lambda: None, workers=_OfTwo(2), save=lambda: saved.append(True))
    with pytest.raises(Interrupted, match="the death of torchrun"):
        loop._Trainer.stop_if_asked(trainer)
    assert saved == [True]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "getppid"), reason="a process learns that it is an orphan from getppid")
def test_the_processes_of_a_killed_torchrun_stop_with_a_checkpoint_and_free_the_folder(tmp_path, started):
    config = tiny(output=tmp_path / "run", rows=("baseline", "poh"), epochs=4000)
    process = torchrun(config, "--epochs", "4000")
    started.append(process)
    wait_for_lines(process, config.output / "logs" / "baseline-seed42.jsonl", 10)
    assert process.poll() is None and run_folder.in_use(config.output)
    process.kill()
    text = process.communicate(timeout=600)[0]  # until none of them is left that could write to its pipe
    assert "stopped by the death of torchrun; 0 rows are finished; the same command goes on from there" in text, text
    assert not run_folder.in_use(config.output)
    steps = [int(path.stem.removeprefix("step-")) for path in config.output.glob("checkpoints/baseline-seed42/*.pt")]
    assert max(steps) == (config.output / "logs" / "baseline-seed42.jsonl").read_bytes().count(b"\n")
    environment = Results.load(config.output / "results.json").environment
    found, *_ = run_folder.find_interrupted(dataclasses.replace(config, resume=True), environment)
    assert found == config.output
