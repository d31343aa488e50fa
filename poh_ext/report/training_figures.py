"""Training over time: loss, accuracy on validation mazes, and entropy of the routing.

Each figure is None if the run has no data for it. The validation mazes are neither test nor training mazes. The time of
the validation is not counted as training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from poh_ext._figures import Style, legend, new_figure, panels, percent_axis, style_by_turn, style_of
from poh_ext._optional import require
from poh_ext.report.statistics import MEASURES, Proportion, estimate, group_rows, sizes, unchanged
from poh_ext.report.tables import Table
from poh_ext.results import Results, Row, label, solved_measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SOLVED", "accuracy_curves", "accuracy_table", "entropy_curves", "learning_curves", "solved_from"]

SOLVED = 0.999  # of the validation mazes
MINUTES_FROM = 300.0  # seconds: a longer axis is in minutes


def learning_curves(results: Results) -> Figure | None:
    """Training loss against step for each trained model and seed, with one panel per size."""
    curves: dict[str, list] = {}  # by size
    for (scale, model, trained), rows in unchanged(group_rows(results)).items():
        for row in rows:
            if row.curve:
                curves.setdefault(scale, []).append((model, trained, row))
    if not curves:
        return None
    every_row = [row for found in curves.values() for *_, row in found]
    names = list(dict.fromkeys(row.model for row in every_row))
    window = _window(every_row)
    figure, axes = panels(len(curves), 3, 6.2 if len(curves) > 1 else 8, 4.2)
    handles = {}
    for axis, (scale, found) in zip(axes, curves.items(), strict=True):
        for model, trained, row in found:
            style, values = style_of(model, names), series(row, "loss")
            if window > 1:
                axis.plot([point["step"] for point in row.curve], values, color=style.color, linewidth=0.6, alpha=0.3)
            drawn = _curve(axis, row, smooth(values, window), style, names.index(model), len(names))
            handles.setdefault(label(model, trained), drawn)
        axis.set(ylabel="training loss (nats)", title=scale)
        _step_axis(axis, [row for *_, row in found])
    seeds = len({row.seed for row in every_row})
    thin = f"thin: logged; thick: mean of {window} logged values" if window > 1 else "each logged value"
    figure.suptitle("Learning curves (" + (f"one line per seed, {seeds} seeds; " if seeds > 1 else "") + thin + ")")
    legend(figure, handles)
    return figure


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
    groups = {
        key: found
        for key, rows in unchanged(group_rows(results)).items()
        if (found := [row for row in rows if row.validation])
    }
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
        percent_axis(line_of_axes[0], highest)
    mazes = sorted({point["mazes"] for point in points})
    said = f"{mazes[0]:,}" if len(mazes) == 1 else f"{mazes[0]:,} to {mazes[-1]:,}"
    figure.suptitle(
        f"Accuracy over training time on {said} validation mazes ("
        + (f"thin: {seeds} seeds; thick: their mean)" if seeds > 1 else "band: 95 % interval)")
    )
    legend(figure, handles)
    return figure


def _draw(axis, rows: list[Row], measure: str, per: float, style: Style):
    """Draw the lines of one model. Returns the thick line and the highest percentage."""
    curves = [{p["step"]: (p["seconds"] / per, 100 * p[measure]) for p in row.validation} for row in rows]
    if len(rows) == 1:
        shares = [_share(point, measure) for point in rows[0].validation]
        at = [x for x, _ in curves[0].values()]
        axis.fill_between(
            at, *zip(*(share.wilson for share in shares), strict=True), color=style.color, alpha=0.15, linewidth=0
        )
    else:
        for curve in curves:
            axis.plot(
                *zip(*curve.values(), strict=True),
                color=style.color,
                linestyle=style.linestyle,
                linewidth=0.7,
                alpha=0.45,
            )
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))  # a mean of fewer seeds would jump
    mean = np.array([[curve[step] for curve in curves] for step in steps]).reshape(len(steps), len(curves), 2).mean(1)
    drawn, = axis.plot(mean[:, 0], mean[:, 1], **style.line(), linewidth=1.8, markersize=4.5,
                       markevery=max(1, len(steps) // 10))  # fmt: skip
    return drawn, max(y for curve in curves for _, y in curve.values())


def accuracy_table(results: Results) -> Table | None:
    """The times from which on the validation mazes were solved; None if the run has no validation."""
    rows = [(key, row) for key, rows in group_rows(results).items() for row in rows if row.validation]
    if not rows:
        return None
    lines, solved = [], solved_measure([point for _, row in rows for point in row.validation])
    for (scale, model, trained), row in rows:
        last, since = row.validation[-1], solved_from(row.validation, solved)
        best = max(row.validation, key=lambda point: point[solved])
        when = ["-", "-"] if since is None else [f"{since['step']:,}", _seconds(since["seconds"])]
        lines.append([label(model, trained, scale), str(row.seed), f"{last['mazes']:,}", *when,
                      f"{100 * best[solved]:.1f} (step {best['step']:,})", _share(last, solved).text(),
                      f"{last['step']:,}", _seconds(last["seconds"])])  # fmt: skip
    share = f"{100 * SOLVED:g} %"
    header = [
        "model",
        "seed",
        "validation mazes",
        f"{solved} >= {share} from step",
        "from second",
        f"best {solved} %",
        f"last {solved} % [95 % CI]",
        "last step",
        "last second",
    ]
    few = min(row.validation[-1]["mazes"] for _, row in rows)
    note = (
        "Validation mazes are neither test nor training mazes, and are solved as the test mazes are. From step and "
        f"second: the first validation from which on, to the last, {share} of them or more are {solved} (-: "
        "never). Seconds are those of the training alone, without the validation. Intervals: Wilson, over "
        "mazes."
    )
    if few * (1 - SOLVED) < 1:
        note += f" Of {few:,} mazes, {share} means all."
    return Table("Validation while training", header, lines, 1, [note], title="Accuracy over training time")


def _share(point: dict, measure: str) -> Proportion:
    count = round(point[measure] * point["mazes"])
    return estimate({0: [i < count for i in range(point["mazes"])]})


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def entropy_curves(runs: Mapping[str, Results]) -> Figure | None:
    """Routing entropy against step of every trained planner that routes, of one run or of several compared.

    The left panel is in nats; its upper line is ln(heads), the entropy of uniform routing. The right panel has the
    distance below this line on a logarithmic scale, which shows the first small changes. None if no entropy was logged.

    Args:
        runs: name shown to the reader -> Results. A single run needs no name: {"": results}.

    Examples:
        >>> runs = {f"weight {w}": Results.load(f"{w}/results.json") for w in ("0", "5e-4", "5e-2")}
        >>> entropy_curves(runs).savefig("routing_entropy.png")
    """
    lines: dict[str, list] = {}
    for run, results in runs.items():
        routed = {k: [r for r in g if np.isfinite(series(r, "routing_entropy")).any()]
                  for k, g in group_rows(results).items()}  # fmt: skip
        routed = {key: rows for key, rows in routed.items() if rows}
        for (scale, model, trained), rows in routed.items():
            name = label(model, trained, scale)
            name = f"{run}: {name}" if run and len(routed) > 1 else run or name
            lines.setdefault(name.replace("$", r"\$"), []).extend(rows)  # not a formula
    if not lines:
        return None
    rows = [row for group in lines.values() for row in group]
    known = sorted({int(row.config["n_heads"]) for row in rows if row.config.get("n_heads")})
    moves = [heads for heads in known if heads > 1]  # a single head has nothing to choose from
    figure = new_figure(12.4 if moves else 8, 4.6)
    axes = figure.subplots(1, 2 if moves else 1, squeeze=False)[0]
    window, handles = _window(rows), {}
    for turn, (name, group) in enumerate(lines.items()):
        for row in group:
            values = smooth(series(row, "routing_entropy"), window)
            handles[name] = _curve(axes[0], row, values, style_by_turn(turn), turn, len(lines))
            heads = row.config.get("n_heads")
            if heads and heads > 1:
                gap = math.log(heads) - values  # which rounding may put below 0
                _curve(axes[1], row, np.where(gap > 0, gap, np.nan), style_by_turn(turn), turn, len(lines))
    for heads in known:
        axes[0].axhline(math.log(heads), color="#444444", linestyle=":", linewidth=1.4)
        axes[0].annotate(
            f"uniform over {heads} head{'s' * (heads > 1)}: ln {heads} = {math.log(heads):.2f}",
            (0.99, math.log(heads)), xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points",
            ha="right", va="bottom", fontsize=9,
        )  # fmt: skip
    highest = max([math.log(heads) for heads in known] + [float(np.nanmax(series(r, "routing_entropy"))) for r in rows])
    axes[0].set(ylim=(-0.03 * max(highest, 0.1), 1.12 * max(highest, 0.1)), ylabel="routing entropy (nats)")
    if moves:
        axes[1].set(yscale="log", ylabel="ln(heads) - entropy (nats, log scale)")
        axes[1].set_title("distance from uniform routing", fontsize=10)
    means = "passes, blocks and mazes" + f"; running mean of {window} logged values" * (window > 1)
    axes[0].set_title(f"mean over {means}", fontsize=10)
    for axis in axes:
        _step_axis(axis, rows)
    legend(figure, handles)
    return figure


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


def _window(rows: list[Row]) -> int:
    """Logged values in a running mean; odd, so that the mean is centred."""
    return max(1, min(len(row.curve) for row in rows) // 25) | 1


def _curve(axis, row: Row, values: np.ndarray, style: Style, turn: int, turns: int):
    """Draw a line over the logged steps, with markers moved by its turn, so that those of lines side by side show."""
    every = max(1, len(row.curve) // 8)
    return axis.plot(
        [point["step"] for point in row.curve],
        values,
        **style.line(),
        markersize=4.5,
        linewidth=1.6,
        markevery=(every * turn // turns, every),
    )[0]


def _step_axis(axis, rows: list[Row]) -> None:
    """An axis of steps from 0, with ticks at whole numbers, even if only one step was logged."""
    last = max(row.curve[-1]["step"] for row in rows)
    axis.set(xlabel="optimiser step", xlim=(-0.02 * last, 1.03 * last))
    axis.xaxis.set_major_locator(require("matplotlib.ticker").MaxNLocator(nbins=7, integer=True))
    axis.grid(alpha=0.3)
