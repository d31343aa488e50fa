"""What the timings ran on, and the two rates they are compared with: copy bandwidth and matrix-multiply speed."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import torch

import poh_ext
from poh_ext.bench.timing import Spread, interleave


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(device: torch.device) -> dict:
    """Machine, versions and threads, as plain values for the record."""
    info = poh_ext.backend_info()
    found = {
        "poh_ext": poh_ext.__version__,
        "torch": info["torch"],
        "python": info["python"],
        "compiler": info["build"].get("compiler", "none"),
        "backend": info["cuda"] if device.type == "cuda" else info["cpu"].splitlines()[0],
        "cpu": cpu_name(),
        "threads": info["threads"],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def copy_bandwidth(device: torch.device, *, megabytes: int = 256, seconds: float = 1.0) -> float:
    """Bytes per second read plus written by a copy between two buffers that no cache holds."""
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, device, seconds=seconds)["copy"]
    return 2 * source.nbytes / Spread.of(times).p50


def gemm_rate(device: torch.device, dtype: torch.dtype, *, n: int = 2048, seconds: float = 1.0) -> float:
    """FLOP per second of an n x n matrix product in `dtype`."""
    a, b = torch.ones(n, n, device=device, dtype=dtype), torch.ones(n, n, device=device, dtype=dtype)
    times = interleave({"gemm": lambda: a @ b}, device, seconds=seconds)["gemm"]
    return 2 * n**3 / Spread.of(times).p50


def peak_memory(call, device: torch.device) -> int | None:
    """Bytes that `call` holds at its peak beyond what is held before it; None where that cannot be told.

    On the CPU from the resident set's high-water mark (Linux), so caches of the allocator count as well.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the mark to the present size
        before = _status_bytes("VmRSS")
        call()
        return max(_status_bytes("VmHWM") - before, 0)
    except OSError:
        return None


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
