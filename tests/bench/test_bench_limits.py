"""The benchmark program keeps to its time on any machine: with a clock of its own, machines as slow as can be."""

import math
import signal
import threading

import numpy as np
import pytest
import torch

from poh_ext.bench import __main__ as program
from poh_ext.bench import cases as bench_cases
from poh_ext.bench.case import OURS, Case
from poh_ext.bench.measure import Bench, show
from poh_ext.bench.timing import LONG_SECONDS, Allowance, Purse, Spread, TimeIsUp, Watch, interleave, ratio, share_out
from tests.cases.clock import StandInWatch

CPU = torch.device("cpu")
COMPILE = "torch.compile"


@pytest.fixture
def watch():
    return StandInWatch()


def bench(watch, **options):
    return Bench(CPU, torch.float32, **{"seconds": 0.3, "min_rounds": 3, **options}, watch=watch)


def case(watch, variants, group="loss"):
    """A builder of a case whose variants are calls or their seconds."""
    calls = {name: call if callable(call) else watch.call(call) for name, call in variants.items()}
    return lambda: Case(group, "a case", calls)


# -- the clock --------------------------------------------------------------------------------------------------


def test_the_alarm_ends_what_takes_too_long_and_is_off_afterwards():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeIsUp), Watch().limit(0.02):
        while True:
            try:
                torch.ones(10).sum()
            except Exception:  # what a library may do
                pytest.fail("taken for an error")
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with Watch().limit(60):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_without_a_limit_or_in_a_thread_there_is_no_alarm():
    def look():
        with Watch().limit(60):
            found.append(signal.getitimer(signal.ITIMER_REAL))

    found = []
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    with Watch().limit(math.inf):
        found.append(signal.getitimer(signal.ITIMER_REAL))
    assert found == [(0.0, 0.0)] * 2


# -- sharing ----------------------------------------------------------------------------------------------------


def test_small_needs_are_met_first():
    assert share_out({"a": 1.0, "b": 100.0, "c": 2.0}, 9.0) == {"a": 1.0, "b": 6.0, "c": 2.0}
    assert share_out({"a": 8.0, "b": 9.0}, 4.0) == {"a": 2.0, "b": 2.0}
    assert share_out({"a": 1.0, "b": 2.0}, 5.0) == {"a": 2.0, "b": 3.0}
    assert share_out({"a": 1.0, "b": 2.0}, -1.0) == {"a": 0.0, "b": 0.0}
    assert share_out({"a": 1.0}, math.inf) == {"a": math.inf}


def test_what_a_case_leaves_or_overdraws_is_that_of_the_rest(watch):
    allowance = Allowance(100, [1, 1, 2], watch)
    assert allowance.next() == 25.0
    watch.work(10)
    assert allowance.next(reserved=30) == 20.0
    watch.work(70)
    assert allowance.next() == 20.0
    watch.work(50)
    over = Allowance(10, [1, 1], watch)
    watch.work(11)
    assert over.next() == 0.0
    assert Allowance(math.inf, [1, 1], watch).next(reserved=math.inf) == math.inf


def test_a_purse_pays_for_what_the_last_one_cost():
    purse = Purse(20.0)
    assert purse.affords()
    purse.pay(9.0)
    assert purse.affords()
    purse.pay(9.0)
    assert not purse.affords() and purse.left == 2.0
    purse.pay(9.0)
    assert purse.left == 0.0 and not Purse(0.0).affords() and Purse(math.inf).affords()


# -- rounds -----------------------------------------------------------------------------------------------------


def test_slow_variants_sit_out_rounds(watch):
    times = interleave(
        {name: watch.call(seconds) for name, seconds in (("a", 0.3), ("b", 0.4), ("c", 4.0))},
        CPU,
        seconds=0.5,
        min_rounds=5,
        allowed=15.0,
        watch=watch,
    )
    taken = {name: [t for t in row if t is not None] for name, row in times.items()}
    assert {name: len(row) for name, row in taken.items()} == {"a": 5, "b": 5, "c": 1}
    assert len({len(row) for row in times.values()}) == 1 and taken["a"] == pytest.approx([0.3] * 5)
    assert watch.time <= 15.0
    assert ratio(times["c"], times["a"]).p50 == pytest.approx(4 / 0.3)


def test_a_variant_without_time_for_a_round_is_known_by_its_first_call(watch):
    calls = {OURS: watch.call(0.3), "rival": watch.call(math.nan)}  # never made
    times = interleave(
        calls, CPU, seconds=0.5, min_rounds=3, allowed=4.0, watch=watch, first={OURS: 0.31, "rival": 60.0}
    )
    assert times["rival"] == [60.0, None, None] and times[OURS] == [pytest.approx(0.3)] * 3
    assert ratio(times["rival"], times[OURS]) == Spread(*[pytest.approx(200.0)] * 3)
    nothing_left = interleave(calls, CPU, allowed=0.0, watch=watch, first={OURS: 0.31, "rival": 60.0})
    assert nothing_left == {OURS: [0.31], "rival": [60.0]}


@pytest.mark.parametrize("seed", range(20))
def test_rounds_keep_to_what_is_allowed(seed, watch):
    """But for samples that are learned from, and those that take longer than the one before, which none does here."""
    random = np.random.default_rng(seed)
    seconds = {str(i): float(s) for i, s in enumerate(np.exp(random.uniform(-9, 4, random.integers(1, 6))))}
    allowed = float(np.exp(random.uniform(-3, 5)))
    learned = sum(2 * s for s in seconds.values() if s < LONG_SECONDS)
    times = interleave(
        {name: watch.call(s) for name, s in seconds.items()},
        CPU,
        seconds=0.3,
        min_rounds=5,
        allowed=allowed,
        first=seconds,
        watch=watch,
    )
    assert watch.time <= max(allowed, learned) * (1 + 1e-9)
    for name, row in times.items():
        assert {round(t, 12) for t in row if t is not None} == {round(seconds[name], 12)}
        assert sum(t is not None for t in row) >= 1
    if sum(seconds.values()) * 30 < allowed:
        assert all(sum(t is not None for t in row) >= 5 for row in times.values())


def test_ratios_are_of_shared_rounds_alone():
    assert ratio([None, 6.0, None], [1.0, 2.0, 4.0]) == Spread(3.0, 3.0, 3.0)
    assert ratio([8.0, None, None], [None, 2.0, 4.0]).p50 == pytest.approx(8 / 3)


# -- a case -----------------------------------------------------------------------------------------------------


def test_a_slow_call_is_reported_once_and_says_so(watch, capsys):
    variants = {OURS: 0.001, "rival": 3.0, "eager": 0.01}
    record = bench(watch).measure(case(watch, variants), allowed=6.0)
    assert {name: entry["rounds"] for name, entry in record["variants"].items()}["rival"] == 1
    assert record["variants"]["eager"]["rounds"] >= 3 and watch.time <= 6.0 + 0.1
    show(record)
    lines = capsys.readouterr().out.splitlines()
    assert "3000.000 ms (1 round)" in lines[3] and lines[3].endswith("poh_ext is 3000.0x")
    assert "round" not in lines[2] + lines[4] and "poh_ext is 10.0x (10.0 to 10.0)" in lines[4]
    assert max(map(len, lines)) <= 110


def test_a_call_that_does_not_end_is_stopped_and_the_others_are_timed(watch):
    record = bench(watch).measure(case(watch, {OURS: 0.001, "rival": 1e6, "last": 0.001}), allowed=5.0)
    stopped = {"rival": "stopped after 3.0 s in its first call", "last": "no time was left for it"}
    assert record["unavailable"] == stopped
    assert record["variants"][OURS]["rounds"] >= 3 and watch.time <= 5.1


def test_a_call_that_cannot_be_stopped_is_not_begun_without_time(watch):
    calls = {OURS: watch.call(0.2), "every cell": watch.call(4.0)}
    made = Case("passes", "a case", calls, slower={"every cell": 10.0})
    assert bench(watch).measure(lambda: made, allowed=2.0)["unavailable"] == {
        "every cell": "it takes 2.0 s at least, and 1.0 s were left for it"
    }
    assert bench(watch).measure(lambda: made, allowed=20.0)["unavailable"] == {}


@pytest.mark.parametrize("inputs, ours", [(1e6, 0.1), (0.1, 1e6)])
def test_where_poh_ext_itself_does_not_end_the_case_ends(watch, inputs, ours):
    def build():
        watch.work(inputs)
        return case(watch, {OURS: ours})()

    with pytest.raises(TimeIsUp):
        bench(watch).measure(build, allowed=5.0)
    assert watch.time <= 5.0


def test_compilers_have_a_purse_of_their_own(watch):
    run = bench(watch, compiling=Purse(20.0))
    for _ in range(2):
        record = run.measure(case(watch, {OURS: 0.001, COMPILE: watch.compiler(9.0)}), allowed=2.0)
        assert record["unavailable"] == {} and record["variants"][COMPILE]["rounds"] >= 3
        assert record["variants"][COMPILE]["seconds"]["p50"] == pytest.approx(0.01), "not what compiling took"
    record = run.measure(case(watch, {OURS: 0.001, COMPILE: watch.compiler(9.0)}), allowed=2.0)
    assert record["unavailable"] == {COMPILE: "compiling it takes about 9 s, and 2 s were left for that"}
    assert watch.time <= 18.0 + 3 * 2.1


def test_nothing_is_compiled_that_could_not_be_called(watch):
    variants = {OURS: 0.001, "eager": 1.0, COMPILE: lambda: pytest.fail("begun")}
    record = bench(watch, compiling=Purse(20.0)).measure(case(watch, variants), allowed=2.0)
    assert record["unavailable"] == {COMPILE: "no time was left for it"}


def test_a_compiler_that_fails_has_taken_its_time(watch):
    def fails():
        watch.time += 9.0
        raise RuntimeError("backend='inductor' raised:\nCppCompileError: no g++")

    run = bench(watch, compiling=Purse(20.0))
    record = run.measure(case(watch, {OURS: 0.001, COMPILE: fails}), allowed=2.0)
    assert record["unavailable"] == {COMPILE: "RuntimeError: backend='inductor' raised: CppCompileError: no g++"}
    assert run.compiling.left == 11.0 and run.compiling.last == 9.0


def test_without_a_limit_nothing_is_left_out(watch):
    variants = {OURS: 0.3, "rival": 50.0, COMPILE: watch.compiler(500.0)}
    record = bench(watch, seconds=4.0, min_rounds=5).measure(case(watch, variants))
    assert record["unavailable"] == {} and {e["rounds"] for e in record["variants"].values()} == {5}


# -- a run ------------------------------------------------------------------------------------------------------

MACHINES = {  # seconds of poh_ext, of eager code, of a foreign package, of compiling
    "fast": (2e-3, 0.01, 0.1, 3.0),
    "slow": (0.05, 1.0, 20.0, 15.0),
    "busy": (0.5, 45.0, 190.0, 80.0),
    "hopeless": (300.0, 3000.0, 3000.0, 300.0),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_quick_run_keeps_to_two_minutes(machine, watch, monkeypatch, capsys):
    ours, eager, foreign, compiling = MACHINES[machine]
    compiled = [COMPILE, "eager"]
    groups = {"loss": compiled, "attention": compiled, "mazes": ["maze-dataset"], "train": ["eager"]}

    def cases_of(group):
        def build():
            made = {OURS: watch.call(ours)}
            for name in groups[group]:
                made[name] = (
                    watch.compiler(compiling, ours)
                    if name == COMPILE
                    else watch.call(eager if name == "eager" else foreign)
                )
            return Case(group, f"a {group} case", made)

        return [(f"size{i}", build) for i in range(6)]

    monkeypatch.setattr(program, "GROUPS", {group: lambda *_, g=group: cases_of(g) for group in groups})
    monkeypatch.setattr(program, "Bench", lambda *options: Bench(*options, watch=watch))
    monkeypatch.setattr(program.machine, "seconds_since_start", lambda: 10.0)
    monkeypatch.setattr(program, "warm_up_compiler", lambda *_: watch.work(min(compiling, 9.0)))
    for peak in ("bandwidth", "product_rate"):
        monkeypatch.setattr(Bench, peak, lambda *_: type("Peak", (), {"rate": 1.0, "name": "x"}))
    assert program.main(["--quick", "--only", ",".join(groups)]) == 0
    said = capsys.readouterr()
    assert watch.time + 10.0 <= (120 if machine != "hopeless" else program.QUICK_LIMIT + compiling)
    named = [line for line in said.out.splitlines() if line.startswith("a ") or line.startswith(tuple(groups))]
    assert len(named) == 24, "each case is timed, or it is said why not"
    timed, left_out = said.out.count("ms ("), said.out.count("not timed")
    assert (timed > 0) == (machine != "hopeless") and (left_out == 0) == (machine == "fast")
    assert ("round)" in said.out or "rounds)" in said.out) == (machine in ("slow", "busy"))
    assert said.err.count("timing: ") == 24 + 2 and "timing: 24 of 24, train size5" in said.err


def test_a_compiler_slow_to_import_is_not_started(watch, monkeypatch):
    monkeypatch.setattr(bench_cases.importlib, "import_module", lambda name: watch.work(11.0))
    monkeypatch.setattr(torch, "compile", lambda *_: pytest.fail("begun, though it would not end in time"))
    purse = Purse(30.0)
    bench_cases.warm_up_compiler(CPU, purse, watch)
    assert not purse.affords() and purse.last == 33.0


def test_the_first_compilation_comes_out_of_the_purse(watch, monkeypatch):
    def compiles(function):
        watch.work(6.0)
        return function

    monkeypatch.setattr(bench_cases.importlib, "import_module", lambda name: watch.work(2.0))
    monkeypatch.setattr(torch, "compile", compiles)
    purse = Purse(30.0)
    bench_cases.warm_up_compiler(CPU, purse, watch)
    assert purse.left == 22.0 and purse.affords() and purse.last == 0.0
