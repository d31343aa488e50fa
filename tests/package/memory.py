"""How much memory each operator holds after many calls: nothing that it did not hold after a few.

    python tests/package/memory.py --calls 10000

Calls each operator, forward and backward, and prints how far the memory of the process grew after the first calls.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.cases.calls import Call, calls

WARM_UP = 50
MOST = 1 << 20  # bytes: what an allocator takes and gives back


def resident() -> int:
    """Bytes of the process in memory that are no file's."""
    gc.collect()
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def growth(call: Call, count: int) -> int:
    """Bytes by which the process is larger after `count` calls than after WARM_UP."""
    gc.freeze()  # so that collecting looks at what the calls leave alone
    try:
        for _ in range(WARM_UP):
            call()
        before = resident()
        for _ in range(count):
            call()
        return resident() - before
    finally:
        gc.unfreeze()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--slow-calls", type=int, help="the same of training steps (default: as --calls)")
    parser.add_argument("--only", default="", help="names of operators, separated by commas")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {name: call for name, call in calls().items() if not options.only or name in options.only.split(",")}
    print("| operator | calls | growth, KiB | MiB before | seconds |\n|---|---|---|---|---|", flush=True)
    grown = []
    for name, call in chosen.items():
        started, before = time.perf_counter(), resident() / 2**20
        count = options.slow_calls if options.slow_calls is not None and "training" in name else options.calls
        bytes_more = growth(call, count)
        grown += [name] * (bytes_more > MOST)
        took = time.perf_counter() - started
        print(f"| {name} | {count} | {bytes_more // 1024} | {before:.0f} | {took:.0f} |", flush=True)
    print(f"grew by more than {MOST >> 20} MiB: {', '.join(grown) or 'none'}")
    return bool(grown)


if __name__ == "__main__":
    raise SystemExit(main())
