"""`poh-ext`: its commands, the help of each, what is said of a mistyped one, and the script that is installed."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import poh_ext
from poh_ext.commands import program
from poh_ext.results import Results
from tests.cases.training import TINY_FLAGS, needs_tyro

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [*program.COMMANDS, "maze make", "maze convert", "maze print", "solve evaluate"]


def run(words, capsys, name="poh-ext"):
    """(exit code, standard output, standard error) of `poh-ext words`."""
    try:
        code = program.main(words if isinstance(words, list) else words.split(), program=name)
    except SystemExit as stop:
        code = stop.code
    return (code, *capsys.readouterr())


def test_help_lists_every_command(capsys):
    listed = run("--help", capsys)
    assert listed == run("-h", capsys) == run([], capsys) and listed[0] == 0 and listed[2] == ""
    for name in ("info", "maze", "solve", "evaluate", "bench", "benchmark", "scaling"):
        assert re.search(rf"^  {name} +\w", listed[1], re.M), name
    assert listed[1].startswith("usage: poh-ext COMMAND")
    assert max(map(len, listed[1].splitlines())) <= 100


def test_version(capsys):
    assert run("--version", capsys) == (0, f"poh_ext {poh_ext.__version__}\n", "")


@needs_tyro
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_without_private_names(command, capsys):
    code, said, wrong = run(f"{command} --help", capsys)
    assert code == 0 and wrong == "" and said.startswith(f"usage: poh-ext {command}")
    assert not re.search(r"(^|\s)_\w|<locals>|<lambda>|experiments/\w+\.py", said), command


@needs_tyro
@pytest.mark.parametrize("command, first", [("benchmark", "--train"), ("scaling", "--train")])
def test_the_benchmarks_help_opens_with_what_is_set_first(command, first, capsys):
    _, said, _ = run(f"{command} --help", capsys)
    plain = re.sub(r"\x1b\[[\d;]*m", "", said)
    flags = list(dict.fromkeys(re.findall(r"^[^\w-]*(--[a-zA-Z][\w-]*)", plain, re.M)))
    assert flags[:3] == [first, "--test", "--epochs"]
    assert flags.index("--d-model" if command == "benchmark" else "--models") < flags.index("--valid-heads")
    assert flags.index("--valid-heads") < flags.index("--supervision")


@pytest.mark.parametrize("by, command", [("", "poh-ext"), ("2", "torchrun --nproc-per-node 2 -m poh_ext")])
def test_a_benchmark_records_the_command_that_reproduces_it(by, command, monkeypatch):
    words, seen = ["benchmark", "--quick", "--cpu"], []
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE") if by else ():
        monkeypatch.setenv(name, by)
    monkeypatch.setattr("sys.argv", ["/lib/poh_ext/__main__.py", *words])
    monkeypatch.setattr("poh_ext.training.benchmark.run_benchmark", lambda config, command: seen.append(command) or 0)
    assert program.main(words) == 0
    assert (seen[0] or Results("a run", "default").command) == f"{command} benchmark --quick --cpu"


@pytest.mark.parametrize(
    "words, said",
    [
        ("slove", "unknown command 'slove'; did you mean solve? commands: info, maze, solve, "),
        ("benchmrak --quick", "did you mean benchmark?"),
        ("xyz", "unknown command 'xyz'; commands: info, maze"),
        ("--brief", "unknown option '--brief'; commands: info"),
        ("maze mkae", "unknown command 'mkae'; did you mean make? commands: make, convert, print"),
    ],
)
def test_a_mistyped_command_lists_the_commands(words, said, capsys):
    code, out, wrong = run(words, capsys)
    assert code == 2 and out == "" and said in wrong and wrong.count("\n") == 1
    assert wrong.startswith("poh-ext maze: error: " if "maze" in words else "poh-ext: error: ")


def test_info_is_what_the_module_prints_without_a_command(capsys):
    code, out, _ = run("info --brief", capsys)
    assert code == 0 and out.startswith(f"poh_ext {poh_ext.__version__}: ") and out.count("\n") == 1
    code, out, _ = run("info", capsys)
    assert code == 0 and out.startswith("requested: ") and "cpu: " in out
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words, expected in (([], "requested: "), (["--brief"], "poh_ext "), (["info", "--brief"], "poh_ext ")):
        command = [sys.executable, "-m", "poh_ext", *words]
        assert subprocess.run(command, env=environment, text=True, capture_output=True).stdout.startswith(expected)


def test_bench_has_the_name_that_it_is_called_by(capsys):
    code, out, _ = run("bench --only routing --list", capsys)
    assert (code, out) == (0, "routing: tokens\nrouting: wide\n")
    assert run("bench --seconds soon", capsys)[2] == (
        "poh-ext bench: error: argument --seconds: must be a number (seconds), positive and finite, got 'soon'\n"
    )


@needs_tyro
@pytest.mark.parametrize("command", ["benchmark", "scaling"])
def test_the_benchmarks_plan(command, capsys, tmp_path):
    size = "--models tiny --maze-size 5 --train 8 --test 6 --R 2".split()
    words = [command, *(TINY_FLAGS if command == "benchmark" else size), "--dry-run", "--output", str(tmp_path / "run")]
    code, out, _ = run(words, capsys)
    assert code == 0 and "on 5x5 mazes" in out and not (tmp_path / "run").exists()
    code, _, wrong = run([command, "--lr", "-1"], capsys)
    assert code == 2 and wrong == "error: --lr -1.0: must be a finite number above 0\n"


@pytest.mark.parametrize(
    "words", ["--help", "info", "maze print --size 4", "maze make --output /dev/null --format ascii"]
)
def test_what_needs_no_extra_runs_without_one(words):
    extras = "tyro", "tqdm", "safetensors", "matplotlib", "PIL", "scipy", "jinja2"
    code = f"""
import sys
sys.modules.update(dict.fromkeys({extras}))
from poh_ext.commands.program import main
sys.exit(main({words.split()}))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, env=environment)
    assert done.returncode == 0 and done.stdout + done.stderr, done


# -- the script that is installed -------------------------------------------------------------------------------


def entry():
    """ "module:function" of the console script poh-ext, as pyproject.toml declares it."""
    scripts = re.search(r"^\[project\.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    return dict(re.findall(r'^([\w-]+) = "(.*)"$', scripts[1], re.M))["poh-ext"]


def test_the_console_script_is_the_program():
    module, function = entry().split(":")
    assert getattr(importlib.import_module(module), function) is program.main


def test_the_console_script_runs_and_says_in_a_line_what_backend_is_refused(tmp_path):
    module, function = entry().split(":")
    script = tmp_path / "poh-ext"  # as pip writes it
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")

    def call(*words, **changes):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
        return subprocess.run([sys.executable, script, *words], text=True, capture_output=True, env=environment)

    done = call("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"poh_ext {poh_ext.__version__}\n", "")
    done = call("solve", "--size", "x")
    assert done.returncode == 2 and done.stderr.startswith("poh-ext solve: error: argument --size: ")
    done = call("solve", POH_EXT_BACKEND="best")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: POH_EXT_BACKEND='best' is unknown; accepted: auto, reference, cpu, cuda\n"
