"""Every command line: bad options are one line before any work, an end is never a traceback."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from poh_ext import _program
from poh_ext.bench import __main__ as bench
from poh_ext.bench import growth
from poh_ext.commands import evaluate, solve
from poh_ext.training import benchmark
from poh_ext.training import cli as training
from poh_ext.training.config import Benchmark12x12Config
from tests.cases.training import TINY_FLAGS, needs_tyro, tiny

ROOT = Path(__file__).resolve().parents[2]
QUICK_TO_RUN = ["solve", "evaluate", "--mazes", "4:3:2", "5:3:2", "--passes", "1"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def program(*words, **options):
    """A program of the package in a process of its own."""
    command = [sys.executable, *([] if words[0].endswith(".py") else ["-m"]), *map(str, words)]
    return subprocess.run(
        command,
        timeout=300,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        **{"text": True, "stdout": subprocess.PIPE, **options},
    )


def work(*_, **__):
    pytest.fail("work before the check")


def test_a_path_that_is_no_utf_8_is_printed(capsys):
    assert _program.run(lambda: print("caf\udce9") or 0) == 0
    assert capsys.readouterr().out == r"caf\udce9" + "\n"


# -- output files -----------------------------------------------------------------------------------------------

PROGRAMS = {  # name -> (main, where its work begins, its options for files)
    "solve": (solve.main, (solve, "load"), ("--png", "--gif")),
    "solve evaluate": (lambda words: solve.main(["evaluate", *words]), (evaluate, "load"), ("--json", "--plot")),
    "bench": (bench.main, (bench, "_run"), ("--json", "--plot")),
    "bench.growth": (growth.main, (growth, "sweep"), ("--json", "--plot")),
}
OPTIONS = [(name, flag) for name, (*_, flags) in PROGRAMS.items() for flag in flags]


@pytest.fixture
def refused(capsys, monkeypatch):
    """What a program says on standard error as it refuses its options before any work: one line."""

    def run(name, *words):
        main, (module, function), _ = PROGRAMS[name]
        monkeypatch.setattr(module, function, work)
        with pytest.raises(SystemExit) as stop:
            main(list(map(str, words)))
        said = capsys.readouterr()
        assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1
        return said.err

    return run


@pytest.mark.parametrize("name, flag", OPTIONS)
def test_a_folder_in_place_of_a_file_is_refused(name, flag, refused, tmp_path):
    expected = f"python -m poh_ext{'' if '.' in name or name == 'bench' else ' '}"
    for path in (tmp_path, f"{tmp_path}/", f"{tmp_path}/new/"):
        said = refused(name, flag, path)
        assert f"error: argument {flag}: {path} cannot be written: it is a folder" in said
        assert said.startswith(expected)
    assert "its folder does not exist" in refused(name, flag, tmp_path / "no" / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name, flag", [option for option in OPTIONS if option[1] != "--json"])
def test_another_suffix_than_that_of_the_format_is_refused(name, flag, refused, tmp_path):
    suffix = ".gif" if flag == "--gif" else ".png"
    for wrong in ("maze.jpg", "maze.JPEG", "maze.png.txt"):
        said = refused(name, flag, tmp_path / wrong)
        assert f"argument {flag}: {tmp_path / wrong} cannot be written: the name must end in {suffix}" in said
    parser = _program.Parser()
    parser.add_output(flag, help="", suffix=suffix)
    for right in (f"maze{suffix}", f"maze{suffix.upper()}", "maze", os.devnull):
        assert parser.parse_args([flag, str(tmp_path / right)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_file_for_two_options_is_refused(name, refused, tmp_path):
    one, two = PROGRAMS[name][2]
    (tmp_path / "link").symlink_to("a")
    said = refused(name, one, tmp_path / "a", two, tmp_path / "link")
    assert f"{one} and {two} name the same file" in said


def test_two_options_may_lead_nowhere(monkeypatch):
    monkeypatch.setattr(growth, "sweep", lambda seconds: iter(()))
    monkeypatch.setattr(growth, "draw", lambda *_: None)
    monkeypatch.setattr(growth, "save_png", lambda *_: None)
    assert growth.main(["--json", os.devnull, "--plot", os.devnull]) == 0


@needs_tyro
@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda path: path.write_text(""), "it is no folder"),
        (lambda path: path.symlink_to("nothing"), "it is no folder"),
        (lambda path: os.mkfifo(path), "it is no folder"),
    ],
)
def test_an_output_that_is_no_folder_is_refused(make, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "make_data", work)
    make(tmp_path / "run")
    assert training.main(Benchmark12x12Config, [*TINY_FLAGS, "--output", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"error: --output {tmp_path / 'run'} cannot be written: {reason}\n"


def test_an_output_folder_with_something_in_the_way_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "make_data", work)
    (tmp_path / "logs").write_text("mine")
    with pytest.raises(benchmark.ConfigError, match="cannot be written: logs in it is no folder"):
        benchmark.run_benchmark(tiny(output=tmp_path, overwrite=True))
    (tmp_path / "logs").unlink()
    (tmp_path / "report.md").mkdir()
    with pytest.raises(benchmark.ConfigError, match=r"cannot be written: report\.md in it is a folder"):
        benchmark.run_benchmark(tiny(output=tmp_path, overwrite=True))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system with FIFOs")
def test_an_evaluation_gives_a_pipe_the_whole_and_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    done = program("poh_ext", *QUICK_TO_RUN, "--json", tmp_path / "pipe")
    assert done.returncode == 0, done.stderr
    reader.join(60)
    assert json.loads(got[0])["complete"] is True and len(json.loads(got[0])["sets"]) == 2
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="a system with descriptors as files")
@pytest.mark.parametrize("words, begins, ends, notes, piped", [
    ("maze make --size 4 --format ascii --output", b"+---+", b"---+\n", 1, False),
    ("maze convert {tmp}/m.txt --format ascii", b".#.\n", b".#.\n", 1, True),
    ("maze print --size 4 --png", b"\x89PNG", b"IEND\xaeB`\x82", 1, False),
    ("maze print --size 4 --svg", b"<svg", b"</svg>\n", 1, True),
    ("solve --size 4 --png", b"\x89PNG", b"IEND\xaeB`\x82", 3, True),
    ("evaluate --mazes 4:3:2 --passes 1 --json", b'{"format"', b"}\n", 5, False),
])  # fmt: skip
def test_standard_output_as_a_file_holds_nothing_else(words, begins, ends, notes, piped, tmp_path):
    if "--png" in words:
        pytest.importorskip("PIL.Image")
    (tmp_path / "m.txt").write_text(".#.\n")
    words = [*words.format(tmp=tmp_path).split(), "/dev/stdout"]
    with open(tmp_path / "out", "wb") as out:
        done = program("poh_ext", *words, text=False, stdout=subprocess.PIPE if piped else out)
    held = done.stdout if piped else (tmp_path / "out").read_bytes()
    assert done.returncode == 0 and held.startswith(begins) and held.endswith(ends), done.stderr
    assert b"wrote" not in held and done.stderr.count(b"\n") == notes


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
def test_a_disk_that_is_full_after_all_is_a_line(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    done = program("poh_ext", *QUICK_TO_RUN, "--json", tmp_path / "full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {tmp_path / 'full'}: No space left on device"
    assert "Traceback" not in done.stderr and (tmp_path / "full").is_symlink()
    with open("/dev/full", "w") as full:
        done = program("poh_ext", stdout=full)
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


# -- readers that leave, Ctrl-C ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["poh_ext"],
        ["poh_ext", "solve", "--size", "4"],
        ["poh_ext", *QUICK_TO_RUN],
        ["poh_ext.bench", "--list"],
        [str(ROOT / "experiments" / "run_12x12_8m_benchmark.py"), *TINY_FLAGS, "--dry-run"],
    ],
    ids=lambda words: " ".join(words[:3]).replace(str(ROOT), "").replace("/", " "),
)
def test_a_reader_that_leaves_ends_it_quietly(words):
    read, write = os.pipe()
    os.close(read)
    try:
        done = program(*words, stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (_program.READER_LEFT, "")


def test_without_any_standard_output_it_ends_as_well():
    done = subprocess.run(
        f"{sys.executable} -m poh_ext >&-", shell=True, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_is_a_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert _program.run(interrupted) == 130 and capsys.readouterr().err == "stopped\n"


def test_what_is_a_fault_of_the_program_is_shown_in_full():
    def broken():
        raise BrokenPipeError(32, "of another pipe")

    with pytest.raises(BrokenPipeError, match="of another pipe"):
        _program.run(broken)


# -- backends and devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["poh_ext"],
        ["poh_ext", "solve"],
        ["poh_ext.bench", "--list"],
        [str(ROOT / "experiments" / "run_12x12_8m_benchmark.py"), "--dry-run"],
        [str(ROOT / "experiments" / "parameter_scaling_benchmark.py"), "--dry-run"],
    ],
    ids=lambda words: Path(words[0]).name,
)
def test_a_backend_that_is_refused_is_a_line(words, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "POH_EXT_BACKEND", "best")
    done = program(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: POH_EXT_BACKEND='best' is unknown; accepted: auto, reference, cpu, cuda\n"


def test_a_program_that_imports_poh_ext_gets_the_error_itself(monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "POH_EXT_BACKEND", "best")
    done = subprocess.run([sys.executable, "-c", "import poh_ext"], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ImportError: POH_EXT_BACKEND='best'" in done.stderr
