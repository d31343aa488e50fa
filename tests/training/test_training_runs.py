"""The command line of the benchmark, end to end on tiny mazes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from poh_ext.results import Results
from poh_ext.training import benchmark, cli, loop, progress, trial
from poh_ext.training.config import Benchmark12x12Config
from tests.cases.training import TINY_FLAGS, needs_tyro, tiny

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "run_12x12_8m_benchmark.py"
pytestmark = pytest.mark.usefixtures("one_thread")


@needs_tyro
@pytest.mark.slow
def test_a_run_end_to_end_and_again(tmp_path, capsys):
    flags = [*TINY_FLAGS, "--looped-baseline", "--seeds", "2", "--output", str(tmp_path / "run")]
    assert cli.main(Benchmark12x12Config, flags) == 0
    out = capsys.readouterr().out
    assert "GFLOP" in out and "results.json" in out
    results = Results.load(tmp_path / "run" / "results.json")
    assert results.status == "complete" and results.config["seeds"] == 2
    assert results.command.startswith("python experiments/run_12x12_8m_benchmark.py ") and "--output" in results.command
    assert results.environment["precision"] == "float32" and results.environment["device"] == "cpu"
    names = [
        ("random", False),
        ("baseline", False),
        ("poh", False),
        ("baseline", True),
        ("poh", True),
        ("looped_baseline", True),
    ]
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
@pytest.mark.usefixtures("blank_pictures")
def test_as_published_run_reports_its_caveat(tmp_path):
    flags = [*TINY_FLAGS, "--protocol", "as-published", "--train", "20", "--test", "20", "--output", str(tmp_path)]
    assert cli.main(Benchmark12x12Config, flags) == 0
    results = Results.load(tmp_path / "results.json")
    assert results.protocol == "as-published"
    report = (tmp_path / "report.md").read_text()
    assert "all get a grid without walls" in report and "57.89" in report
    assert [row.model for row in results.rows[:3]] == ["random", "random_table", "beeline"]
    assert all(results.rows[2].optimal) and not any(row.exact for row in results.rows)


@pytest.mark.slow
def test_the_script_runs_from_a_checkout(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *TINY_FLAGS, "--rows", "baseline", "--output", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
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


@pytest.mark.usefixtures("blank_pictures")
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
    with progress.StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(progress.Interrupted, match="SIGINT"):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before
