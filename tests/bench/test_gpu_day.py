"""`make gpu` where there is no GPU: its plan, its refusals, how its stages end, and the page that it writes."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bench import gpu_day, gpu_kernels, gpu_report
from bench.gpu_day import PYTHON, Stage
from poh_ext.bench import __main__ as bench
from poh_ext.bench import baselines, operator_cases
from poh_ext.bench.case import OURS, Case
from poh_ext.training import cli
from poh_ext.training.config import ScalingBenchmarkConfig
from tests.cases.training import needs_tyro

ROOT = Path(__file__).resolve().parents[2]
STAGES = {stage.name: stage for stage in gpu_day.stages()}


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if stage.reader == "bench"])
def test_the_benchs_stages_are_commands_of_the_bench(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / gpu_day.OUT).mkdir(parents=True)
    monkeypatch.setattr(bench.machine, "why_not_usable", lambda *_: "")
    monkeypatch.setenv("POH_EXT_BACKEND", "auto")
    python, minus_m, module, *words = STAGES[name].words("python", 100)
    options = bench.parse(words)
    assert (python, minus_m, module, options.limit, str(options.device)) == (
        "python",
        "-m",
        "poh_ext.bench",
        90,
        "cuda",
    )
    assert str(options.json) == STAGES[name].result and len(options.cases) >= 10


@needs_tyro
def test_the_example_is_the_third_one_with_all_sizes():
    _, script, *words = STAGES["example"].words("python", 1)
    config = cli.parse(ScalingBenchmarkConfig, words)
    assert (ROOT / script).name in cli.PROGRAMS and len(config.models) == 5
    documented = (ROOT / "docs" / "results.md").read_text().split("the third example, verbatim")[1]
    command = re.search(r"```bash\n(.*?)```", documented, re.S)[1].replace("\\\n", " ").split()
    assert words[:-2] == command[2 : command.index("--output")]  # but for the folder


def test_the_other_stages_name_what_is_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / gpu_day.OUT).mkdir(parents=True)
    assert str(gpu_kernels.parse(list(STAGES["kernels"].command[2:])).json) == STAGES["kernels"].result
    for name in ("gpu-tests", "operator-tests"):
        _, _, module, quiet, *places = STAGES[name].command
        assert (module, quiet) == ("pytest", "-q") and all((ROOT / place).exists() for place in places)
    extras = re.search(r"\.\[([a-z-]+)\]", STAGES["build"].command[-1])[1]
    assert f"\n{extras} = [" in (ROOT / "pyproject.toml").read_text() and extras == baselines.EXTRA


def test_the_plan_needs_no_gpu(capsys):
    assert gpu_day.main(["--dry-run", "--budget", "60,example=7", "--stages", "gpu-tests,example"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2 if "skip" not in line else 1] for line in lines] == list(STAGES)
    assert lines[2].startswith("    60 s  gpu-tests") and "python -m pytest -q tests/cuda/test_gpu.py" in lines[2]
    assert [line.split()[0] for line in lines].count("skip") == len(STAGES) - 2 and "     7 s  example" in lines[6]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--stages", "gpu-test"], "--stages: unknown stage 'gpu-test'; accepted: environment, build, "),
        (["--budget", "soon"], "--budget: 'soon' is no time; accepted: seconds above 0, or STAGE=SECONDS"),
        (["--budget", "kernel=9"], "--budget: unknown stage 'kernel'; accepted: environment, "),
        (["--report", "no/such/page.md"], "--report: no/such/page.md cannot be written: its folder does not exist"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_options_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu_day.main(words)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(f"make gpu: error: {message}") and said.count("\n") == 1


def fake_smi(folder, monkeypatch, code):
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{code}\n")
    (folder / "nvidia-smi").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize(
    "code, reason",
    [
        ("echo No devices were found; exit 6", "nvidia-smi says: No devices were found"),
        ("", "nvidia-smi says: nothing"),
    ],
)
def test_without_a_gpu_it_is_one_line(code, reason, tmp_path, monkeypatch, capsys):
    fake_smi(tmp_path / "bin", monkeypatch, code)
    assert gpu_day.main([]) == 2
    assert capsys.readouterr() == ("", f"make gpu: no GPU here: {reason}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_day.main([]) == 2 and capsys.readouterr().err == "make gpu: no GPU here: there is no nvidia-smi\n"


def test_a_stage_that_fails_or_is_stopped_keeps_none_from_running(tmp_path, monkeypatch, capsys):
    fake_smi(tmp_path / "bin", monkeypatch, "echo Emulated H100, 580.1")

    def stage(name, code, seconds=60.0, **more):
        return Stage(name, f"The {name}", seconds, (PYTHON, "-c", code), **more)

    result = tmp_path / "out" / "report.md"
    plan = [
        stage("built", "raise SystemExit(1)", done_if=(PYTHON, "-c", "")),
        stage("broken", "print('a line'); raise SystemExit('no such kernel')"),
        stage("endless", "import time; time.sleep(60)", 0.2),
        stage("good", f"open({str(result)!r}, 'w').write('# x\\n\\n| a |\\n|---|\\n| 7 |\\n\\n| b |\\n')",
              result=str(result), reader="example"),
        stage("left", "raise SystemExit(1)"),
    ]  # fmt: skip
    monkeypatch.setattr(gpu_day, "OUT", tmp_path / "out")
    monkeypatch.setattr(gpu_day, "HAS_CUDA", "")
    monkeypatch.setattr(gpu_day, "TELL", 'print(\'{"torch": "9.9", "CUDA of torch": null}\')')
    monkeypatch.setattr(gpu_day, "stages", lambda torch="": plan)
    page = tmp_path / "gpu.md"
    words = ["--report", str(page), "--stages", "built,broken,endless,good"]
    assert gpu_day.main(words) == 1
    assert capsys.readouterr().out.endswith(f"make gpu: wrote {page}; not done: broken, endless\n")
    text = page.read_text()
    assert "Emulated H100, 580.1" in text and "| torch | 9.9 |" in text
    for row in ("| built | done before |", "| broken | failed (status 1) |", "| endless | stopped after its 0 s |",
                "| good | done |", "| left | not run |"):  # fmt: skip
        assert row in text
    assert "```text\na line\nno such kernel\n```" in text
    assert "## The good\n\n| a |\n|---|\n| 7 |\n" in text and "| b |" not in text
    result.unlink()  # what is done is not done again
    plan[1] = stage("broken", "")
    assert gpu_day.main([*words, "--budget", "endless=0.1"]) == 1
    assert "make gpu: good" not in capsys.readouterr().out and "| broken | done |" in page.read_text()
    assert gpu_day.main(["--report", str(page), "--stages", "good", "--again"]) == 0 and result.exists()


def test_what_other_sources_or_another_interpreter_did_is_done_again(tmp_path, monkeypatch, capsys):
    """And no figure of theirs is shown, where it fails now."""
    fake_smi(tmp_path / "bin", monkeypatch, "echo Emulated H100, 580.1")
    monkeypatch.setattr(gpu_day, "OUT", tmp_path / "out")
    monkeypatch.setattr(gpu_day, "HAS_CUDA", "")
    monkeypatch.setattr(gpu_day, "TELL", "print('{}')")
    result, page = tmp_path / "out" / "b.json", tmp_path / "gpu.md"
    write = f"open({str(result)!r}, 'w').write('{{\"cases\": []}}')"
    plan = [Stage("b", "The b", 60, (PYTHON, "-c", write), str(result), "bench")]
    monkeypatch.setattr(gpu_day, "stages", lambda torch="": plan)

    def ran(*words):
        code = gpu_day.main(["--report", str(page), *words])
        return code, "make gpu: b, " in capsys.readouterr().out

    assert ran() == (0, True) and ran() == (0, False)
    assert ran("--torch", "9.9") == (0, True) and ran("--torch", "9.9") == (0, False)
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    assert ran("--python", str(other)) == (0, True)
    monkeypatch.setattr(gpu_day, "sources", lambda: "others")
    plan[0] = Stage("b", "The b", 60, (PYTHON, "-c", "raise SystemExit(1)"), str(result), "bench")
    assert ran() == (1, True) and not result.exists() and "## The b" not in page.read_text()
    said = "print('loss x\\n  not timed: the time of the whole run is over (--limit)')"
    plan[0] = Stage("b", "The b", 60, (PYTHON, "-c", f"{write}; {said}"), str(result), "bench")
    assert ran() == (1, True) and "| b | stopped as cases were left out for the time |" in page.read_text()
    assert ran() == (1, True)


def test_the_sources_are_what_a_stage_could_depend_on(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_day, "ROOT", tmp_path)
    seen = [gpu_day.sources()]
    for name, text in (("csrc/a/cuda.cu", "1"), ("csrc/a/cuda.cu", "2"), ("poh_ext/b.py", ""), ("docs/c.py", "")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        seen.append(gpu_day.sources())
    assert len(set(seen)) == 4 and seen[3] == seen[4]


def test_the_page_has_the_tables_of_an_h100():
    figures = ROOT / "docs" / "figures"
    records = []
    for name, reader, file in (
        ("kernels", "kernels", "gpu_kernels_h100.json"),
        ("b", "bench", "bench_h100_bfloat16.json"),
    ):
        records.append({"name": name, "title": name, "command": "x", "status": "done", "reason": "", "seconds": 3.2,
                        "log": "none", "result": str(figures / file), "reader": reader})  # fmt: skip
    text = gpu_report.report({"GPU and driver": "H100"}, records)
    assert "| loss forward B32 N144 V144 L65 K1 float32 | 15 | 0.4 | 2% |" in text and "| dfs 12x12 | 115.89 |" in text
    assert "| loss lm B8 N512 V32000 L512 K4 | poh_ext | 0.837 | 262.2 |  |" in text
    assert "|  | eager | 7.209 | 2,621.5 | 8.7x (8.4 to 9.0) |" in text
    assert "- loss lm B8 N512 V32000 L512 K4: torch.compile was not timed: compiling it takes about 19 s" in text
    made = gpu_report.bench_table(json.loads((figures / "bench_h100_bfloat16.json").read_text()))
    assert len({line.count("|") for line in made.splitlines() if line.startswith("|")}) == 1


def test_half_a_file_of_a_stage_that_was_stopped_is_said(tmp_path):
    (tmp_path / "b.json").write_text('{"cases": [')
    record = {"name": "b", "title": "B", "command": "x", "status": "stopped", "reason": "after its 5 s", "seconds": 5,
              "log": "none", "result": str(tmp_path / "b.json"), "reader": "bench"}  # fmt: skip
    assert "b.json cannot be read: JSONDecodeError: " in gpu_report.report({}, [record])


def test_other_projects_are_timed_on_a_gpu_if_they_are_there_and_right(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda form: form)
    case = Case(
        "x", "case", {OURS: lambda: (torch.ones(1),), "near": lambda: (torch.ones(1) * 2,)}, foreign=frozenset(["near"])
    )
    assert case.check() == {"near": "its results differ: result 0 differs by 1, more than 0.0001"}
    for forms, number in ((operator_cases.plain_forms, 1), (operator_cases.linear_forms, 3)):
        (here, none), (there, foreign) = forms(torch.device("cpu")), forms(torch.device("cuda"))
        assert not none and len(foreign) == number and OURS in here and set(here) <= set(there)


def test_other_projects_are_called_as_they_ask_for_and_missing_ones_are_named(monkeypatch):
    """By stand-ins with the signatures of liger-kernel 0.8.5 and cut-cross-entropy 25.1.1."""
    x, w, t = torch.randn(4, 8), torch.randn(9, 8), torch.arange(4)
    calls = {
        "liger_kernel": [
            lambda: baselines.liger_cross_entropy(x, t, label_smoothing=0.1),
            lambda: baselines.liger_linear_cross_entropy(x, w, t),
        ],
        "cut_cross_entropy": [lambda: baselines.cut_linear_cross_entropy(x, w, t, filter_eps="high")],
    }

    def liger_cross_entropy(input, target, weight=None, *_, label_smoothing=0.0):
        loss = F.cross_entropy(input, target, weight, label_smoothing=label_smoothing)
        input.zero_()  # it writes the gradient there
        return loss

    def cut(e, c, targets, ignore_index=-100, softcap=None, reduction="mean", shift=False, filter_eps="high"):
        return F.cross_entropy(F.linear(e, c), targets)

    def fused(input, weight, target, bias=None):
        return cut(input, weight, target)

    functional = SimpleNamespace(liger_cross_entropy=liger_cross_entropy, liger_fused_linear_cross_entropy=fused)
    expected = [F.cross_entropy(x, t, label_smoothing=0.1), cut(x, w, t), cut(x, w, t)]
    for module, stand_in in (("liger_kernel.transformers.functional", functional),
                             ("cut_cross_entropy", SimpleNamespace(linear_cross_entropy=cut))):  # fmt: skip
        package = module.split(".")[0]
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setitem(sys.modules, package, None)
        for call in calls[package]:
            with pytest.raises(ImportError, match=rf"needs {package}, .*pip install 'poh_ext\[gpu-bench\]'"):
                call()
        for name in {package, module.rpartition(".")[0] or package}:
            monkeypatch.setitem(sys.modules, name, SimpleNamespace())
        monkeypatch.setitem(sys.modules, module, stand_in)
        for call in calls[package]:
            torch.testing.assert_close(call(), expected.pop(0))


def test_make_gpu_is_the_driver():
    done = subprocess.run(["make", "--no-print-directory", "gpu", "GPU_ARGS=--dry-run", "STAGES=kernels", "BUDGET=9",
                           f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and "     9 s  kernels" in done.stdout, done.stderr
