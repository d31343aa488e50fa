"""Figures of the outcomes on the test mazes: bars, against the length of the shortest path, against the parameters.

Each function returns a Matplotlib figure, or None if the run has no data for it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from poh_ext._figures import legend, log_axis, new_figure, percent_axis, percent_top, style_of, whiskers
from poh_ext._optional import require
from poh_ext.report.statistics import (
    MEASURES,
    OPPONENTS,
    chance_rows,
    compare,
    estimate,
    estimate_rows,
    group_rows,
    sizes,
    unchanged,
)
from poh_ext.results import CONTROLS, Results, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_by_length", "outcome_bars", "scaling_panels"]

MAZES_PER_BIN = 20  # fewer tell next to nothing: the interval of 10 of 20 is 30 to 70 %


def outcome_bars(results: Results) -> Figure | None:
    """Share of test mazes reached and solved optimally, with 95 % intervals; untrained and random as controls."""
    groups = group_rows(results)
    if not groups:
        return None
    shares = {(key, m): estimate_rows(rows, m) for key, rows in groups.items() for m in MEASURES}
    top = percent_top(max((max(p.percent, p.interval[1]) for p in shares.values() if p.n), default=100))
    figure = new_figure(11, 1.5 + 0.42 * len(groups))
    axes = figure.subplots(1, 2, sharey=True)
    handles, blank = {}, {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for axis, measure in zip(axes, MEASURES, strict=True):
        for place, key in enumerate(groups):
            p, (_, model, trained) = shares[key, measure], key
            if not p.n:
                continue
            color, _, _, hatch = style_of(model, [k[1] for k in groups])
            axis.barh(
                place,
                p.percent,
                height=0.62,
                facecolor=color if trained else "white",
                hatch=hatch,
                edgecolor="black" if trained else color,
                linewidth=1.0,
                alpha=0.85 if trained else 1.0,
            )
            axis.errorbar(
                p.percent, place, xerr=whiskers([p.percent], [p.interval]), color="black", capsize=4, linewidth=1.4
            )
            axis.text(
                max(p.percent, p.interval[1]) + 0.015 * top,
                place,
                f"{p.percent:.1f}",
                va="center",
                fontsize=9,
                bbox=blank,
            )
            if model == "random":
                handles["the random policy's share"] = axis.axvline(
                    p.percent, color="#444444", linestyle=":", linewidth=1.3, zorder=0
                )
        for place, (above, below) in enumerate(itertools.pairwise(groups)):
            if above[0] != below[0]:  # another size
                axis.axhline(place + 0.5, color="#999999", linewidth=0.8)
        axis.set(xlim=(0, 1.12 * top), xlabel=f"{measure} (% of test mazes), 95 % interval")
        axis.set_xticks(range(0, top + 1, {10: 2, 20: 5, 80: 20, 100: 20}.get(top, 10)))
        axis.grid(axis="x", alpha=0.3, zorder=-1)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(groups)), [label(model, trained, scale) for scale, model, trained in groups])
    axes[0].set_ylim(len(groups) - 0.4, -0.6)
    if handles:
        legend(figure, handles)
    return figure


def accuracy_by_length(results: Results, bins: int = 6) -> Figure | None:
    """Shares of mazes against the cells on their shortest path, in bins of about equal count, with Wilson intervals.

    There is one row of panels per size, each with the random policy. Untrained models are shown only if nothing is
    trained.
    """
    groups = unchanged(group_rows(results))
    shown = {k: g for k, g in groups.items() if k[1] not in CONTROLS}
    shown = {k: g for k, g in shown.items() if k[2]} or shown
    scales = sizes(shown) or [""]
    lengths = {seed: np.asarray(s["path_lengths"], dtype=np.int64) for seed, s in results.test_sets.items()}
    used = np.concatenate([[], *(lengths[seed] for seed in {r.seed for g in groups.values() for r in g})])
    if not len(used):
        return None
    edges = _bin_edges(used, max(1, min(bins, len(used) // MAZES_PER_BIN)))
    names = [
        (f"{low}" if high - low == 1 else f"{low}-{high - 1}") + f"\nn = {count:,}"
        for (low, high), count in zip(itertools.pairwise(edges), np.histogram(used, edges)[0], strict=True)
    ]
    figure = new_figure(11, 0.6 + 4.0 * len(scales))
    axes = figure.subplots(len(scales), 2, squeeze=False, sharey="row")
    handles = {}
    for line_of_axes, scale in zip(axes, scales, strict=True):
        drawn = [(model, trained, rows) for (s, model, trained), rows in shown.items() if s == scale]
        if chance := chance_rows(results, scale):
            drawn.append(("random", False, chance))
        top = 0.0
        for axis, measure in zip(line_of_axes, MEASURES, strict=True):
            for j, (model, trained, rows) in enumerate(drawn):
                found = _by_bin(rows, measure, lengths, edges)
                shift = 0.09 * (j - (len(drawn) - 1) / 2)  # so that intervals stand side by side
                percents, intervals = [p.percent for p in found.values()], [p.wilson for p in found.values()]
                bars = axis.errorbar([b + shift for b in found], percents, yerr=whiskers(percents, intervals),
                                     **style_of(model, [key[1] for key in groups]).line(), markersize=6, linewidth=1.6,
                                     elinewidth=1.0, capsize=3)  # fmt: skip
                handles.setdefault(label(model, trained), bars)
                top = max([top, *(high for _, high in intervals)])
            axis.set_xticks(range(len(names)), names)
            axis.set(
                xlim=(-0.5, len(names) - 0.5),
                title=scale,
                xlabel="cells on the shortest path",
                ylabel=f"{measure} (% of test mazes)",
            )
            axis.tick_params(labelleft=True)
            axis.grid(alpha=0.3)
        percent_axis(line_of_axes[0], top)
    legend(figure, handles, columns=5)
    return figure


def _by_bin(rows, measure: str, lengths: dict, edges: list[int]) -> dict:
    """Bin -> the share of its mazes, over all seeds."""
    found = {}
    for b, (low, high) in enumerate(itertools.pairwise(edges)):
        outcomes = []
        for row in rows:
            inside = (lengths[row.seed] >= low) & (lengths[row.seed] < high)
            outcomes += np.asarray(getattr(row, measure), dtype=bool)[inside].tolist()
        if outcomes:
            found[b] = estimate({0: outcomes})
    return found


def _bin_edges(lengths: np.ndarray, bins: int) -> list[int]:
    """Integer edges [e0, e1), ... at the quantiles, without empty bins; fewer when lengths repeat."""
    inner = [round(q) for q in np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1])]
    low, high = int(lengths.min()), int(lengths.max()) + 1
    edges = [low, *sorted({q for q in inner if low < q < high}), high]
    counts = np.histogram(lengths, edges)[0]
    return [edges[0]] + [edge for edge, count in zip(edges[1:], counts, strict=True) if count]


def scaling_panels(results: Results) -> Figure | None:
    """Four panels against parameters: reached, optimal, and in points the paired advantage of PoH in both.

    Every point has its 95 % interval, from the same statistics as the table and the verdict. Controls are reference
    lines: untrained models are thin with hollow markers, the random policy is dotted with its interval as a band.
    Models are moved sideways by 3.5 % of their parameters each, so that no interval hides another. None if fewer than
    two sizes were evaluated.

    Examples:
        >>> scaling_panels(Results.load("results.json")).savefig("scaling.png")
    """
    groups = unchanged(group_rows(results))
    found = sizes(groups)
    if len(found) < 2:
        return None
    figure = new_figure(12.4, 8.8)
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    handles: dict = {}
    tops = [_outcomes(axis, results, groups, found, m, handles) for axis, m in zip(axes[0], MEASURES, strict=True)]
    percent_axis(axes[0, 0], max(tops), margin=0.03)
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
    legend(figure, handles)
    return figure


def _outcomes(axis, results, groups, found, measure, handles) -> float:
    """Draw one panel of shares. Returns its highest interval."""
    top = 0.0
    looks = {
        True: {"linewidth": 1.8, "markersize": 7, "elinewidth": 1.2, "zorder": 4},
        False: {"linewidth": 0.8, "markersize": 5, "elinewidth": 0.6, "markerfacecolor": "white", "zorder": 3},
    }
    for trained, look in looks.items():
        for model in dict.fromkeys(m for _, m, t in groups if m not in CONTROLS and t == trained):
            own = (groups[key] for scale in found if (key := (scale, model, trained)) in groups)
            points = sorted(((rows[0].params * _aside(model), estimate_rows(rows, measure)) for rows in own),
                            key=lambda point: point[0])  # fmt: skip
            points = [(x, p.percent, p.interval) for x, p in points if p.n]
            if points:
                x, y, intervals = zip(*points, strict=True)
                handles.setdefault(label(model, trained), axis.errorbar(
                    x, y, yerr=whiskers(y, intervals), capsize=3, **style_of(model, [m for _, m, _ in groups]).line(),
                    **look))  # fmt: skip
                top = max(top, *(max(share, high) for share, (_, high) in zip(y, intervals, strict=True)))
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
    axis.set(ylabel=f"{measure} (% of test mazes)", title=f"{measure}, 95 % intervals")
    return top


def _aside(model: str) -> float:
    """The factor by which a model is moved along the axis of parameters."""
    return 1.035 ** (OPPONENTS.index(model) - 1.5 if model in OPPONENTS else 1.5)


def _advantages(axis, results, groups, found, measure, handles) -> None:
    """Draw one panel of differences, PoH minus another model on the same mazes; markers are hollow if not resolved."""
    line_of = require("matplotlib.lines").Line2D
    for opponent in OPPONENTS:
        pairs = ((scale, compare(results, measure, second=(opponent, True), scale=scale)) for scale in found)
        points = sorted(((groups[scale, "poh", True][0].params * _aside(opponent), c) for scale, c in pairs
                         if c is not None), key=lambda point: point[0])  # fmt: skip
        if not points:
            continue
        color, line, marker, _ = style_of(opponent)
        y = [c.difference for _, c in points]
        axis.errorbar([at for at, _ in points], y, yerr=whiskers(y, [c.interval for _, c in points]), color=color,
                      linestyle=line, linewidth=1.8, elinewidth=1.2, capsize=3)  # fmt: skip
        handles.setdefault(f"PoH - {label(opponent)}, paired",
                           line_of([], [], **style_of(opponent).line(), markersize=7))  # fmt: skip
        for at, c in points:
            fill = color if c.resolved else "white"
            axis.plot(at, c.difference, marker=marker, color=color, markerfacecolor=fill, markersize=7, zorder=5)
    axis.axhline(0, color="black", linewidth=1.0)
    axis.set(ylabel=f"advantage in {measure} (points)",
             title=f"advantage of PoH in {measure}; filled: resolved, hollow: not")  # fmt: skip


def _name_sizes(axis, groups, found) -> None:
    """Write the names of the sizes along the top of the panel, at the parameters of PoH (or of the trained model)."""
    for scale in found:
        rows = groups.get((scale, "poh", True)) or next(g for (s, m, _), g in groups.items() if s == scale)
        axis.annotate(
            scale, (rows[0].params, 0.985), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
