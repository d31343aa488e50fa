"""Plots of a run: learning curves, outcomes with intervals, accuracy against path length.

Each function returns a matplotlib Figure (never pyplot, whose global state would leak into a caller's own plots), or
None when the run holds nothing to draw. Models differ by line style, marker and hatch as well as by colour, so that
the plots survive a black and white print.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from poh_ext.report._optional import require
from poh_ext.report.results import Results, label, write_atomically
from poh_ext.report.statistics import MEASURES, estimate, estimate_rows, group_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_by_length", "learning_curves", "new_figure", "outcome_bars", "save_png"]

DPI = 130
# Okabe and Ito's colours, which also differ under colour blindness: colour, line, marker, hatch
STYLES = {
    "baseline": ("#0072b2", "-", "o", ""),
    "looped_baseline": ("#009e73", "--", "s", "//"),
    "poh": ("#d55e00", "-.", "^", "xx"),
    "random": ("#666666", ":", "x", ".."),
}
_MORE_STYLES = (("#e69f00", (0, (5, 1)), "D", "\\\\"), ("#cc79a7", (0, (3, 1, 1, 1)), "v", "++"))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, with a layout that keeps legends off the data."""
    figure = require("matplotlib.figure").Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches
    return figure


def save_png(figure: Figure, path):
    """Write a figure atomically, at the size it was made for."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return write_atomically(path, buffer.getvalue())


def style_of(model: str, models=()) -> tuple:
    """(colour, line style, marker, hatch) of a model; models without a fixed style take turns."""
    if model in STYLES:
        return STYLES[model]
    others = sorted({m for m in models if m not in STYLES} | {model})
    return _MORE_STYLES[others.index(model) % len(_MORE_STYLES)]


def learning_curves(results: Results) -> Figure | None:
    """Loss against step for each trained model and seed; beside it the routing entropy where one was logged."""
    rows = [(key, row) for key, group in group_rows(results).items() for row in group if row.curve]
    if not rows:
        return None
    panels = [("loss", "training loss (nats)")]
    if any(np.isfinite(_series(row, "routing_entropy")).any() for _, row in rows):
        panels.append(("routing_entropy", "routing entropy (nats)"))
    figure = new_figure(6.2 * len(panels), 4.4)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    handles = {}
    names = list(dict.fromkeys(row.model for _, row in rows))
    window = max(1, min(len(row.curve) for _, row in rows) // 25)
    for axis, (name, title) in zip(axes, panels, strict=True):
        for (scale, model, trained), row in rows:
            values = _series(row, name)
            if not np.isfinite(values).any():
                continue
            steps = [point["step"] for point in row.curve]
            color, line, marker, _ = style_of(model, names)
            if window > 1:
                axis.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
            every = max(1, len(steps) // 8)
            offset = every * names.index(model) // len(names)  # so that markers of models side by side show
            drawn = axis.plot(
                steps, _smooth(values, window), color=color, linestyle=line, marker=marker, markevery=(offset, every),
                markersize=4.5, linewidth=1.6,
            )  # fmt: skip
            handles.setdefault(label(model, trained, scale), drawn[0])
        axis.set(xlabel="step", ylabel=title)
        axis.grid(alpha=0.3)
        axis.margins(x=0.02)
        axis.xaxis.set_major_locator(require("matplotlib.ticker").MaxNLocator(integer=True))
    seeds = len({row.seed for _, row in rows})
    thin = f"thin: logged; thick: mean of {window} logged values" if window > 1 else "each logged value"
    figure.suptitle("Learning curves (" + (f"one line per seed, {seeds} seeds; " if seeds > 1 else "") + thin + ")")
    _legend(figure, list(handles.values()), list(handles))
    return figure


def outcome_bars(results: Results) -> Figure | None:
    """Share of test mazes reached and solved optimally, with 95 % intervals; untrained and random as controls."""
    groups = group_rows(results)
    if not groups:
        return None
    figure = new_figure(11, 1.5 + 0.42 * len(groups))
    axes = figure.subplots(1, 2, sharey=True)
    names = [label(model, trained, scale) for scale, model, trained in groups]
    places = np.arange(len(groups))
    chance = None
    blank = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for axis, measure in zip(axes, MEASURES, strict=True):
        for place, ((_, model, trained), rows) in zip(places, groups.items(), strict=True):
            p = estimate_rows(rows, measure)
            if not p.n:
                continue
            color, _, _, hatch = style_of(model, [key[1] for key in groups])
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
            axis.text(max(p.percent, high) + 1.5, place, f"{p.percent:.1f}", va="center", fontsize=9, bbox=blank)
            if model == "random":
                chance = axis.axvline(p.percent, color="#444444", linestyle=":", linewidth=1.3, zorder=0)
        axis.set(xlim=(0, 112), xlabel=f"{measure} (% of test mazes), 95 % interval", xticks=range(0, 101, 20))
        axis.grid(axis="x", alpha=0.3, zorder=-1)
        axis.set_axisbelow(True)
    axes[0].set_yticks(places, names)
    axes[0].invert_yaxis()
    if chance is not None:
        _legend(figure, [chance], ["the random policy's share"])
    return figure


def accuracy_by_length(results: Results, bins: int = 6) -> Figure | None:
    """Shares of mazes against the cells on their shortest path, in bins of about equal count, Wilson intervals."""
    groups = {k: g for k, g in group_rows(results).items() if k[2] or k[1] == "random"} or group_rows(results)
    lengths = {seed: np.asarray(s["path_lengths"], dtype=np.int64) for seed, s in results.test_sets.items()}
    used = [lengths[seed] for seed in sorted({r.seed for g in groups.values() for r in g}) if len(lengths[seed])]
    if not used:
        return None
    total = sum(map(len, used))
    edges = _bin_edges(np.concatenate(used), max(1, min(bins, total // 10)))  # fewer than 10 mazes tell nothing
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    for values in used:
        counts += np.histogram(values, edges)[0]
    figure = new_figure(11, 4.6)
    axes = figure.subplots(1, 2, sharey=True)
    handles = {}
    for axis, measure in zip(axes, MEASURES, strict=True):
        for j, ((scale, model, trained), rows) in enumerate(groups.items()):
            color, line, marker, _ = style_of(model, [key[1] for key in groups])
            shift = 0.09 * (j - (len(groups) - 1) / 2)  # so that intervals stand side by side
            places, percents, errors = [], [], []
            for b in range(len(edges) - 1):
                outcomes = []
                for row in rows:
                    inside = (lengths[row.seed] >= edges[b]) & (lengths[row.seed] < edges[b + 1])
                    outcomes += np.asarray(getattr(row, measure), dtype=bool)[inside].tolist()
                if outcomes:
                    p = estimate({0: outcomes})
                    places.append(b + shift)
                    percents.append(p.percent)
                    errors.append((max(0.0, p.percent - p.wilson[0]), max(0.0, p.wilson[1] - p.percent)))
            drawn = axis.errorbar(
                places, percents, yerr=np.transpose(errors), color=color, linestyle=line, marker=marker,
                markersize=6, linewidth=1.6, elinewidth=1.0, capsize=3,
            )  # fmt: skip
            handles.setdefault(label(model, trained, scale), drawn)
        names = [
            (f"{lo}" if hi - lo == 1 else f"{lo}-{hi - 1}") + f"\nn = {c:,}"
            for lo, hi, c in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
        axis.set_xticks(range(len(names)), names)
        axis.set(ylim=(-4, 104), xlim=(-0.5, len(names) - 0.5))
        axis.set(xlabel="cells on the shortest path", ylabel=f"{measure} (% of test mazes)")
        axis.tick_params(labelleft=True)
        axis.grid(alpha=0.3)
    _legend(figure, list(handles.values()), list(handles))
    return figure


def _bin_edges(lengths: np.ndarray, bins: int) -> list[int]:
    """Integer edges [e0, e1), ... at the quantiles, without empty bins; fewer when lengths repeat."""
    inner = [round(q) for q in np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1])]
    low, high = int(lengths.min()), int(lengths.max()) + 1
    edges = [low, *sorted({q for q in inner if low < q < high}), high]
    counts = np.histogram(lengths, edges)[0]
    return [edges[0]] + [edge for edge, count in zip(edges[1:], counts, strict=True) if count]


def _series(row, name: str) -> np.ndarray:
    return np.array([point.get(name) for point in row.curve], dtype=np.float64)  # None becomes NaN: a gap


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` values, fewer at the ends; what is not finite is left out."""
    good = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(good, values, 0.0), kernel, "same")
    count = np.convolve(good.astype(float), kernel, "same")
    return np.where(good, total / np.maximum(count, 1), np.nan)


def _legend(figure, handles, names) -> None:
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
