"""The machine's best rates: found within bounded time, not in one moment, and of the work they say."""

import math

import pytest
import torch

from poh_ext.bench.case import OURS, Case
from poh_ext.bench.machine import SHAPES, SHORT_SECONDS, SIDES, Peak, Trial, copies, products
from poh_ext.bench.measure import LOOK_AGAIN_SECONDS, Bench
from tests.cases.clock import StandInWatch

CPU = torch.device("cpu")
WORK = [4.0**i for i in range(20)]


@pytest.fixture
def watch():
    return StandInWatch()


def trials(watch, rate, log=None):
    """Of WORK, each at rate(work)."""

    def trial(work):
        def call():
            if log is not None:
                log.append(work)
            watch.work(work / rate(work))

        return Trial(str(work), work, lambda: call)

    return [trial(work) for work in WORK]


@pytest.mark.parametrize("rate", [10.0, 1e3, 1e5])
@pytest.mark.parametrize("seconds", [0.2, 1.0])
def test_no_trial_is_begun_that_would_not_end_in_time(rate, seconds, watch):
    peak = Peak(trials(watch, lambda work: rate), CPU, watch=watch)
    assert peak.look(seconds) == pytest.approx(rate)
    assert watch.time <= max(seconds, 2 / rate) + SHORT_SECONDS
    for _ in range(3):
        before = watch.time
        peak.look(seconds)
        assert watch.time - before <= max(seconds, 2 / rate) + SHORT_SECONDS


def test_a_rate_that_falls_with_the_size_is_followed(watch):
    """As in emulated half arithmetic, which loses its cache."""
    peak = Peak(trials(watch, lambda work: 1e4 / (1 + work / 1e3)), CPU, watch=watch)
    peak.look(1.0)
    assert watch.time <= 1.5 and peak.rate == pytest.approx(1e4, rel=0.1)


def test_the_best_of_all_sizes_counts(watch):
    best = {4.0**3: 900.0, 4.0**4: 1000.0}
    peak = Peak(trials(watch, lambda work: best.get(work, 100.0)), CPU, watch=watch)
    assert peak.look(30.0) == pytest.approx(1000.0) and peak.name == str(4.0**4)


def test_a_busy_moment_is_made_up_for_by_a_later_look(watch):
    """What a probe of one size at one moment reports as the peak: a kernel was then found at 153 % of it."""
    peak = Peak(trials(watch, lambda work: 100.0 if watch.time < 2.0 else 300.0), CPU, watch=watch)
    assert peak.look(1.0) == pytest.approx(100.0)
    watch.work(10.0)
    assert peak.look(0.5) == pytest.approx(300.0)
    peak.watch.time = 0.0
    assert peak.look(0.5) == pytest.approx(300.0), "and is not forgotten"


def test_the_largest_of_copies_counts_and_not_what_lies_in_caches(watch):
    peak = Peak(trials(watch, lambda work: 1e5 if work < 1e3 else 1e4), CPU, largest=True, watch=watch)
    assert peak.look(2.0) == pytest.approx(1e4)


def test_where_memory_ends_the_largest_trial_before_it_counts(watch):
    def no_memory():
        raise RuntimeError("out of memory")

    some = [*trials(watch, lambda work: 10.0)[:3], Trial("too large", 100.0, no_memory)]
    assert Peak(some, CPU, largest=True, watch=watch).look(60.0) == pytest.approx(10.0)


def test_a_case_is_compared_with_a_peak_looked_for_beside_it(watch):
    looks = []

    class Recorded(Peak):
        def look(self, seconds):
            looks.append((seconds, watch.time))
            return super().look(seconds)

    bench = Bench(CPU, torch.float32, 0.3, 3, watch=watch)
    bench._peaks[torch.float32] = Recorded(
        trials(watch, lambda work: 100.0 if watch.time < 2 else 300.0), CPU, watch=watch
    )
    bench.product_rate().look(1.0)
    watch.work(5.0)
    record = bench.measure(lambda: Case("train", "step", {OURS: watch.call(1.0)}, flops=150))
    assert looks[1][0] == LOOK_AGAIN_SECONDS and looks[1][1] >= 6.0
    assert record["flop_rate"] == pytest.approx(150.0) and record["flop_share"] == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_trials_do_the_work_they_say(dtype):
    found = products(CPU, dtype)
    assert [trial.work for trial in found] == sorted(trial.work for trial in found)
    assert len({trial.name for trial in found}) == len(found) == len(SIDES) * len(SHAPES)
    assert found[0].work <= 2 * 32**3, "cheap on any machine"
    assert any(trial.name == "[4608, 384] x [384, 1536]" for trial in found)  # a layer of the 12x12 planners
    for trial in found[:3]:
        left, right = (eval(part) for part in trial.name.split(" x "))
        result = trial.make()()
        assert result.shape == (left[0], right[1]) and result.dtype == dtype and left[1] == right[0]
        assert trial.work == 2 * left[0] * left[1] * right[1]


def test_copies_move_the_bytes_they_say():
    trial = copies(CPU, (2,))[0]
    assert trial.make()().nbytes * 2 == trial.work == 2 * 2 * 2**20


def test_real_peaks_are_numbers():
    for peak in (Peak(products(CPU, torch.float32), CPU), Peak(copies(CPU, (1, 2)), CPU, largest=True)):
        assert 0 < peak.look(0.05) < math.inf and peak.name
