"""The machine that the timings ran on, and the peak memory of a call."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

import poh_ext
from poh_ext.environment import cpu_name

LONGEST_REASON = 120  # characters: some errors name every backend of torch


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


def seconds_since_start() -> float:
    """Seconds since this process was started, with imports. 0 if the system does not tell (only Linux does)."""
    try:
        # After the name, which may hold anything, in brackets: field 22 is the start in ticks since the machine's.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0


def why_not_usable(device: torch.device, dtype: torch.dtype) -> str:
    """'' if numbers can be computed there and read back, else the reason in a few words."""
    try:
        one = torch.ones(1, device=device, dtype=dtype)
        return "" if (one + one).item() == 2 else "it computes wrong numbers"
    except Exception as error:  # every backend raises another type
        words = str(error).split(". ")[0].splitlines()[0].rstrip(".")
        return words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]}..."


def peak_memory(call, device: torch.device) -> int | None:
    """Bytes that `call` holds at its peak beyond those held before it. None if that cannot be measured.

    On the CPU this is the high-water mark of the resident set (Linux), so caches of the allocator count, too.
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
