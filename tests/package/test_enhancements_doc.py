"""experiments/TRAINING_ENHANCEMENTS.md cannot drift from the programs: flags, defaults, examples."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from poh_ext.training import cli
from poh_ext.training.cli import PROGRAMS
from poh_ext.training.config import Benchmark12x12Config, ScalingBenchmarkConfig

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "experiments" / "TRAINING_ENHANCEMENTS.md").read_text()
ROWS = dict(re.findall(r"^\| `(--[\w-]+)` \|(.*)\|$", TEXT, re.M))


def defaults(config_type):
    """flag -> default, of every flag that the program has."""
    return {f"--{f.name.replace('_', '-')}": getattr(config_type(), f.name) for f in dataclasses.fields(config_type)}


@pytest.mark.parametrize("column, config_type", list(enumerate(PROGRAMS.values())), ids=["12x12", "scaling"])
def test_every_flag_has_its_row_and_its_default(column, config_type):
    known = defaults(config_type)
    stated = {flag: [cell.strip() for cell in rest.split("|")][column] for flag, rest in ROWS.items()}
    assert set(known) == {flag for flag, cell in stated.items() if cell != "-"}
    for flag, value in known.items():
        cell = stated[flag]
        if isinstance(value, bool):
            assert cell == ("on" if value else "off"), flag
        elif isinstance(value, int | float):
            assert float(cell) == value, flag
        else:
            assert cell == (" ".join(value) if isinstance(value, tuple) else str(value)), flag


def test_every_flag_that_the_text_mentions_exists():
    known = set().union(*map(defaults, PROGRAMS.values()))
    mentioned = set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", TEXT))
    others = {"--flag", "--no-flag", "--logdir", "--nproc-per-node"}  # the text's own, of tensorboard and of torchrun
    assert mentioned - known <= others
    assert len(mentioned) > 30


def test_the_examples_are_runnable_and_are_the_three_of_the_issue():
    pytest.importorskip("tyro")
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.S)
    basic, full, scaling = (shlex.split(block.replace("\\\n", " ")) for block in blocks)
    for words, name in (
        (basic, "run_12x12_8m_benchmark.py"),
        (full, "run_12x12_8m_benchmark.py"),
        (scaling, "parameter_scaling_benchmark.py"),
    ):
        assert words[:2] == ["python", f"experiments/{name}"] and (ROOT / words[1]).exists()
        cli.parse(PROGRAMS[name], words[2:]).check()
    results = Path("experiments/results")
    expected = Benchmark12x12Config(test=80, cpu=True, validity_mask=True)
    assert cli.parse(Benchmark12x12Config, basic[2:]) == expected
    expected = dataclasses.replace(expected, maze_enc=True, output=results / "benchmark_12x12_8m_full")
    assert cli.parse(Benchmark12x12Config, full[2:]) == expected
    expected = ScalingBenchmarkConfig(
        test=100, validity_mask=True, ent_anneal=True, output=results / "parameter_scaling_enhanced"
    )
    assert cli.parse(ScalingBenchmarkConfig, scaling[2:]) == expected


def test_on_and_off_are_written_as_said():
    pytest.importorskip("tyro")
    config = cli.parse(ScalingBenchmarkConfig, ["--no-maze-enc", "--validity-mask"])
    assert not config.maze_enc and config.validity_mask
