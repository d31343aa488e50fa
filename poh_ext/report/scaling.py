"""The plot of a benchmark of several sizes: outcomes, and PoH's advantage, against the number of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poh_ext._figures import legend, log_axis, new_figure, percent_top, style_of
from poh_ext._optional import require
from poh_ext.report.grouping import chance_rows, group_rows, sizes, unchanged
from poh_ext.report.statistics import MEASURES, compare, estimate_rows
from poh_ext.results import CONTROLS, Results, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["OPPONENTS", "scaling_panels"]

# What PoH is compared with, where it was trained.
OPPONENTS = ("baseline", "looped_baseline", "poh_shallow", "poh_token")


def scaling_panels(results: Results) -> Figure | None:
    """Four panels against parameters: reached, optimal, and in points the paired advantage of PoH in both.

    Every point has its 95 % interval, from the same statistics as the table and the verdict. Controls are reference
    lines: untrained models are thin with hollow markers, the random policy is dotted with its interval as a band.
    Models are moved sideways by 3.5 % of their parameters each, so that no interval hides another. None if fewer than
    two sizes were evaluated.

    Example:
        >>> scaling_panels(Results.load("results.json")).savefig("scaling.png")
    """
    groups = unchanged(group_rows(results))
    found = sizes(groups)
    if len(found) < 2:
        return None
    figure = new_figure(12.4, 8.8)
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    handles: dict = {}
    spans = [_outcomes(axis, results, groups, found, m, handles) for axis, m in zip(axes[0], MEASURES, strict=True)]
    axes[0, 0].set_ylim(-0.03 * percent_top(max(spans)), 1.03 * percent_top(max(spans)))  # shared
    for axis, measure in zip(axes[1], MEASURES, strict=True):
        _advantages(axis, results, groups, found, measure, handles)
    low, high = axes[1, 0].get_ylim()
    low, high = min(low, -2), max(high, 2)  # what small differences are is seen by their scale
    axes[1, 0].set_ylim(low, high + 0.08 * (high - low))  # room for the names
    for axis in axes.flat:
        log_axis(axis, unit=1e6)
        axis.set_xlabel("parameters (millions, logarithmic)")
        axis.tick_params(labelbottom=True, labelleft=True)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        _name_sizes(axis, groups, found)
    axes[0, 0].margins(x=0.08)
    legend(figure, list(handles.values()), list(handles))
    return figure


def _outcomes(axis, results, groups, found, measure, handles) -> float:
    """Draw one panel of shares. Returns its highest interval."""
    top = 0.0
    for trained in (True, False):
        for model in dict.fromkeys(m for _, m, t in groups if m not in CONTROLS and t == trained):
            points = _points({s: groups.get((s, model, trained)) for s in found}, measure, _aside(model))
            if not points:
                continue
            color, line, marker, _ = style_of(model, [m for _, m, _ in groups])
            look = {"linewidth": 1.8, "markersize": 7, "elinewidth": 1.2, "zorder": 4}
            if not trained:
                look = {"linewidth": 0.8, "markersize": 5, "elinewidth": 0.6, "markerfacecolor": "white", "zorder": 3}
            handles.setdefault(
                label(model, trained),
                axis.errorbar(*points, color=color, linestyle=line, marker=marker, capsize=3, **look),
            )
            top = max(top, *(y + up for y, up in zip(points[1], points[2][1], strict=True)))
    color, line, _, _ = style_of("random")
    drawn = set()
    for scale in found:
        rows = chance_rows(results, scale)
        p = estimate_rows(rows, measure) if rows else None
        if p is None or not p.n or (p.count, p.n) in drawn:
            continue
        drawn.add((p.count, p.n))  # sizes that share their mazes share the line
        axis.axhspan(*p.interval, color=color, alpha=0.15, linewidth=0)
        handles.setdefault(label("random"), axis.axhline(p.percent, color="#444444", linestyle=line, linewidth=1.6))
        top = max(top, p.interval[1])
    axis.set_ylabel(f"{measure} (% of test mazes)")
    axis.set_title(f"{measure}, 95 % intervals")
    return top


def _aside(model: str) -> float:
    """The factor by which a model is moved along the axis of parameters."""
    return 1.035 ** (OPPONENTS.index(model) - 1.5 if model in OPPONENTS else 1.5)


def _points(by_size: dict, measure: str, aside: float):
    """(parameters, percents, (down, up)) sorted by parameters, or None."""
    found = []
    for rows in by_size.values():
        p = estimate_rows(rows, measure) if rows else None
        if p is not None and p.n:
            low, high = p.interval
            found.append((rows[0].params * aside, p.percent, max(0.0, p.percent - low), max(0.0, high - p.percent)))
    if not found:
        return None
    x, y, down, up = zip(*sorted(found), strict=True)
    return x, y, (down, up)


def _advantages(axis, results, groups, found, measure, handles) -> None:
    """Draw one panel of differences, PoH minus another model on the same mazes; markers are hollow if not resolved."""
    line_of = require("matplotlib.lines").Line2D
    for opponent in OPPONENTS:
        pairs = [(scale, compare(results, measure, second=(opponent, True), scale=scale)) for scale in found]
        points = [(groups[scale, "poh", True][0].params * _aside(opponent), c) for scale, c in pairs if c is not None]
        points.sort(key=lambda point: point[0])
        if not points:
            continue
        color, line, marker, _ = style_of(opponent)
        x, y = [at for at, _ in points], [c.difference for _, c in points]
        errors = [[max(0.0, c.difference - c.interval[0]) for _, c in points],
                  [max(0.0, c.interval[1] - c.difference) for _, c in points]]  # fmt: skip
        name = f"PoH - {label(opponent)}, paired"
        axis.errorbar(x, y, yerr=errors, color=color, linestyle=line, linewidth=1.8, elinewidth=1.2, capsize=3)
        handles.setdefault(name, line_of([], [], color=color, linestyle=line, marker=marker, markersize=7))
        for at, c in points:
            fill = color if c.resolved else "white"
            axis.plot(at, c.difference, marker=marker, color=color, markerfacecolor=fill, markersize=7, zorder=5)
    axis.axhline(0, color="black", linewidth=1.0)
    axis.set_ylabel(f"advantage in {measure} (points)")
    axis.set_title(f"advantage of PoH in {measure}; filled: resolved, hollow: not")


def _name_sizes(axis, groups, found) -> None:
    """Write the names of the sizes along the top of the panel, at the parameters of PoH (or of the trained model)."""
    for scale in found:
        rows = groups.get((scale, "poh", True)) or next(g for (s, m, _), g in groups.items() if s == scale)
        axis.annotate(
            scale, (rows[0].params, 0.985), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
