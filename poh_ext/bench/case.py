"""One timed computation: its variants, how their results are compared, and the least work that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

OURS = "poh_ext"
COMPILED = "torch.compile"  # in the names of variants whose first call compiles


class NotTimed(Exception):
    """A variant is left out. The message is the reason."""


def close(relative: float) -> Callable[[tuple, tuple], str]:
    """A comparison of results: '' if in every pair they differ by at most `relative` of the largest expected value."""

    def compare(found, expected) -> str:
        if len(found) != len(expected):
            return f"{len(found)} results where {len(expected)} were expected"
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            if a.shape != b.shape:
                return f"result {i} has shape {tuple(a.shape)}, not {tuple(b.shape)}"
            if not b.numel():
                continue
            a, b = a.double(), b.double()
            difference, limit = (a - b).abs().max().item(), relative * max(b.abs().max().item(), 1e-6)
            if not difference <= limit:  # also true for NaN
                return f"result {i} differs by {difference:.3g}, more than {limit:.3g}"
        return ""

    return compare


@dataclass
class Case:
    """One computation on fixed inputs.

    Attributes:
        variants: name -> call that returns a tuple of tensors (results, then gradients). OURS is one of them.
        compare: (found, expected) -> '', or the reason why they are not the same computation.
        bytes_moved: least traffic that the computation needs (inputs read once, outputs written once), or None.
        flops: floating-point operations of the matrix products, or None if they do not dominate.
        precision: the dtype of those products, if it is not that of the run.
        items: name -> number of things made per call (mazes); empty if a rate has no meaning.
        foreign: names of variants of other projects. One that gives other results is left out, and the reason told.
        slower: name -> least factor by which a variant takes longer than OURS, for variants whose call is one long
            operator. Such a call cannot be stopped, so it is not begun if there is no time for it.
    """

    group: str
    name: str
    variants: dict[str, Callable[[], tuple[torch.Tensor, ...]]]
    compare: Callable[[tuple, tuple], str] = field(default_factory=lambda: close(1e-4))
    bytes_moved: int | None = None
    flops: int | None = None
    precision: torch.dtype | None = None
    items: dict[str, int] = field(default_factory=dict)
    slower: dict[str, float] = field(default_factory=dict)
    foreign: frozenset[str] = frozenset()

    def check(self, run: Callable[[str, Callable], tuple] = lambda name, call: call()) -> dict[str, str]:
        """Run every variant once and compare it with OURS. Returns name -> reason for those that cannot run.

        Args:
            run: (name, variant) -> its results; may raise NotTimed.

        Raises:
            AssertionError: the result of a variant that is not foreign differs, so the timings would compare
                different computations.
        """
        expected = run(OURS, self.variants[OURS])
        failed = {}
        for name, call in self.variants.items():
            try:
                found = expected if name == OURS else run(name, call)
            except NotTimed as error:
                failed[name] = str(error)
                continue
            except Exception as error:  # an older torch; and other projects raise what they like
                words = " ".join(str(error).split()) or "?"
                failed[name] = f"{type(error).__name__}: {words[:120]}"
                continue
            problem = self.compare(found, expected)
            if problem and name in self.foreign:
                failed[name] = f"its results differ: {problem}"
            elif problem:
                raise AssertionError(f"{self.name}: {name} and {OURS} disagree: {problem}")
        return failed


def with_gradients(function, inputs, **options):
    """A call that runs `function(*inputs, **options)` and its backward, and returns (loss, *gradients)."""
    leaves = [x for x in inputs if x.is_floating_point() and x.requires_grad]

    def call():
        loss = function(*inputs, **options)
        return (loss.detach(), *torch.autograd.grad(loss, leaves))

    return call
