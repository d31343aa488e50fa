"""The options of the benchmarks, their schedule and the output folder."""

import dataclasses
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from poh_ext.training import benchmark, cli, run_folder, workers
from poh_ext.training.config import Benchmark12x12Config, ConfigError, ScalingBenchmarkConfig, path_cells
from poh_ext.training.data import make_data
from poh_ext.training.loop import learning_rate, peak_reached, warmup_warning
from poh_ext.training.run_folder import prepare_output
from tests.cases.training import needs_tyro, tiny, train

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("warmup", [0, 10])
def test_as_published_each_step_has_the_rate_of_the_one_before(warmup):
    how = {"total_steps": 100, "peak": 1e-3, "warmup_steps": warmup}
    rates = [learning_rate(s, **how, from_zero=True) for s in range(100)]
    assert rates[0] == (0.0 if warmup else 1e-3)
    assert rates[1:] == [learning_rate(s, **how) for s in range(99)]
    assert peak_reached(total_steps=300, peak=1e-3, warmup_steps=500, from_zero=True) == pytest.approx(5.98e-4)
    assert "0.000598" in warmup_warning(total_steps=300, peak=1e-3, warmup_steps=500, from_zero=True)
    assert warmup_warning(total_steps=500, peak=1e-3, warmup_steps=500, from_zero=True) is not None


def test_the_protocol_decides_the_rates_of_a_training():
    for name, first in (("default", 0.5e-3), ("as-published", 0.0)):
        config = tiny(protocol=name, train=20, epochs=1, batch_size=8)
        assert train(config)[1].curve[0]["lr"] == pytest.approx(first)


def test_a_warmup_that_never_ends_is_told():
    text = warmup_warning(total_steps=390, peak=1e-3, warmup_steps=500)
    assert "500" in text and "390" in text and "0.00078" in text
    assert peak_reached(total_steps=390, peak=1e-3, warmup_steps=500) == pytest.approx(7.8e-4)
    assert learning_rate(389, total_steps=390, peak=1e-3, warmup_steps=500) == pytest.approx(7.8e-4)
    assert warmup_warning(total_steps=500, peak=1e-3, warmup_steps=500) is None


# -- options ----------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_document():
    small, scaling = Benchmark12x12Config(), ScalingBenchmarkConfig()
    expected = {
        "lr": (1e-3, 1e-3),
        "label_smoothing": (0.1, 0.1),
        "warmup_steps": (500, 2000),
        "multi_horizon": (1, 3),
        "validity_mask": (False, False),
        "route_ent_weight": (0.0, 5e-4),
        "ent_anneal": (False, False),
        "maze_enc": (False, True),
        "test": (1000, 1000),
    }
    for name, values in expected.items():
        assert (getattr(small, name), getattr(scaling, name)) == values, name


@needs_tyro
def test_both_usage_examples_parse():
    basic = (
        "--train 400 --test 80 --epochs 30 --R 4 --T 4 --cpu --lr 1e-3 --label-smoothing 0.1 --warmup-steps 500 "
        "--multi-horizon 1 --validity-mask --output experiments/results/benchmark_12x12_8m"
    )
    full = basic.replace("--validity-mask", "--maze-enc --validity-mask --route-ent-weight 0")
    a, b = (cli.parse(Benchmark12x12Config, text.split()) for text in (basic, full))
    assert a == Benchmark12x12Config(test=80, cpu=True, validity_mask=True)
    assert b == dataclasses.replace(a, maze_enc=True)
    for config in (a, b):
        config.check()


def test_the_least_path_is_given_in_cells_or_as_a_share():
    assert path_cells(0.35, 144) == 51 and path_cells(0, 9) == path_cells(1.0, 2) == path_cells(2, 9) == 2
    assert [path_cells(share, 100) for share in (0.07, 0.14, 0.28, 0.55, 0.56, 0.551)] == [7, 14, 28, 55, 56, 56]
    assert all(path_cells(part / n, n) == part for n in range(2, 145) for part in range(2, n + 1))
    assert all(path_cells(part / 100, 100 * n) == part * n for n in range(2, 145) for part in range(1, 101))
    for size in range(2, 40):
        cells = Benchmark12x12Config(maze_size=size, min_path=size)
        assert cells.min_path_cells == size and cells.min_path_at(2 * size) == 4 * size
    with_both = Benchmark12x12Config(min_path=50), Benchmark12x12Config(min_path=50 / 144)
    assert [config.min_path_at(5) for config in with_both] == [9, 9]
    assert [config.min_path_cells for config in with_both] == [50, 50]
    for size in range(2, 40):  # no cell more by rounding, as of `path_cells`
        shares = [part / 100 for part in range(1, 101)]
        assert [Benchmark12x12Config(min_path=share).min_path_at(size) for share in shares] == [
            path_cells(share, size**2) for share in shares
        ]
        obstacles, open_grid = Benchmark12x12Config(min_path=0.55), Benchmark12x12Config(min_path=1.0)
        assert obstacles.min_path_at(size, "obstacles") == max(2, -(-22 * size**2 // 100))
        corners = -(-8 * (2 * size - 1) // 10)
        assert open_grid.min_path_at(size, "open") == max(2, min(-(-4 * size**2 // 10), corners))
    # Obstacles make short paths; of an open grid the longest is that from corner to corner, 59 cells at 30x30.
    kinds = ("braid", "percolation", "obstacles", "open")
    assert [with_both[1].min_path_at(12, kind) for kind in kinds] == [50, 20, 20, 19]
    assert [with_both[1].min_path_at(30, kind) for kind in kinds] == [313, 125, 125, 48]


@pytest.mark.parametrize(
    "algorithm, words",
    [
        ("dfs", "50 cells or more"),
        ("dfs,braid", "50 cells or more"),
        ("obstacles", "20 cells or more"),
        ("dfs,obstacles,braid,percolation,open", "50 (dfs, braid) or 20 (obstacles, percolation) or 19 (open) cells"),
    ],
)
def test_the_plan_tells_the_least_path_of_each_kind(algorithm, words, capsys):
    config = tiny(algorithm=algorithm, maze_size=12, min_path=50, rows=("random",), test=20, dry_run=True)
    assert benchmark.run_benchmark(config) == 0
    assert f"test mazes of 12x12, shortest paths of {words}" in capsys.readouterr().out
    lengths = [make_data(config, seed).test.length.min() for seed in range(3)]
    assert min(config.min_path_at(12, kind) for kind in config.kinds) <= min(lengths)


def test_fields_are_in_the_order_of_the_help():
    for config_type in (Benchmark12x12Config, ScalingBenchmarkConfig):
        names = [field.name for field in dataclasses.fields(config_type)]
        assert names[:3] == ["train", "test", "epochs"] and len(names) == len(set(names))
        assert set(names) == set(dataclasses.asdict(config_type()))
        assert dataclasses.replace(config_type(), epochs=3) == config_type(epochs=3) != config_type()


@needs_tyro
def test_quick_changes_defaults_and_explicit_flags_win():
    quick = cli.parse(Benchmark12x12Config, ["--quick", "--epochs", "77"])
    preset = Benchmark12x12Config.quick_defaults
    assert quick.quick and quick.epochs == 77 and quick.d_model == preset["d_model"]
    quick.check()
    for word in ("--no-quick", "--no_quick"):
        assert cli.parse(Benchmark12x12Config, ["--quick", word]) == Benchmark12x12Config()
    assert cli.parse(Benchmark12x12Config, ["--no-quick", "--quick", "--epochs", "77"]) == quick  # the last counts
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


@pytest.mark.parametrize(
    "changes, words",
    [
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
        ({"min_path": math.inf}, "--min-path inf: must be from 0 to 1, a share of the maze's cells, or a whole number"),
        ({"min_path": 26}, "--min-path 26: a maze of 5x5 has 25 cells"),
        ({"n_heads": 5}, "--n-heads 5: must divide --d-model 64"),
        ({"d_model": 8, "n_heads": 1}, "--d-model 8: no PoH planner"),
        ({"rows": ()}, "--rows"),
        (
            {"rows": ("poh_solver", "looped_solver"), "protocol": "as-published"},
            "--rows poh_solver looped_solver contradicts --protocol as-published, which has none of these rows",
        ),
        ({"rows": ("transformer",)}, "--rows transformer"),
        ({"protocol": "other"}, "--protocol other"),
        ({"decode": "beam"}, "--decode beam"),
        ({"algorithm": "maze"}, "--algorithm maze"),
        ({"cpu": True, "device": "cuda"}, "--cpu contradicts --device cuda"),
        ({"protocol": "as-published", "algorithm": "wilson"}, "contradicts --protocol as-published"),
    ],
)
def test_bad_options_are_named_before_any_work(changes, words, tmp_path):
    with pytest.raises(ConfigError) as error:
        benchmark.run_benchmark(tiny(output=tmp_path / "out", **changes))
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_absent_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"--device cuda: torch .* here: .*cpu"):
        workers.choose_device(tiny(device="cuda"))


def test_device_order_is_cuda_mps_cpu(monkeypatch):
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert workers.choose_device(tiny(device="auto")).type == expected
        assert workers.choose_device(tiny(device="auto", cpu=True)).type == "cpu"


def test_precision_follows_the_hardware(monkeypatch):
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(workers, "cpu_has_bfloat16", lambda there=native: there)
        assert workers.choose_precision(tiny(precision="auto"), torch.device("cpu")) == expected
    assert workers.choose_precision(tiny(precision="bfloat16"), torch.device("cpu")) == "bfloat16"


def test_a_cpu_whose_products_may_not_use_bfloat16_gets_float32():
    code = (
        "import torch; torch.cpu._is_avx512_bf16_supported = lambda: True\n"
        "from poh_ext.training.workers import cpu_has_bfloat16; print(cpu_has_bfloat16())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})  # fmt: skip
    assert done.stdout.strip() == "False"


def test_options_that_do_nothing_are_told():
    assert "--ent-anneal" in tiny(ent_anneal=True).ineffective()[0]
    assert "--route-ent-weight" in tiny(route_ent_weight=0.1, rows=("baseline",)).ineffective()[0]
    assert tiny(route_ent_weight=0.1, ent_anneal=True).ineffective() == []
    assert "--validation does nothing without --validate-every" in tiny(validation=7).ineffective()[0]
    assert "--validate-every does nothing" in tiny(validate_every=1, rows=("random", "untrained_poh")).ineffective()[0]
    assert "only the end of the training" in tiny(validate_every=50, epochs=49).ineffective()[0]
    assert tiny(validate_every=1, validation=7).ineffective() == []


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
    run_folder.remove_own(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["notes.txt"]


def test_an_output_without_a_name_is_resolved(tmp_path, monkeypatch):
    here = tmp_path / "here" / "below"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for name in ("", "."):
        assert prepare_output(Path(name), overwrite=False) == here  # empty: taken
    assert prepare_output(Path(".."), overwrite=False) == tmp_path / "here-2"
    assert prepare_output(Path("../.."), overwrite=True) == tmp_path
    (here / "notes.txt").write_text("mine")
    for name in ("", ".", "../below"):
        assert prepare_output(Path(name), overwrite=False).resolve() == here.with_name("below-2")


@needs_tyro
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
@pytest.mark.parametrize("flag", ["--cpu", "--resume", "--overwrite"])
@pytest.mark.parametrize("name", ["~nobody_/x", "/", "n" * 300, "file", "file/x", "/proc/x"])
def test_an_output_that_is_none_is_one_line_and_code_2(name, flag, dry, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(benchmark, "remove_own", lambda folder: pytest.fail(f"would empty {folder}"))
    if (name, flag) == ("/", "--overwrite"):
        return  # it can be written, by root
    assert cli.main(Benchmark12x12Config, ["--rows", "random", "--output", name, flag, *dry]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --output " if flag != "--resume" or name[0] in "~n" else "error: --resume: ")
    assert error.count("\n") == 1


def test_an_unwritable_output_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/poh")):
        with pytest.raises(ConfigError, match=r"--output .*cannot be written"):
            prepare_output(folder, overwrite=False)
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare_output(tmp_path / "file", overwrite=True)
