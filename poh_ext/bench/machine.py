"""The machine that the timings ran on: its name, the memory of a call, and the peak rates kernels are compared with."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import poh_ext
from poh_ext.bench.timing import MIN_SAMPLE_SECONDS, WATCH, Watch, sample
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


SLOWER = 4.0  # a trial may run at this part of the rate of the smaller one before it: it has left a cache
SHORT_SECONDS = 0.05  # shorter calls are made again: the first one pays for its memory
KEPT = 3  # trials that are repeated: the best ones
SHAPES = ((1, 1, 1), (12, 1, 4))  # of products, in multiples of n: square, and a layer of the 12x12 planners (n = 384)
SIDES = (32, 64, 128, 256, 384, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Trial:
    """A call that does `work` (FLOP or bytes); `make` makes its inputs and returns the call."""

    name: str
    work: float
    make: Callable[[], Callable[[], object]]


class Peak:
    """The best rate of growing trials, in work per second.

    Args:
        trials: trials in rising order of work; the first one is cheap on any machine.
        device: device of the trials.
        largest: count only the largest trial that there is time for.

    Attributes:
        rate: the best rate so far.
        name: name of the trial with this rate.

    Examples:
        >>> peak = Peak(products(torch.device("cpu"), torch.float32), torch.device("cpu"))
        >>> peak.look(1.0)
        2.2e11
    """

    def __init__(
        self, trials: Sequence[Trial], device: torch.device, *, largest: bool = False, watch: Watch = WATCH
    ) -> None:
        self.trials, self.device, self.largest, self.watch = list(trials), device, largest, watch
        self.rate, self.name = 0.0, ""

    def look(self, seconds: float) -> float:
        """Run trials for `seconds`, and not much longer. Returns the best rate of all looks so far.

        The trials grow. A trial is not begun if, by the rate of the one before it, it might not end in time. Then the
        best trials are repeated. The next look begins with them.
        """
        end = self.watch.now() + seconds
        calls: dict[Trial, Callable[[], object]] = {}
        rates: dict[Trial, float] = {}
        rate = math.inf
        for trial in self.trials:
            if SLOWER * trial.work / rate > end - self.watch.now():
                break
            try:
                call = trial.make()
                if rate == math.inf:
                    call()  # untimed: a library that is loaded for it would be taken for a slow machine
                rate = rates[trial] = self._rate(trial, call)
            except RuntimeError:  # no memory for more
                break
            calls[trial] = call
        kept = list(calls)[-1:] if self.largest else sorted(calls, key=rates.__getitem__)[-KEPT:]
        if kept:
            self.trials = self.trials[min(map(self.trials.index, kept)) :]
        while affordable := [trial for trial in kept if trial.work / rates[trial] < end - self.watch.now()]:
            for trial in affordable:
                rates[trial] = max(rates[trial], self._rate(trial, calls[trial]))
        for trial in kept:
            if rates[trial] > self.rate:
                self.rate, self.name = rates[trial], trial.name
        return self.rate

    def _rate(self, trial: Trial, call: Callable[[], object]) -> float:
        once = sample(call, self.device, warm=False, watch=self.watch)
        if once < SHORT_SECONDS:
            repeats = max(1, math.ceil(MIN_SAMPLE_SECONDS / max(once, 1e-9)))
            once = min(once, sample(call, self.device, repeats=repeats, warm=False, watch=self.watch))
        return trial.work / max(once, 1e-9)


def products(device: torch.device, dtype: torch.dtype) -> list[Trial]:
    """Matrix products, in FLOP; the second operand is transposed, as in a linear layer."""

    def trial(rows: int, inner: int, columns: int) -> Trial:
        def make():
            a = torch.rand(rows, inner, device=device).to(dtype)
            b = torch.rand(columns, inner, device=device).to(dtype)
            return lambda: a @ b.t()

        return Trial(f"[{rows}, {inner}] x [{inner}, {columns}]", 2.0 * rows * inner * columns, make)

    found = [trial(*(factor * n for factor in shape)) for n in SIDES for shape in SHAPES]
    return sorted(found, key=lambda trial: trial.work)


def copies(device: torch.device, megabytes: Sequence[int] = (1, 4, 16, 64, 256)) -> list[Trial]:
    """Copies between two buffers, in bytes read plus written; the largest does not fit into caches."""

    def trial(size: int) -> Trial:
        def make():
            source = torch.ones(size * 2**18, device=device)
            target = torch.empty_like(source)
            return lambda: target.copy_(source)

        return Trial(f"{size} MB", 2.0 * size * 2**20, make)

    return [trial(size) for size in megabytes]
