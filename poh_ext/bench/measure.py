"""Check, time and describe a case, within its time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from poh_ext.bench import machine
from poh_ext.bench.case import COMPILED, OURS, Case, NotTimed
from poh_ext.bench.machine import Peak, copies, products
from poh_ext.bench.timing import WATCH, Purse, Spread, TimeIsUp, Watch, interleave, ratio

__all__ = ["Bench", "show"]

LOOK_SECONDS = 1.0  # for a peak, at first
LOOK_AGAIN_SECONDS = 0.2  # and beside each case that is compared with it
FIRST_CALLS = 0.6  # of a case's time: what is left is for the rounds


@dataclass
class Bench:
    """What the cases of a run share: the device, the time for each, and the peak rates of the machine.

    Attributes:
        device: device of the cases.
        dtype: dtype of the matrix products that a case is compared with, if the case names no other.
        seconds: time for the rounds of a case.
        min_rounds: least rounds of each variant, if there is time.
        compiling: time for compilation in all cases together.
        watch: the clock.
    """

    device: torch.device
    dtype: torch.dtype
    seconds: float = 4.0
    min_rounds: int = 5
    compiling: Purse = field(default_factory=lambda: Purse(math.inf))
    watch: Watch = WATCH
    _peaks: dict[torch.dtype | None, Peak] = field(default_factory=dict)

    def bandwidth(self) -> Peak:
        """Bytes read plus written per second by a copy."""
        return self._looked(None, lambda: Peak(copies(self.device), self.device, largest=True, watch=self.watch))

    def product_rate(self, dtype: torch.dtype | None = None) -> Peak:
        """FLOP per second of the fastest matrix product."""
        dtype = dtype or self.dtype
        return self._looked(dtype, lambda: Peak(products(self.device, dtype), self.device, watch=self.watch))

    def _looked(self, key: torch.dtype | None, make: Callable[[], Peak]) -> Peak:
        if key not in self._peaks:
            self._peaks[key] = make()
            self._peaks[key].look(LOOK_SECONDS)
        return self._peaks[key]

    def measure(self, build: Callable[[], Case], allowed: float = math.inf) -> dict:
        """Build, check and time a case in about `allowed` seconds plus compilation. Returns plain values.

        Raises:
            TimeIsUp: building the case, or poh_ext's own call, took longer. AssertionError: as Case.check. ImportError:
                a package that the case needs is missing.
        """
        end = self.watch.now() + allowed
        with self.watch.limit(allowed):
            case = build()
        built = self.watch.now()
        calls = _FirstCalls(self, case.slower, built + FIRST_CALLS * max(end - built, allowed / 2))
        failed = case.check(calls)
        end += calls.compiled
        runnable = {name: call for name, call in case.variants.items() if name not in failed}
        times = interleave(
            runnable,
            self.device,
            seconds=self.seconds,
            min_rounds=self.min_rounds,
            first=calls.seconds,
            allowed=end - self.watch.now(),
            watch=self.watch,
        )
        record = {
            "group": case.group,
            "name": case.name,
            "unavailable": failed,
            "rounds_asked": self.min_rounds,
            "variants": {},
        }
        ours = Spread.of(times[OURS]).p50
        if case.bytes_moved:
            record["bytes_moved"] = case.bytes_moved
            record["bandwidth_share"] = case.bytes_moved / ours / self.bandwidth().rate
        if case.flops:
            record["flops"] = case.flops
            record["flop_rate"] = case.flops / ours
            record["flop_share"] = record["flop_rate"] / self.product_rate(case.precision).look(LOOK_AGAIN_SECONDS)
        for name, samples in times.items():
            record["variants"][name] = self._entry(case, name, samples, times[OURS], end)
        return record

    def _entry(self, case: Case, name: str, samples: list[float | None], ours: list[float | None], end: float) -> dict:
        spread = Spread.of(samples)
        # Per item where variants make unequal numbers of things; else per call.
        scale = case.items.get(OURS, 1) / case.items.get(name, 1)
        entry = {
            "seconds": vars(spread),
            "samples": samples,
            "rounds": sum(s is not None for s in samples),
            "speedup_of_ours": vars(ratio([s and s * scale for s in samples], ours)),
            "peak_bytes": None,
        }
        if spread.p50 <= end - self.watch.now():  # it takes one more call
            entry["peak_bytes"] = machine.peak_memory(case.variants[name], self.device)
        if name in case.items:
            entry["items_per_second"] = case.items[name] / spread.p50
        return entry


class _FirstCalls:
    """Runs each variant for its result, within the time.

    Attributes:
        seconds: name -> seconds of a call that did not compile.
        compiled: seconds of compilation.
    """

    def __init__(self, bench: Bench, slower: dict[str, float], end: float) -> None:
        self.bench, self.slower, self.end, self.watch = bench, slower, end, bench.watch
        self.seconds: dict[str, float] = {}
        self.compiled = 0.0

    def __call__(self, name: str, call: Callable[[], tuple]) -> tuple:
        if COMPILED in name:
            self._compile(call)
        start = self.watch.now()
        left = self.end - start
        if left <= 0 and name != OURS:
            raise NotTimed("no time was left for it")
        if name in self.slower and (least := self.slower[name] * self.seconds[OURS]) > left:
            raise NotTimed(f"it takes {least:.1f} s at least, and {left:.1f} s were left for it")
        try:
            with self.watch.limit(left):
                found = call()
        except TimeIsUp:
            if name == OURS:
                raise
            raise NotTimed(f"stopped after {self.watch.now() - start:.1f} s in its first call") from None
        self.seconds[name] = self.watch.now() - start
        return found

    def _compile(self, call: Callable[[], tuple]) -> None:
        purse, start = self.bench.compiling, self.watch.now()
        if self.end - start <= max(self.seconds.values()):  # what was compiled may be as slow, and would be thrown away
            raise NotTimed("no time was left for it")
        if not purse.affords():
            raise NotTimed(f"compiling it takes about {purse.last:.0f} s, and {purse.left:.0f} s were left for that")
        try:
            call()
        finally:
            took = self.watch.now() - start
            purse.pay(took)
            self.end += took
            self.compiled += took


def show(record: dict) -> None:
    """Print a case in lines of at most 110 columns. If fewer rounds ran than were asked for, the line gives their
    number."""
    notes = []
    if "bandwidth_share" in record:
        notes.append(f"{record['bytes_moved'] / 1e6:.1f} MB, {record['bandwidth_share']:.0%} of copy bandwidth")
    if "flop_share" in record:
        notes.append(
            f"{record['flops'] / 1e9:.1f} GFLOP, {record['flop_rate'] / 1e9:.0f} GFLOP/s, "
            f"{record['flop_share']:.0%} of the fastest product"
        )
    print(f"\n{record['name']}" + (f"\n  [{'; '.join(notes)}]" if notes else ""))
    for name, entry in record["variants"].items():
        s, r, rounds = entry["seconds"], entry["speedup_of_ours"], entry["rounds"]
        few = f"{rounds} round{'s' if rounds > 1 else ''}" if rounds < record["rounds_asked"] else ""
        spread = [f"{s['p20'] * 1e3:.3f} to {s['p80'] * 1e3:.3f}"] if rounds > 1 else []
        line = f"  {name:<22}{s['p50'] * 1e3:>10.3f} ms ({', '.join([*spread, *filter(None, [few])])})"
        if "items_per_second" in entry:
            line += f"  {entry['items_per_second']:>10,.0f}/s"
        elif entry["peak_bytes"] is not None:
            line += f"  {entry['peak_bytes'] / 1e6:>8,.1f} MB"
        if name != OURS:
            line = f"{line:<72}  poh_ext is {r['p50']:.1f}x"
            line += f" ({r['p20']:.1f} to {r['p80']:.1f})" if spread else ""
        print(line)
    for name, why in record["unavailable"].items():
        print(f"  {name:<22}  not timed: {why}")
