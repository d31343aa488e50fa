"""The plot of an evaluation: shares of mazes solved exactly over the passes given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from poh_ext._figures import legend, log_axis, new_figure, style_by_turn
from poh_ext.report.statistics import estimate
from poh_ext.solve.outcomes import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_over_passes"]


def accuracy_over_passes(outcomes: Sequence[Outcome], title: str = "") -> Figure:
    """A line for each set of mazes, over passes for each move of the shortest path, with Wilson's 95 % bands.

    Thin dotted lines show the share that cells which see only neighbours could know (`Outcome.knowable`).

    Example:
        >>> accuracy_over_passes(list(measure(model, recipe, DEFAULT_SETS, [0.5, 1, 2]))).savefig("passes.png")
    """
    figure = new_figure(8, 4.6)
    axis, handles = figure.subplots(), []
    for turn, outcome in enumerate(outcomes):
        color, line, marker, _ = style_by_turn(turn)
        rows = sorted(zip(outcome.factors, outcome.solved, outcome.knowable, strict=True))
        factors, shares = [factor for factor, *_ in rows], [estimate({0: row}) for _, row, _ in rows]
        low, high = zip(*(share.wilson for share in shares), strict=True)
        axis.fill_between(factors, low, high, color=color, alpha=0.15, linewidth=0)
        handles += axis.plot(factors, [share.percent for share in shares], color=color, linestyle=line, marker=marker,
                             markersize=5, linewidth=1.6)
        axis.plot(factors, [100 * sum(row) / len(row) for *_, row in rows], color=color, linestyle=":", linewidth=1.0)
    log_axis(axis)
    axis.axvline(1, color="#444444", linestyle="--", linewidth=0.8, zorder=0)
    axis.set(xlabel="passes for each move of the shortest path (logarithmic); thin: could be known", ylim=(-3, 103),
             ylabel="mazes solved exactly (%), 95 % band", title=title)
    axis.grid(alpha=0.3)
    legend(figure, handles, [f"{outcome.name}, n = {len(outcome.lengths):,}" for outcome in outcomes], columns=3)
    return figure
