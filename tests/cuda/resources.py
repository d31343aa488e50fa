"""Prints the table of docs/cuda.md: what ptxas says of every kernel, and the occupancy that follows for sm_90.

python tests/cuda/resources.py        (needs nvcc and c++filt; about a minute)
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
# H100 (compute capability 9.0): CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability".
WARPS, BLOCKS, REGISTERS, SHARED, SHARED_RESERVED = 64, 32, 65536, 228 * 1024, 1024
# Others: 256.
THREADS = {"each_maze": 32, "sum_entropies": 1024, "sum_places": 128, "sum_entries": 128, "dense_weights": 128}
# Dynamic shared memory of a block of 32 mazes of 12 x 12 cells (csrc/maze/cuda_threads.h); 0: workspace.
SCRATCH_12X12 = {
    "Generate dfs": 1472, "Generate wilson": 576 + 576 + 1152 + 144 + 144,
    "Generate prim": 1072 + 1072 + 176 + 144, "Generate kruskal": 1056 + 1056 + 576 + 144,
    "Generate percolation": 48 + 144, "Generate obstacles": 592 + 144,
    "Distances": 1296, "ShortestPaths": 1296, "FindEndpoints": 3024, "Walk": 288,
}  # fmt: skip
ALGORITHMS = ("dfs", "wilson", "prim", "kruskal", "percolation", "obstacles")


def compiled(source: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "nvcc", "-std=c++20", "-O3", "--expt-relaxed-constexpr", "-DUSE_CUDA", "-arch=sm_90", "-Xptxas=-v",
            "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{ROOT / 'csrc'}",
            f"-isystem={Path(torch.__file__).parent / 'include'}", "-Xcompiler=-Wno-unknown-pragmas",
            "-c", str(source), "-o", f"{folder}/x.o",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return subprocess.run(["c++filt", "-t"], input=done.stderr, capture_output=True, text=True, check=True).stdout


def kernels(text: str):
    """(name, dtype, registers, spilled bytes, stack, static shared) of each kernel ptxas reports."""
    pattern = r"entry function '(.*?)' for 'sm_90'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) reg"
    for match in re.finditer(pattern + r"isters([^\n]*)", text, re.DOTALL):
        signature, stack, spilled, registers, rest = match.groups()
        name = re.search(r"(\w+)[<(]", signature.replace("(anonymous namespace)::", ""))[1]
        job = re.search(r"each_maze<.*?::(Generate|Distances|ShortestPaths|FindEndpoints|Walk)", signature)
        if job:
            name = "each_maze " + job[1]
            number = re.search(r"Algorithm\)(\d)", signature)
            name += f" {ALGORITHMS[int(number[1])]}" if number else ""
        dtype = re.search(r"c10::(BFloat16|Half)|<(float|double)\b", signature)
        shared = re.search(r"(\d+) bytes smem", rest)
        kind = (dtype[1] or dtype[2]) if dtype else ""
        yield name, kind, int(registers), int(spilled), int(stack), int(shared[1]) if shared else 0


def occupancy(name: str, registers: int, static: int) -> tuple[int, int, int]:
    """Threads of a block, its shared memory, and resident warps of 64."""
    threads = next((t for key, t in THREADS.items() if name.startswith(key)), 256)
    scratch = next((s for key, s in SCRATCH_12X12.items() if name.startswith(f"each_maze {key}")), 0)
    dynamic = 32 * ((scratch + 127) // 128 * 128 + 8) if scratch else 0
    dynamic = 0 if dynamic > 96 * 1024 else dynamic
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // per_warp // (threads // 32)
    by_shared = SHARED // (static + dynamic + SHARED_RESERVED)
    blocks = min(BLOCKS, WARPS * 32 // threads, by_registers, by_shared)
    return threads, static + dynamic, blocks * threads // 32


def main() -> None:
    if not shutil.which("nvcc"):
        raise SystemExit("no nvcc here")
    print("| source | kernel | dtype | threads | registers | spilled | stack | shared | warps of 64 |")
    print("|---|---|---|---|---|---|---|---|---|")
    seen = set()  # what two sources share stands once
    for source in sorted(ROOT.glob("csrc/*/*.cu")):
        for name, dtype, registers, spilled, stack, static in sorted(kernels(compiled(source))):
            if (name, dtype, registers) in seen:
                continue
            seen.add((name, dtype, registers))
            threads, shared, warps = occupancy(name, registers, static)
            place = f"{source.parent.name}/{source.stem}"
            row = (place, name, dtype, threads, registers, spilled, stack, shared, warps)
            print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
