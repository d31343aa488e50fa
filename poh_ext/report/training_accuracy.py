"""Accuracy over training time: shares of validation mazes solved while the planners are trained.

The validation mazes are neither test nor training mazes. The time of the validation is not counted as training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from poh_ext._figures import legend, new_figure, percent_top, style_of
from poh_ext.report.document import Block, Grid, Heading, Paragraph, Picture
from poh_ext.report.grouping import group_rows, sizes, unchanged
from poh_ext.report.statistics import MEASURES, Proportion, estimate
from poh_ext.results import Results, Row, label, solved_measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOLVED", "accuracy_blocks", "accuracy_curves", "solved_from"]

SOLVED = 0.999  # of the validation mazes
MINUTES_FROM = 300.0  # seconds: a longer axis is in minutes


def solved_from(points: list[dict], solved: str = "optimal") -> dict | None:
    """The first point of `Row.validation` from which on, to the last, at least SOLVED of the mazes are `solved`."""
    found = None
    for point in reversed(points):
        if point[solved] < SOLVED:
            break
        found = point
    return found


def accuracy_curves(results: Results) -> Figure | None:
    """Reached, optimal and, if all points have it, exact, against seconds of training, with a line of panels per size.

    Each seed is a thin line. Their mean is a thick line, at the mean of their seconds. A single seed is a thick line
    with Wilson's 95 % interval as a band.
    """
    groups = {key: found for key, rows in unchanged(group_rows(results)).items()
              if (found := [row for row in rows if row.validation])}
    if not groups:
        return None
    points = [point for rows in groups.values() for row in rows for point in row.validation]
    longest = max(point["seconds"] for point in points)
    unit, per = ("minutes", 60.0) if longest > MINUTES_FROM else ("seconds", 1.0)
    names = list(dict.fromkeys(model for _, model, _ in groups))
    scales = sizes(groups)
    measures = [*MEASURES, "exact"] if solved_measure(points) == "exact" else MEASURES
    figure = new_figure(5.5 * len(measures), 0.6 + 4.0 * len(scales))
    axes = figure.subplots(len(scales), len(measures), squeeze=False, sharey="row")
    handles, seeds = {}, max(map(len, groups.values()))
    for line_of_axes, scale in zip(axes, scales, strict=True):
        highest = 0.0
        for axis, measure in zip(line_of_axes, measures, strict=True):
            for (of, model, trained), rows in groups.items():
                if of == scale:
                    drawn, top = _draw(axis, rows, measure, per, style_of(model, names))
                    handles.setdefault(label(model, trained), drawn)
                    highest = max(highest, top)
            axis.set(xlabel=f"{unit} of training", ylabel=f"{measure} (% of validation mazes)", title=scale,
                     xlim=(-0.02 * longest / per, 1.03 * max(longest, 1e-9) / per))  # fmt: skip
            axis.tick_params(labelleft=True)
            axis.grid(alpha=0.3)
        line_of_axes[0].set_ylim(-0.04 * percent_top(highest), 1.04 * percent_top(highest))  # shared
    mazes = sorted({point["mazes"] for point in points})
    said = f"{mazes[0]:,}" if len(mazes) == 1 else f"{mazes[0]:,} to {mazes[-1]:,}"
    figure.suptitle(f"Accuracy over training time on {said} validation mazes ("
                    + (f"thin: {seeds} seeds; thick: their mean)" if seeds > 1 else "band: 95 % interval)"))
    legend(figure, list(handles.values()), list(handles))
    return figure


def _draw(axis, rows: list[Row], measure: str, per: float, style: tuple):
    """Draw the lines of one model. Returns the thick line and the highest percentage."""
    color, line, marker, _ = style
    curves = [{p["step"]: (p["seconds"] / per, 100 * p[measure]) for p in row.validation} for row in rows]
    if len(rows) == 1:
        shares = [_share(point, measure) for point in rows[0].validation]
        at = [x for x, _ in curves[0].values()]
        axis.fill_between(at, *zip(*(share.wilson for share in shares), strict=True), color=color, alpha=0.15,
                          linewidth=0)
    else:
        for curve in curves:
            axis.plot(*zip(*curve.values(), strict=True), color=color, linestyle=line, linewidth=0.7, alpha=0.45)
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))  # a mean of fewer seeds would jump
    mean = np.array([[curve[step] for curve in curves] for step in steps]).reshape(len(steps), len(curves), 2).mean(1)
    drawn, = axis.plot(mean[:, 0], mean[:, 1], color=color, linestyle=line, marker=marker, linewidth=1.8,
                       markersize=4.5, markevery=max(1, len(steps) // 10))  # fmt: skip
    return drawn, max(y for curve in curves for _, y in curve.values())


def accuracy_blocks(results: Results, picture: Picture | None) -> list[Block]:
    """The section of the report: the picture, and the times from which on the validation mazes were solved."""
    rows = [(key, row) for key, rows in group_rows(results).items() for row in rows if row.validation]
    if not rows:
        return []
    lines, solved = [], solved_measure([point for _, row in rows for point in row.validation])
    for (scale, model, trained), row in rows:
        last, since = row.validation[-1], solved_from(row.validation, solved)
        best = max(row.validation, key=lambda point: point[solved])
        when = ["-", "-"] if since is None else [f"{since['step']:,}", _seconds(since["seconds"])]
        lines.append([label(model, trained, scale), str(row.seed), f"{last['mazes']:,}", *when,
                      f"{100 * best[solved]:.1f} (step {best['step']:,})", _percent(_share(last, solved)),
                      f"{last['step']:,}", _seconds(last["seconds"])])  # fmt: skip
    share = f"{100 * SOLVED:g} %"
    header = ["model", "seed", "validation mazes", f"{solved} >= {share} from step", "from second", f"best {solved} %",
              f"last {solved} % [95 % CI]", "last step", "last second"]
    few = min(row.validation[-1]["mazes"] for _, row in rows)
    note = ("Validation mazes are neither test nor training mazes, and are solved as the test mazes are. From step and "
            f"second: the first validation from which on, to the last, {share} of them or more are {solved} (-: "
            "never). Seconds are those of the training alone, without the validation. Intervals: Wilson, over "
            "mazes.")
    if few * (1 - SOLVED) < 1:
        note += f" Of {few:,} mazes, {share} means all."
    return [Heading("Accuracy over training time"), *([picture] if picture else []),
            Grid(header, lines, left=1, caption="Validation while training"), Paragraph(note)]


def _share(point: dict, measure: str) -> Proportion:
    count = round(point[measure] * point["mazes"])
    return estimate({0: [True] * count + [False] * (point["mazes"] - count)})


def _percent(share: Proportion) -> str:
    low, high = share.wilson
    return f"{share.percent:.1f} [{low:.1f}-{high:.1f}]"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
