"""Everything that is to be done where a GPU is lent for a while: `make gpu`, or python -m bench.gpu_day --help.

The stages run in the order of their worth, each in a process of its own with a log and a budget. One that fails or is
stopped does not keep the others from running. What is done is not done again for the same sources and interpreter on
the same GPU, so the same command goes on where the time was over. docs/gpu.md is written anew after each stage. Needs
no package itself.

Exit status: 0 if every stage that was asked for is done, 1 if one is not, 2 for bad options or without a GPU.
"""

import argparse
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_report import report

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("build/gpu_day")
PYTHON = "PYTHON"  # in a command: the interpreter that has torch with CUDA
EXAMPLE = OUT / "example"
THIRD_EXAMPLE = (  # of docs/results.md
    "--maze-size 16 --train 1000 --test 100 --epochs 50 --R 4 --T 4 --seed 42 --lr 1e-3 --label-smoothing 0.1 "
    "--warmup-steps 2000 --multi-horizon 3 --validity-mask --route-ent-weight 5e-4 --ent-anneal"
)
ENVIRONMENT = Path("build/gpu_env")
SOURCES = (".py", ".cpp", ".cu", ".h", ".safetensors")
HAS_CUDA = "import sys, torch; sys.exit(torch.version.cuda is None)"
TELL = (
    "import json, platform, torch, poh_ext; print(json.dumps({'torch': torch.__version__, 'CUDA of torch': "
    "torch.version.cuda, 'Python': platform.python_version(), 'poh_ext': poh_ext.__version__, "
    "'kernels': poh_ext.backend_info()['cuda']}))"
)


@dataclass(frozen=True)
class Stage:
    """What is run. `result` is the file that it writes and `reader` reads; `seconds` its budget."""

    name: str
    title: str
    seconds: int
    command: tuple[str, ...]
    result: str = ""
    reader: str = ""
    env: tuple[tuple[str, str], ...] = ()
    done_if: tuple[str, ...] = ()  # a command that succeeds where there is nothing to do

    def words(self, python: str, seconds: float) -> list[str]:
        """A bench ends by itself within 0.9 of its budget, with the figures of what it had time for."""
        limit = f"{0.9 * seconds:.0f}"
        return [{PYTHON: python, "LIMIT": limit}.get(word, word) for word in self.command]


def _bench(name: str, dtype: str, only: str, seconds: int) -> Stage:
    result = str(OUT / f"{name}.json")
    command = (PYTHON, "-m", "poh_ext.bench", "--device", "cuda", "--dtype", dtype, "--only", only, "--limit", "LIMIT",
               "--json", result)  # fmt: skip
    return Stage(name, f"Times in {dtype}", seconds, command, result, "bench")


def stages(torch: str = "") -> list[Stage]:
    make = f"python3 -m venv --clear {ENVIRONMENT} && {ENVIRONMENT}/bin/python -m pip install -q"
    make += f" numpy 'setuptools>=77' 'cmake>=3.26' ninja torch{'==' * bool(torch)}{torch}"
    return [
        Stage("environment", "", 900, ("sh", "-c", make), done_if=(PYTHON, "-c", HAS_CUDA)),
        Stage(
            "build",
            "",
            600,
            (PYTHON, "-m", "pip", "install", "-q", "--no-build-isolation", "-e", ".[gpu-bench]"),
            env=(("POH_EXT_CUDA", "1"),),
        ),
        Stage("gpu-tests", "", 120, (PYTHON, "-m", "pytest", "-q", "tests/cuda/test_gpu.py")),
        _bench("bench-float32", "float32", "loss,linear,routing,attention", 150),
        _bench("bench-bfloat16", "bfloat16", "loss,linear", 120),
        Stage(
            "operator-tests",
            "",
            300,
            (PYTHON, "-m", "pytest", "-q", "tests/kernels", "tests/mazes"),
            env=(("POH_EXT_TEST_DEVICE", "cuda"),),
        ),
        Stage(
            "example",
            "The third example: five sizes on 16x16",
            1800,
            (PYTHON, "experiments/parameter_scaling_benchmark.py", *THIRD_EXAMPLE.split(), "--output", str(EXAMPLE)),
            str(EXAMPLE / "report.md"),
            "example",
        ),
        Stage(
            "kernels",
            "Times of the kernels alone",
            180,
            (PYTHON, "bench/gpu_kernels.py", "--json", str(OUT / "kernels.json")),
            str(OUT / "kernels.json"),
            "kernels",
        ),
    ]


def budgets(text: str, names: list[str]) -> dict[str, float]:
    """BUDGET: seconds for every stage (120), or for some (example=600,build=300). Raises ValueError."""
    found = {}
    for part in filter(None, text.split(",")):
        name, given, number = part.rpartition("=")
        if given and name not in names:
            raise ValueError(f"unknown stage {name!r}; accepted: {', '.join(names)}")
        try:
            seconds = float(number)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < 1e7:
            raise ValueError(f"{number!r} is no time; accepted: seconds above 0, or STAGE=SECONDS")
        found |= {name: seconds} if given else dict.fromkeys(names, seconds)
    return found


def devices() -> tuple[str, str]:
    """(names and drivers of the GPUs, why there are none)."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return "", "there is no nvidia-smi"
    except subprocess.TimeoutExpired:
        return "", "nvidia-smi does not answer"
    lines = (said.stdout + said.stderr).strip().splitlines()
    if said.returncode or not lines:
        return "", f"nvidia-smi says: {lines[0] if lines else 'nothing'}"
    return "; ".join(lines), ""


def sources() -> str:
    """A hash of what a stage could depend on, of a checkout or of a copy of its files."""
    found = hashlib.sha256()
    for folder in ("bench", "csrc", "experiments", "poh_ext", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SOURCES:
                found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]


def succeeds(words: list[str]) -> bool:
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True).returncode == 0
    except OSError:
        return False


def run(stage: Stage, words: list[str], seconds: float, log: Path) -> tuple[str, str]:
    """(status, reason) of a stage that ran, its output in `log`."""
    with open(log, "wb") as file:
        try:
            process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                                       env={**os.environ, **dict(stage.env)})  # fmt: skip
        except OSError as error:
            return "failed", str(error)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            for sent in (signal.SIGINT, signal.SIGKILL):  # the first lets a training write its checkpoint
                os.killpg(process.pid, sent)
                try:
                    process.wait(15)
                    break
                except subprocess.TimeoutExpired:
                    continue
            return "stopped", f"after its {seconds:.0f} s"
        except BaseException:  # Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    return ("done", "") if code == 0 else ("failed", f"(status {code})")


def shown(stage: Stage, words: list[str]) -> str:
    """As a person would type it."""
    return shlex.join([*(f"{name}={value}" for name, value in stage.env), *words])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    names = [stage.name for stage in stages()]
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.error = lambda message: parser.exit(2, f"make gpu: error: {message}\n")
    parser.add_argument(
        "--stages", default=",".join(names), help=f"stages to run, of: {', '.join(names)} (default: all)"
    )
    parser.add_argument("--budget", default="", help="seconds for each stage, or for some: example=600,build=300")
    parser.add_argument("--again", action="store_true", help="run stages that are done, too")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop; needs no GPU")
    parser.add_argument("--python", default=sys.executable, help="an interpreter whose torch has CUDA, if there is one")
    parser.add_argument(
        "--torch", default="", help="the torch to install where that one has no CUDA (default: the newest)"
    )
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "gpu.md", help="the page to write")
    options = parser.parse_args(arguments)
    options.stages = [name for name in options.stages.split(",") if name]
    if unknown := [name for name in options.stages if name not in names]:
        parser.error(f"--stages: unknown stage {unknown[0]!r}; accepted: {', '.join(names)}")
    if not options.report.parent.is_dir():
        parser.error(f"--report: {options.report} cannot be written: its folder does not exist")
    try:
        options.budget = budgets(options.budget, names)
    except ValueError as error:
        parser.error(f"--budget: {error}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    plan = stages(options.torch)
    gpu, reason = devices()
    if options.dry_run:
        for stage in plan:
            seconds = options.budget.get(stage.name, stage.seconds)
            asked = f"{seconds:>6.0f} s" if stage.name in options.stages else "    skip"
            print(f"{asked}  {stage.name:<16}{shown(stage, stage.words('python', seconds))}")
        return 0
    if reason:
        print(f"make gpu: no GPU here: {reason}", file=sys.stderr)
        return 2
    python = options.python
    if not succeeds([python, "-c", HAS_CUDA]):
        python = str(ROOT / ENVIRONMENT / "bin" / "python")
    (ROOT / OUT).mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    same = {"gpu": gpu, "sources": sources(), "python": python, "torch": options.torch}
    facts: dict[str, str] = {}
    records: list[dict] = []
    for stage in plan:
        seconds = options.budget.get(stage.name, stage.seconds)
        words, kept = stage.words(python, seconds), ROOT / OUT / f"{stage.name}.record"
        record = {
            "name": stage.name,
            "title": stage.title,
            "command": shown(stage, stage.words("python", seconds)),
            "log": str(ROOT / OUT / f"{stage.name}.log"),
            "result": str(ROOT / stage.result) if stage.result else "",
            "reader": stage.reader,
            "status": "not run",
            "reason": "",
            "seconds": 0.0,
            **same,
        }
        try:
            before = json.loads(kept.read_text())
            record = before if all(before[name] == value for name, value in same.items()) else record
        except (OSError, ValueError, KeyError):
            pass
        records.append(record)
        if stage.name not in options.stages or (record["status"] == "done" and not options.again):
            continue
        begin, since = time.monotonic(), time.time()
        if stage.result:  # of other sources, say
            (ROOT / stage.result).unlink(missing_ok=True)
        print(f"make gpu: {stage.name}, {seconds:.0f} s at most", flush=True)
        if stage.done_if and succeeds([python if word == PYTHON else word for word in stage.done_if]):
            record |= {"status": "done", "reason": "before", "seconds": 0.0}
        else:
            status, why = run(stage, words, seconds, Path(record["log"]))
            record |= {"status": status, "reason": why, "seconds": time.monotonic() - begin}
            if status == "done" and _cut(record):
                record |= {"status": "stopped", "reason": "as cases were left out for the time"}
            if stage.name == "example":  # a run with other options before it has the folder: it has a numbered one
                runs = [path for path in (ROOT / OUT).glob("example*/report.md") if path.stat().st_mtime >= since]
                record["result"] = str(max(runs, key=lambda path: path.stat().st_mtime, default=record["result"]))
        print(f"make gpu: {stage.name} {record['status']} {record['reason']}".rstrip(), flush=True)
        _write(kept, json.dumps(record))
        if stage.name not in ("environment", "build"):
            facts = facts or _facts(python, gpu, commit)
            _write(options.report, report(facts, records))
    _write(options.report, report(facts or _facts(python, gpu, commit), records))
    missing = [each["name"] for each in records if each["name"] in options.stages and each["status"] != "done"]
    print(f"make gpu: wrote {options.report}" + (f"; not done: {', '.join(missing)}" if missing else ""))
    return 1 if missing else 0


def _cut(record: dict) -> bool:
    """Whether a bench left cases out, as its time was over."""
    said = Path(record["log"]).read_text(encoding="utf-8", errors="replace") if record["reader"] == "bench" else ""
    return any(line.startswith("  not timed: ") and line.endswith("(--limit)") for line in said.splitlines())


def _facts(python: str, gpu: str, commit: str) -> dict[str, str]:
    facts = {
        "GPU and driver": gpu,
        "commit": commit or "not known",
        "written": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    try:
        said = subprocess.run([python, "-W", "ignore", "-c", TELL], cwd=ROOT, capture_output=True, text=True)
        return facts | {name: str(value) for name, value in json.loads(said.stdout).items()}
    except (OSError, ValueError):
        return facts | {"poh_ext": "could not be imported"}


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    raise SystemExit(main())
