"""`poh-ext bench` (or `python -m poh_ext.bench`) times the kernels beside what PyTorch and other packages offer.

The results of every case are checked for equality before it is timed. The variants of a case run in interleaved rounds.
A speed is the ratio of two variants' times in the same round, given as its median with the 20th and 80th percentile.
With --limit, which --quick sets, slow variants take part in fewer rounds, and calls that take too long are stopped. The
output says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

import poh_ext
from poh_ext._files import write_atomically
from poh_ext._optional import MissingPackage, require
from poh_ext._program import Parser, number, run
from poh_ext.bench import machine
from poh_ext.bench.cases import COMPILING, GROUPS, WEIGHTS, warm_up_compiler
from poh_ext.bench.measure import Bench, show
from poh_ext.bench.timing import Allowance, TimeIsUp

PROGRAM = "python -m poh_ext.bench"
TOO_LONG_FOR_QUICK = {
    *(("loss", size) for size in ("lm", "plain1k", "plain32k")),
    *(("linear", size) for size in ("lm", "plain32k", "plain128k")),
    ("train", "poh"), ("passes", "poh30"), ("passes", "baseline60"), ("passes", "map512"),
}  # fmt: skip
QUICK_SECONDS, QUICK_ROUNDS, QUICK_LIMIT = 0.3, 3, 115.0  # the last call's end makes two minutes of it
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPILERS = 0.35  # of a limited run's time may go into them
# The backend is chosen at import, so another one needs an interpreter of its own; this is what it runs.
_WITH_BACKEND = f"""
import os, runpy, sys
try:
    import poh_ext
except ImportError as error:
    print(f"{PROGRAM}: error: --backend {{os.environ['POH_EXT_BACKEND']}}: {{error}}", file=sys.stderr)
    sys.exit(2)
runpy.run_module("poh_ext.bench", run_name="__main__", alter_sys=True)
"""


def parse(arguments: Sequence[str], program: str = PROGRAM) -> argparse.Namespace:
    parser = Parser(prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        default=",".join(GROUPS),
        metavar="GROUPS",
        help=f"groups to time, separated by commas, of: {', '.join(GROUPS)} (default: all)",
    )
    parser.add_argument("--sizes", default="", metavar="NAMES", help="sizes to time; --list names them (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument(
        "--backend",
        choices=("auto", "reference", "cpu", "cuda"),
        default=None,
        help="implementation of poh_ext to time, as in POH_EXT_BACKEND (default: auto)",
    )
    parser.add_argument("--device", default="cpu", help="torch device of the inputs (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of the logits (default: float32)")
    parser.add_argument(
        "--seconds", type=number("seconds"), help="seconds to spend on the rounds of each case (default: 4)"
    )
    parser.add_argument(
        "--limit",
        type=number("seconds"),
        metavar="SECONDS",
        help="seconds for the whole run from its start, divided among its cases (default: no limit)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"two minutes at most: --seconds {QUICK_SECONDS} --limit {QUICK_LIMIT:g}, at least "
        f"{QUICK_ROUNDS} rounds, without the largest cases (a language model's losses, PoH's step, "
        "some passes)",
    )
    parser.add_output("--json", help="write every sample and the machine to FILE")
    parser.add_output("--plot", suffix=".png", help="draw the ratios in a PNG (needs matplotlib)")
    options = parser.parse_args(arguments)
    unknown = [g for g in options.only.split(",") if g not in GROUPS]
    if unknown:
        parser.error(f"--only: unknown group {unknown[0]!r}; accepted: {', '.join(GROUPS)}")
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else 4.0)
    options.limit = options.limit or (QUICK_LIMIT if options.quick else math.inf)
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        parser.error(f"--device {options.device}: {str(error).splitlines()[0]}")
    if not _needs_interpreter(options) and (reason := machine.why_not_usable(device, DTYPES[options.dtype])):
        parser.error(f"--device {options.device}: torch cannot compute in {options.dtype} there ({reason})")
    options.device = device
    try:
        options.cases = select(options)
        if options.plot:
            require("matplotlib.figure")
    except (ValueError, MissingPackage) as error:
        parser.error(str(error))
    return options


def select(options):
    """(group, size name, builder) of each case that was asked for. Raises ValueError if there is none."""
    wanted = set(filter(None, options.sizes.split(",")))
    found = [
        (group, size, build)
        for group in options.only.split(",")
        for size, build in GROUPS[group](options.device, DTYPES[options.dtype])
        if (size in wanted if wanted else not (options.quick and (group, size) in TOO_LONG_FOR_QUICK))
    ]
    if not found:
        raise ValueError(f"--sizes {options.sizes}: no such size in {options.only}; --list names them")
    return found


def _needs_interpreter(options: argparse.Namespace) -> bool:
    return bool(options.backend) and options.backend != os.environ.get("POH_EXT_BACKEND", "auto")


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    compile_cache(torch.backends.cpu.get_cpu_capability())  # before the compiler is imported, which sets the variable
    options = parse(arguments, program)
    if _needs_interpreter(options):
        os.environ["POH_EXT_BACKEND"] = options.backend
        os.execv(sys.executable, [sys.executable, "-c", _WITH_BACKEND, *arguments])
    if options.list:
        for group, size in dict.fromkeys((group, size) for group, size, _ in options.cases):
            print(f"{group}: {size}")
        return 0
    facts, records = _run(options)
    if options.json:
        write_atomically(options.json, json.dumps({"machine": facts, "cases": records}, indent=1).encode())
        print(f"\nwrote {options.json}")
    if options.plot:
        from poh_ext._figures import save_png
        from poh_ext.bench.plot import draw

        print(f"wrote {save_png(draw(facts, records), options.plot)}")
    return 0


def compile_cache(capability: str) -> None:
    """Make torch.compile keep a cache for each CPU level, unless the user chose one.

    The keys of the cache do not contain ATEN_CPU_CAPABILITY. A kernel kept from a run at another level has read out of
    bounds and ended the process.
    """
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir(), f"poh_ext_bench_{user}_{torch.__version__}_{capability}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def _run(options: argparse.Namespace) -> tuple[dict, list[dict]]:
    """Run the cases and print each as it comes. Returns (machine and settings, records of the cases)."""
    bench = Bench(options.device, DTYPES[options.dtype], options.seconds, QUICK_ROUNDS if options.quick else 5)
    began, facts = bench.watch.now() - machine.seconds_since_start(), machine.describe(options.device)
    print(
        f"poh_ext {poh_ext.__version__}, torch {facts['torch']}, {facts.get('gpu', facts['cpu'])}, "
        f"{facts['threads']} threads\n{facts['backend']}; {options.dtype}",
        flush=True,
    )
    _progress("how fast the machine copies and multiplies matrices")
    copy, product = bench.bandwidth(), bench.product_rate()
    facts |= {
        "dtype": options.dtype,
        "copy_bytes_per_second": copy.rate,
        "copy": copy.name,
        "gemm_flop_per_second": product.rate,
        "gemm": product.name,
        "limit_seconds": None if options.limit == math.inf else options.limit,
    }
    print(
        f"at best: copy {copy.rate / 1e9:.1f} GB/s ({copy.name}), matrix product {product.rate / 1e9:.0f} GFLOP/s "
        f"({product.name})",
        flush=True,
    )
    records = []
    bench.compiling.left = COMPILERS * options.limit
    if options.limit < math.inf and any(group in COMPILING for group, *_ in options.cases):
        _progress("a first compilation, which the others are not to pay for")
        warm_up_compiler(options.device, bench.compiling, bench.watch)
    left = options.limit - (bench.watch.now() - began)
    allowance = Allowance(left, [WEIGHTS[group] for group, *_ in options.cases], bench.watch)
    for turn, (group, size, build) in enumerate(options.cases, 1):
        start = bench.watch.now()
        _progress(f"{turn} of {len(options.cases)}, {group} {size} (after {start - began:.0f} s)")
        torch.compiler.reset()
        later = any(group in COMPILING for group, *_ in options.cases[turn - 1 :])
        allowed = allowance.next(reserved=bench.compiling.left if later else 0.0)
        reason = "the time of the whole run is over (--limit)"
        try:
            if allowed > 0:
                records.append(bench.measure(build, allowed))
                show(records[-1])
                continue
        except MissingPackage as error:
            reason = str(error)
        except TimeIsUp:
            reason = f"poh_ext or what makes its inputs was stopped after {bench.watch.now() - start:.1f} s (--limit)"
        print(f"\n{group} {size}\n  not timed: {reason}")
    return facts, records


def _progress(text: str) -> None:
    """Print progress on standard error, so that standard output holds only the figures."""
    print(f"timing: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(run(main))
