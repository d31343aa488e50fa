"""A clock for the tests of the benchmark program: time passes only where a stand-in call says so."""

import contextlib
import math

import torch

from poh_ext.bench.timing import TimeIsUp, Watch


class StandInWatch(Watch):
    def __init__(self):
        self.time, self._alarms = 0.0, []

    def now(self):
        return self.time

    @contextlib.contextmanager
    def limit(self, seconds):
        self._alarms.append(self.time + seconds)
        try:
            yield
        finally:
            self._alarms.pop()

    def work(self, seconds):
        """What takes so long, or until the alarm rings."""
        rings = min(self._alarms, default=math.inf)
        if self.time + seconds > rings:
            self.time = max(self.time, rings)
            raise TimeIsUp
        self.time += seconds

    def call(self, seconds, then=None, value=1.0):
        """A variant: it takes `seconds` the first time, then `then`; it ignores no alarm."""
        durations = iter([seconds])

        def variant():
            self.work(next(durations, seconds if then is None else then))
            return (torch.tensor([value]),)

        return variant

    def compiler(self, seconds, then=0.01, value=1.0):
        """The same for one that cannot be stopped the first time."""
        later, compiled = self.call(then, value=value), []

        def variant():
            if not compiled:
                compiled.append(True)
                self.time += seconds
            return later()

        return variant
