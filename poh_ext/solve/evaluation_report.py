"""What an evaluation says: a table, as lines of Markdown, and a figure.

Both have shares solved exactly, with Wilson's 95 % intervals over the mazes, and the shares that cells which see only
neighbours could know (`Outcome.knowable`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from poh_ext._figures import legend, log_axis, new_figure, style_by_turn
from poh_ext.report.statistics import estimate
from poh_ext.solve.evaluation import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_over_passes", "table_lines"]

ABREAST = 6  # factors; more are written one below the other
# Characters of a column, so that lines are aligned before all are known.
NAME, START, LENGTH, COUNT, SHARE = 17, 8, 11, 4, 18
KNOWABLE = "could be known"
IDENTICAL = "the only path"


def table_lines(outcomes: Iterable[Outcome], factors: Sequence[float]) -> Iterator[str]:
    """Yield the lines of the table, those of an outcome as soon as it is known. Shares are in percent.

    "the only path": of the mazes with one shortest path, those in which the path walked is that one.
    """
    abreast = len(factors) <= ABREAST
    one_below = ["passes a move", "solved exactly, %", f"{KNOWABLE}, %"]
    heads = [f"{factor:g} x" for factor in factors] if abreast else one_below
    widths = [NAME, START, LENGTH, COUNT, 15, *[SHARE if abreast or head.endswith("%") else 13 for head in heads], 7]
    heads = ["mazes", "start", "path, cells", "n", "met in training", *heads, "seconds"]
    yield _line(heads, widths)
    yield "|---" * len(heads) + "|"
    for outcome in outcomes:
        shares = [estimate({0: row}).text() for row in outcome.solved]
        about = [
            outcome.generator,
            outcome.start,
            f"{min(outcome.lengths)}-{max(outcome.lengths)}",
            len(outcome.lengths),
            outcome.met,
        ]
        knowable = [f"{100 * sum(row) / len(row):.1f}" for row in outcome.knowable]
        if abreast:
            yield _line([*about, *shares, f"{outcome.seconds:.0f}"], widths)
            yield _line([KNOWABLE, *[""] * (len(about) - 1), *knowable, ""], widths)
            if 0 < sum(outcome.unique) < len(outcome.unique):  # there are mazes with loops
                only = [f"{100 * same / of:.1f}" for same, of in outcome.identical]
                yield _line([IDENTICAL, "", "", sum(outcome.unique), "", *only, ""], widths)
            continue
        for i, cells in enumerate(zip((f"{factor:g}" for factor in factors), shares, knowable, strict=True)):
            first = i == 0
            yield _line(
                [*(about if first else [""] * len(about)), *cells, f"{outcome.seconds:.0f}" if first else ""], widths
            )


def _line(cells: Sequence, widths: Sequence[int]) -> str:
    return "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def accuracy_over_passes(outcomes: Sequence[Outcome], title: str = "") -> Figure:
    """A line with a band for each set of mazes, over passes for each move of the shortest path.

    Thin dotted lines show the share that could be known.

    Examples:
        >>> accuracy_over_passes(list(measure(model, recipe, DEFAULT_SETS, [0.5, 1, 2]))).savefig("passes.png")
    """
    figure = new_figure(8, 4.6)
    axis, handles = figure.subplots(), {}
    for turn, outcome in enumerate(outcomes):
        style = style_by_turn(turn)
        rows = sorted(zip(outcome.factors, outcome.solved, outcome.knowable, strict=True))
        factors, shares = [factor for factor, *_ in rows], [estimate({0: row}) for _, row, _ in rows]
        low, high = zip(*(share.wilson for share in shares), strict=True)
        axis.fill_between(factors, low, high, color=style.color, alpha=0.15, linewidth=0)
        (handles[f"{outcome.name}, n = {len(outcome.lengths):,}"],) = axis.plot(
            factors, [share.percent for share in shares], **style.line(), markersize=5, linewidth=1.6
        )
        axis.plot(
            factors, [100 * sum(row) / len(row) for *_, row in rows], color=style.color, linestyle=":", linewidth=1.0
        )
    log_axis(axis)
    axis.axvline(1, color="#444444", linestyle="--", linewidth=0.8, zorder=0)
    axis.set(
        xlabel="passes for each move of the shortest path (logarithmic); thin: could be known",
        ylim=(-3, 103),
        ylabel="mazes solved exactly (%), 95 % band",
        title=title,
    )
    axis.grid(alpha=0.3)
    legend(figure, handles, columns=3)
    return figure
