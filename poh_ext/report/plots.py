"""Plots of a run: learning curves, outcomes with intervals, accuracy against path length.

Each function returns a matplotlib Figure, or None if the run has no data for it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from poh_ext._figures import legend, new_figure, panels, percent_top, style_of
from poh_ext._optional import require
from poh_ext.report.grouping import chance_rows, group_rows, sizes, unchanged
from poh_ext.report.statistics import MEASURES, estimate, estimate_rows
from poh_ext.results import CONTROLS, Results, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_by_length", "learning_curves", "outcome_bars", "series", "smooth", "step_axis"]

MAZES_PER_BIN = 20  # fewer tell next to nothing: the interval of 10 of 20 is 30 to 70 %


def learning_curves(results: Results) -> Figure | None:
    """Training loss against step for each trained model and seed, with one panel per size."""
    curves: dict[str, list] = {}
    for (scale, model, trained), rows in unchanged(group_rows(results)).items():
        curves.setdefault(scale, []).extend((model, trained, row) for row in rows if row.curve)
    curves = {scale: found for scale, found in curves.items() if found}
    if not curves:
        return None
    every_row = [row for found in curves.values() for *_, row in found]
    names = list(dict.fromkeys(row.model for row in every_row))
    window = max(1, min(len(row.curve) for row in every_row) // 25) | 1  # odd, so that the mean is centred
    figure, axes = panels(len(curves), 3, 6.2 if len(curves) > 1 else 8, 4.2)
    handles = {}
    for axis, (scale, found) in zip(axes, curves.items(), strict=True):
        for model, trained, row in found:
            values = series(row, "loss")
            steps = [point["step"] for point in row.curve]
            color, line, marker, _ = style_of(model, names)
            if window > 1:
                axis.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
            every = max(1, len(steps) // 8)
            offset = every * names.index(model) // len(names)  # so that markers of models side by side show
            drawn = axis.plot(
                steps, smooth(values, window), color=color, linestyle=line, marker=marker, markevery=(offset, every),
                markersize=4.5, linewidth=1.6,
            )  # fmt: skip
            handles.setdefault(label(model, trained), drawn[0])
        axis.set(ylabel="training loss (nats)", title=scale)
        axis.grid(alpha=0.3)
        step_axis(axis, max(row.curve[-1]["step"] for *_, row in found))
    seeds = len({row.seed for row in every_row})
    thin = f"thin: logged; thick: mean of {window} logged values" if window > 1 else "each logged value"
    figure.suptitle("Learning curves (" + (f"one line per seed, {seeds} seeds; " if seeds > 1 else "") + thin + ")")
    legend(figure, list(handles.values()), list(handles))
    return figure


def outcome_bars(results: Results) -> Figure | None:
    """Share of test mazes reached and solved optimally, with 95 % intervals; untrained and random as controls."""
    groups = group_rows(results)
    if not groups:
        return None
    shares = {(key, m): estimate_rows(rows, m) for key, rows in groups.items() for m in MEASURES}
    top = percent_top(max((max(p.percent, p.interval[1]) for p in shares.values() if p.n), default=100))
    figure = new_figure(11, 1.5 + 0.42 * len(groups))
    axes = figure.subplots(1, 2, sharey=True)
    names = [label(model, trained, scale) for scale, model, trained in groups]
    places = np.arange(len(groups))
    chance = None
    blank = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for axis, measure in zip(axes, MEASURES, strict=True):
        for place, key in zip(places, groups, strict=True):
            p = shares[key, measure]
            if not p.n:
                continue
            _, model, trained = key
            color, _, _, hatch = style_of(model, [k[1] for k in groups])
            fill = color if trained else "white"
            axis.barh(
                place, p.percent, height=0.62, facecolor=fill, edgecolor="black" if trained else color,
                hatch=hatch, linewidth=1.0, alpha=0.85 if trained else 1.0,
            )  # fmt: skip
            low, high = p.interval
            axis.errorbar(
                p.percent, place, xerr=[[max(0, p.percent - low)], [max(0, high - p.percent)]], color="black",
                capsize=4, linewidth=1.4,
            )  # fmt: skip
            axis.text(
                max(p.percent, high) + 0.015 * top, place, f"{p.percent:.1f}", va="center", fontsize=9, bbox=blank
            )
            if model == "random":
                chance = axis.axvline(p.percent, color="#444444", linestyle=":", linewidth=1.3, zorder=0)
        for place, (above, below) in enumerate(itertools.pairwise(groups)):
            if above[0] != below[0]:  # another size
                axis.axhline(place + 0.5, color="#999999", linewidth=0.8)
        axis.set(xlim=(0, 1.12 * top), xlabel=f"{measure} (% of test mazes), 95 % interval")
        axis.set_xticks(range(0, top + 1, {10: 2, 20: 5, 80: 20, 100: 20}.get(top, 10)))
        axis.grid(axis="x", alpha=0.3, zorder=-1)
        axis.set_axisbelow(True)
    axes[0].set_yticks(places, names)
    axes[0].set_ylim(len(groups) - 0.4, -0.6)
    if chance is not None:
        legend(figure, [chance], ["the random policy's share"])
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
    used = [lengths[seed] for seed in sorted({r.seed for g in groups.values() for r in g}) if len(lengths[seed])]
    if not used:
        return None
    total = sum(map(len, used))
    edges = _bin_edges(np.concatenate(used), max(1, min(bins, total // MAZES_PER_BIN)))
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    for values in used:
        counts += np.histogram(values, edges)[0]
    names = [
        (f"{lo}" if hi - lo == 1 else f"{lo}-{hi - 1}") + f"\nn = {c:,}"
        for lo, hi, c in zip(edges[:-1], edges[1:], counts, strict=True)
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
                color, line, marker, _ = style_of(model, [key[1] for key in groups])
                found = _by_bin(rows, measure, lengths, edges)
                shift = 0.09 * (j - (len(drawn) - 1) / 2)  # so that intervals stand side by side
                percents = [p.percent for p in found.values()]
                errors = [[max(0, p.percent - p.wilson[0]), max(0, p.wilson[1] - p.percent)] for p in found.values()]
                bars = axis.errorbar(
                    [b + shift for b in found], percents, yerr=np.transpose(errors), color=color, linestyle=line,
                    marker=marker, markersize=6, linewidth=1.6, elinewidth=1.0, capsize=3,
                )  # fmt: skip
                handles.setdefault(label(model, trained), bars)
                top = max([top, *(p.wilson[1] for p in found.values())])
            axis.set_xticks(range(len(names)), names)
            axis.set(xlim=(-0.5, len(names) - 0.5), title=scale)
            axis.set(xlabel="cells on the shortest path", ylabel=f"{measure} (% of test mazes)")
            axis.tick_params(labelleft=True)
            axis.grid(alpha=0.3)
        line_of_axes[0].set_ylim(-0.04 * percent_top(top), 1.04 * percent_top(top))  # shared
    legend(figure, list(handles.values()), list(handles), columns=5)
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


def series(row, name: str) -> np.ndarray:
    """One logged quantity of a row's curve; None becomes NaN, a gap in the line."""
    return np.array([point.get(name) for point in row.curve], dtype=np.float64)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` values, fewer at the ends. Values that are not finite are left out."""
    good = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(good, values, 0.0), kernel, "same")
    count = np.convolve(good.astype(float), kernel, "same")
    return np.where(good, total / np.maximum(count, 1), np.nan)


def step_axis(axis, last: int) -> None:
    """An axis of steps from 0, with ticks at whole numbers, even if only one step was logged."""
    axis.set(xlabel="optimiser step", xlim=(-0.02 * last, 1.03 * last))
    axis.xaxis.set_major_locator(require("matplotlib.ticker").MaxNLocator(nbins=7, integer=True))
