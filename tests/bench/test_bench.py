"""The benchmark program: it refuses unequal variants, keeps its statistics straight, and writes what it says."""

import functools
import itertools
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from poh_ext.bench import __main__ as program
from poh_ext.bench import baselines, growth, machine
from poh_ext.bench.case import OURS, Case, close
from poh_ext.bench.timing import Spread, interleave, ratio

CPU = torch.device("cpu")


def test_ratio_is_taken_round_by_round():
    """A machine that slows down twofold half-way leaves the ratio exact; a ratio of medians would not be."""
    ours = [1.0, 1.0, 1.0, 2.0, 2.0]
    assert ratio([3 * t for t in ours], ours) == Spread(3.0, 3.0, 3.0)


def test_spread_is_numpys():
    values = [5.0, 1.0, 4.0, 2.0, 3.0, 10.0]
    assert Spread.of(values).p50 == np.median(values)
    assert Spread.of(values).p20 <= Spread.of(values).p50 <= Spread.of(values).p80


def test_rounds_are_interleaved_and_equally_many():
    order = []
    times = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, seconds=0.0, min_rounds=6)
    assert len(times["a"]) == len(times["b"]) == 6
    assert all(t > 0 and math.isfinite(t) for t in times["a"])
    switches = sum(x != y for x, y in itertools.pairwise(order))
    assert switches >= 6


@pytest.mark.parametrize("bad", [torch.tensor([1.0, 2.1]), torch.tensor([1.0, math.nan]), torch.ones(3)])
def test_unequal_results_are_never_timed(bad):
    case = Case("x", "case", {OURS: lambda: (torch.tensor([1.0, 2.0]),), "rival": lambda: (bad,)}, close(1e-3))
    with pytest.raises(AssertionError, match="case: rival and poh_ext disagree"):
        case.check()


def test_a_rival_that_cannot_run_is_reported():
    def broken():
        raise RuntimeError("needs a GPU")

    case = Case("x", "case", {OURS: lambda: (torch.ones(1),), "rival": broken})
    assert case.check() == {"rival": "RuntimeError: needs a GPU"}


@pytest.mark.parametrize("horizons", [1, 3])
def test_eager_baseline_is_the_plain_loop(horizons):
    """The two hand-written rivals agree with each other in float64, rows and padding included."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 9, 9, generator=generator, dtype=torch.float64)
    targets = torch.randint(9, (3, 7), generator=generator)
    targets[1, 5:] = -1
    options = {"horizons": horizons, "rows": targets, "label_smoothing": 0.1}
    torch.testing.assert_close(
        baselines.eager_cross_entropy(logits, targets, **options),
        baselines.per_horizon_cross_entropy(logits, targets, **options),
    )


def test_program_writes_its_record_and_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    record, picture = tmp_path / "a.json", tmp_path / "a.png"
    assert (
        program.main(
            [
                "--only",
                "routing",
                "--sizes",
                "tokens",
                "--seconds",
                "0.05",
                "--json",
                str(record),
                "--plot",
                str(picture),
            ]
        )
        == 0
    )
    case = json.loads(record.read_text())["cases"][0]
    assert case["variants"]["eager"]["speedup_of_ours"]["p50"] > 0
    assert case["variants"][OURS]["speedup_of_ours"]["p50"] == 1.0
    assert picture.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr()
    assert "route [4608, 6]" in said.out and max(len(line) for line in said.out.splitlines()) <= 110
    told = said.err.splitlines()  # before the figures
    assert told[0] == "timing: how fast the machine copies and multiplies matrices"
    assert told[1].startswith("timing: 1 of 1, routing tokens (after ")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "los"], "unknown group 'los'"),
        (["--seconds", "0"], "--seconds: must be positive"),
        (["--limit", "inf"], "--limit: must be positive and finite, got inf"),
        (["--device", "nowhere"], "--device nowhere: Expected one of cpu"),
        (["--device", "meta"], "--device meta: torch cannot compute in float32 there (Tensor.item() cannot be"),
        (["--device", "fpga", "--dtype", "float16"], "--device fpga: torch cannot compute in float16 there (Could not"),
        (["--json", "no/such/folder/x.json"], "its folder does not exist"),
        (["--only", "loss", "--sizes", "huge", "--list"], "no such size"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        program.main(arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and message in said and said.count("\n") == 1 and len(said) < 420


@pytest.mark.parametrize(
    "device",
    [
        name
        for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        if not there
    ],
)
def test_a_device_that_is_not_there_is_one_line(device, capsys):
    with pytest.raises(SystemExit) as stop:
        program.main(["--device", device])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"python -m poh_ext.bench: error: --device {device}: torch cannot compute in float32 there")


def test_a_backend_is_served_by_an_interpreter_of_its_own_or_refused_in_a_line():
    run = functools.partial(subprocess.run, capture_output=True, text=True)
    words = [sys.executable, "-m", "poh_ext.bench", "--only", "routing", "--list", "--backend"]
    done = run([*words, "reference"], env={**os.environ, "POH_EXT_BACKEND": "auto"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "routing: tokens\nrouting: wide\n", "")
    if torch.cuda.is_available():
        pytest.skip("CUDA is there")
    done = run([*words, "cuda"])
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("python -m poh_ext.bench: error: --backend cuda: POH_EXT_BACKEND=cuda was asked for")


def test_a_plot_without_matplotlib_is_refused_before_any_work(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for main in (program.main, growth.main):
        with pytest.raises(SystemExit) as stop:
            main(["--plot", "x.png"])
        assert stop.value.code == 2 and "needs matplotlib" in capsys.readouterr().err


def test_a_case_without_its_package_is_told_and_the_others_are_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    record = tmp_path / "a.json"
    assert (
        program.main(
            ["--only", "passes,routing", "--sizes", "baseline30,tokens", "--seconds", "0.05", "--json", str(record)]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "passes baseline30\n  not timed: this part of poh_ext needs safetensors" in out
    assert [case["group"] for case in json.loads(record.read_text())["cases"]] == ["routing"]


def test_the_start_of_the_process_counts():
    started = machine.seconds_since_start()
    code = "import time; time.sleep(0.5); from poh_ext.bench.machine import seconds_since_start as s; print(s())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    passed = machine.seconds_since_start() - started
    if sys.platform == "linux":
        assert 0.49 <= float(done.stdout) <= passed + 0.02  # it counts in hundredths
    else:
        assert (started, float(done.stdout)) == (0.0, 0.0)


def test_every_group_lists_cases():
    done = subprocess.run([sys.executable, "-m", "poh_ext.bench", "--list"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for group in program.GROUPS:
        assert f"{group}: " in done.stdout


@pytest.mark.parametrize("power", [0.0, 1.0, -1.0, 2.0])
def test_growth_finds_the_power_law_behind_a_fixed_cost(power):
    sizes = [2, 4, 8, 16, 32, 64]
    assert growth.slope(sizes, [3.0 * s**power for s in sizes]) == pytest.approx(power)
    assert growth.slope(sizes, [s + 0.01 for s in sizes]) == pytest.approx(1.0, abs=0.01)
    assert growth.slope([1, 2], [4.0, 2.0]) == pytest.approx(-1.0)


def test_growth_steps_are_the_sizes_they_say():
    loss, gradient = growth.loss_step(B=2, N=300, V=7, K=3)()
    assert loss.dim() == 0 and gradient.shape == (2, 300, 7)
    assert (gradient.abs().sum(-1) > 0).sum(1).max() <= growth.READ


def test_the_compiler_keeps_a_cache_for_each_cpu_level(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    folders = set()
    for capability in ("AVX2", "AVX512"):
        program.compile_cache(capability)
        folders.add(os.environ.pop("TORCHINDUCTOR_CACHE_DIR"))
    assert len(folders) == 2
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "chosen")
    program.compile_cache("AVX2")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "chosen"
