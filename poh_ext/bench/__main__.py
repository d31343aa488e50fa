"""`python -m poh_ext.bench` times the kernels beside what PyTorch and other packages offer.

Every case is checked for equal results before it is timed. The variants of a case run in interleaved rounds. A speed is
the ratio of two variants' times in the same round, given as its median with the 20th and 80th percentile.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import poh_ext
from poh_ext._files import write_atomically
from poh_ext._optional import MissingPackage
from poh_ext.bench import machine
from poh_ext.bench.case import OURS, Case
from poh_ext.bench.cases import GROUPS
from poh_ext.bench.timing import Spread, interleave, ratio

TOO_LONG_FOR_QUICK = {("loss", "lm"), ("linear", "lm"), ("train", "poh"), ("passes", "poh30"), ("passes", "baseline60")}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m poh_ext.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(GROUPS), metavar="GROUPS",
                        help=f"groups to time, separated by commas, of: {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--sizes", default="", metavar="NAMES", help="sizes to time; --list names them (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument("--backend", choices=("auto", "reference", "cpu", "cuda"), default=None,
                        help="implementation of poh_ext to time, as in POH_EXT_BACKEND (default: auto)")
    parser.add_argument("--device", default="cpu", help="torch device of the inputs (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of the logits (default: float32)")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds to spend on each case (default: 4)")
    parser.add_argument("--quick", action="store_true",
                        help="a run of about two minutes: 0.3 s a case and at least 3 rounds, without the largest "
                             "cases, such as the losses at a language model's size and PoH's training step")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample and the machine to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios in a PNG (needs matplotlib)")
    options = parser.parse_args(arguments)
    unknown = [g for g in options.only.split(",") if g not in GROUPS]
    if unknown:
        parser.error(f"--only: unknown group {unknown[0]!r}; accepted: {', '.join(GROUPS)}")
    if options.seconds <= 0:
        parser.error(f"--seconds must be positive, got {options.seconds}")
    for path in (options.json, options.plot):
        if path and not os.access(path.absolute().parent, os.W_OK):
            parser.error(f"{path}: its folder does not exist or cannot be written to")
    try:
        options.device = torch.device(options.device)
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device}: {str(error).splitlines()[0]}")
    return options


def select(options):
    """(group, size, builder) of each case asked for; ends the program if there is none."""
    wanted = set(filter(None, options.sizes.split(",")))
    found = [
        (group, size, build)
        for group in options.only.split(",")
        for size, build in GROUPS[group](options.device, DTYPES[options.dtype])
        if (size in wanted if wanted else not (options.quick and (group, size) in TOO_LONG_FOR_QUICK))
    ]
    if not found:
        raise SystemExit(f"--sizes {options.sizes}: no such size in {options.only}; --list names them")
    return found


def measure(
    case: Case,
    device: torch.device,
    seconds: float,
    bandwidth: float,
    flop_rate: Callable[[torch.dtype | None], float],
    min_rounds: int = 5,
) -> dict:
    """Check, time and describe one case, as plain values."""
    failed = case.check()
    runnable = {n: c for n, c in case.variants.items() if n not in failed}
    times = interleave(runnable, device, seconds=seconds, min_rounds=min_rounds)
    record = {"group": case.group, "name": case.name, "unavailable": failed, "variants": {}}
    ours = Spread.of(times[OURS])
    if case.bytes_moved:
        record["bytes_moved"] = case.bytes_moved
        record["bandwidth_share"] = case.bytes_moved / ours.p50 / bandwidth
    if case.flops:
        record["flops"] = case.flops
        record["flop_share"] = case.flops / ours.p50 / flop_rate(case.precision)
    for name, samples in times.items():
        entry = {"seconds": vars(Spread.of(samples)), "samples": samples}
        entry["peak_bytes"] = machine.peak_memory(case.variants[name], device)
        # Per item where variants make unequal numbers of things; else per call.
        scale = case.items.get(OURS, 1) / case.items.get(name, 1)
        entry["speedup_of_ours"] = vars(ratio([t * scale for t in samples], times[OURS]))
        if name in case.items:
            entry["items_per_second"] = case.items[name] / Spread.of(samples).p50
        record["variants"][name] = entry
    return record


def show(record: dict) -> None:
    """Print one case in lines of at most 100 columns."""
    notes = []
    if "bandwidth_share" in record:
        notes.append(f"{record['bytes_moved'] / 1e6:.1f} MB, {record['bandwidth_share']:.0%} of copy bandwidth")
    if "flop_share" in record:
        notes.append(f"{record['flops'] / 1e9:.1f} GFLOP, {record['flop_share']:.0%} of GEMM speed")
    print(f"\n{record['name']}" + (f"   [{'; '.join(notes)}]" if notes else ""))
    for name, entry in record["variants"].items():
        s, r = entry["seconds"], entry["speedup_of_ours"]
        line = f"  {name:<22}{s['p50'] * 1e3:>10.3f} ms ({s['p20'] * 1e3:.3f} to {s['p80'] * 1e3:.3f})"
        if "items_per_second" in entry:
            line += f"  {entry['items_per_second']:>10,.0f}/s"
        elif entry["peak_bytes"] is not None:
            line += f"  {entry['peak_bytes'] / 1e6:>8,.1f} MB"
        if name != OURS:
            line = f"{line:<72}  poh_ext is {r['p50']:.1f}x ({r['p20']:.1f} to {r['p80']:.1f})"
        print(line)
    for name, why in record["unavailable"].items():
        print(f"  {name:<22}not timed: {why}")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.backend and options.backend != os.environ.get("POH_EXT_BACKEND", "auto"):
        # The backend is chosen at import, so it needs an interpreter of its own.
        os.environ["POH_EXT_BACKEND"] = options.backend
        os.execv(sys.executable, [sys.executable, "-m", "poh_ext.bench", *(arguments or sys.argv[1:])])
    cases = select(options)
    if options.list:
        for group, size in dict.fromkeys((group, size) for group, size, _ in cases):
            print(f"{group}: {size}")
        return 0
    facts = machine.describe(options.device)
    bandwidth = machine.copy_bandwidth(options.device)

    @functools.cache
    def flop_rate(precision: torch.dtype | None = None) -> float:
        return machine.gemm_rate(options.device, precision or DTYPES[options.dtype])

    facts |= {"dtype": options.dtype, "copy_bytes_per_second": bandwidth, "gemm_flop_per_second": flop_rate()}
    print(f"poh_ext {poh_ext.__version__}, torch {facts['torch']}, {facts.get('gpu', facts['cpu'])}, "
          f"{facts['threads']} threads\n{facts['backend']}; {options.dtype}; copy {bandwidth / 1e9:.1f} GB/s, "
          f"matrix product {flop_rate() / 1e9:.0f} GFLOP/s")
    records = []
    seconds, rounds = (0.3, 3) if options.quick else (options.seconds, 5)
    for group, size, build in cases:
        torch.compiler.reset()
        try:
            case = build()
        except MissingPackage as error:
            print(f"\n{group} {size}\n  not timed: {error}")
            continue
        records.append(measure(case, options.device, seconds, bandwidth, flop_rate, rounds))
        show(records[-1])
    if options.json:
        write_atomically(options.json, json.dumps({"machine": facts, "cases": records}, indent=1).encode())
        print(f"\nwrote {options.json}")
    if options.plot:
        from poh_ext.bench.plot import draw

        draw(facts, records, options.plot)
        print(f"wrote {options.plot}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
