"""The table of an evaluation, as lines of Markdown.

It has shares solved exactly, with 95 % intervals, and shares that cells which see only neighbours could know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from poh_ext.report.statistics import estimate
from poh_ext.solve.outcomes import Outcome

__all__ = ["lines"]

ABREAST = 6  # factors; more are written one below the other
# Characters of a column, so that lines are aligned before all are known.
NAME, START, LENGTH, COUNT, SHARE = 17, 8, 11, 4, 18
KNOWABLE = "could be known"


def lines(outcomes: Iterable[Outcome], factors: Sequence[float]) -> Iterator[str]:
    """Yield the lines of the table, those of an outcome as soon as it is known.

    A share is in percent, followed by Wilson's 95 % interval over the mazes. "Could be known" is `Outcome.knowable`.
    """
    abreast = len(factors) <= ABREAST
    one_below = ["passes a move", "solved exactly, %", f"{KNOWABLE}, %"]
    heads = [f"{factor:g} x" for factor in factors] if abreast else one_below
    widths = [NAME, START, LENGTH, COUNT, 15, *[SHARE if abreast or head.endswith("%") else 13 for head in heads], 7]
    heads = ["mazes", "start", "path, cells", "n", "met in training", *heads, "seconds"]
    yield _line(heads, widths)
    yield "|---" * len(heads) + "|"
    for outcome in outcomes:
        shares = [_share(row) for row in outcome.solved]
        about = [outcome.generator, outcome.start, f"{min(outcome.lengths)}-{max(outcome.lengths)}",
                 len(outcome.lengths), outcome.met]
        knowable = [f"{100 * sum(row) / len(row):.1f}" for row in outcome.knowable]
        if abreast:
            yield _line([*about, *shares, f"{outcome.seconds:.0f}"], widths)
            yield _line([KNOWABLE, *[""] * (len(about) - 1), *knowable, ""], widths)
            continue
        for i, cells in enumerate(zip((f"{factor:g}" for factor in factors), shares, knowable, strict=True)):
            first = i == 0
            yield _line([*(about if first else [""] * len(about)), *cells, f"{outcome.seconds:.0f}" if first else ""],
                        widths)


def _share(solved: list[bool]) -> str:
    share = estimate({0: solved})
    return f"{share.percent:.1f} [{share.wilson[0]:.1f}-{share.wilson[1]:.1f}]"


def _line(cells: Sequence, widths: Sequence[int]) -> str:
    return "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
