"""The routing of PoH: its weights per pass and head on one maze, and the entropy of its routing during the training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from poh_ext._figures import legend, new_figure, panels, style_by_turn
from poh_ext._optional import require
from poh_ext.report.grouping import group_rows
from poh_ext.report.plots import series, smooth, step_axis
from poh_ext.results import Results, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["entropy_curves", "routing_heatmaps"]

BLOCKS_ABREAST = 4
LIGHTEST_TOP, DARKEST_TOP = 2.0, 4.0  # times the uniform share that is black
NUMBERS_UP_TO = 8  # heads: beyond, the shares would not fit into their cells


def routing_heatmaps(results: Results) -> Figure | None:
    """Routing weights on one test maze. Each planner of the first seed has one panel [pass x head] per block.

    Grey runs from 0 (white) to between 2 and 4 times the uniform share (black, also for more). So nearly uniform
    routing is mid-grey, and no single weight makes the other panels pale. None if the run has no `routing`.
    """
    seeds = [record["seed"] for record in results.routing]
    shown = [record for record in results.routing if record["seed"] == seeds[0] and "/" not in record["model"]]
    cells = []  # (title, weights [passes, heads] or None where a planner's last line of panels is not full, passes)
    columns = min(BLOCKS_ABREAST, max((len(r["weights"][0]) for r in shown), default=0))
    for record in shown:
        weights = np.asarray(record["weights"], dtype=np.float64)
        entropy = record["entropy"]
        name = label(record["model"], True, record["scale"])
        name += "" if entropy is None else f", entropy {entropy:.2f} of {math.log(weights.shape[2]):.2f} nats"
        depth = weights.shape[1]
        passes = record.get("passes", range(1, len(weights) + 1))
        cells += [(f"{name}\nblock 1" if b == 0 else f"block {b + 1}", weights[:, b], passes) for b in range(depth)]
        cells += [("", None, ())] * (-depth % columns)
    if not cells:
        return None
    figure, axes = panels(len(cells), columns, 3.9, 3.0)
    largest = max(float(w.max()) * w.shape[1] for _, w, _ in cells if w is not None)
    top = min(max(largest, LIGHTEST_TOP), DARKEST_TOP)
    picture = None
    for axis, (title, weights, numbers) in zip(axes, cells, strict=True):
        if weights is None:
            axis.set_axis_off()
            continue
        picture = _heatmap(axis, weights, numbers, top)
        axis.set_title(title, loc="left", fontsize=10)
    bar = figure.colorbar(picture, ax=axes, shrink=min(1.0, 2.2 / figure.get_figheight()), pad=0.01,
                          extend="max" if largest > top else "neither")  # fmt: skip
    bar.set_label("routing weight (1 = uniform)")
    figure.suptitle(f"Routing weights on the first test maze of seed {seeds[0]}; numbers: weights in %")
    return figure


def _heatmap(axis, weights: np.ndarray, numbers: Sequence[int], top: float):
    """Draw one block, with the numbers of its passes. The colour is the weight times the heads: 1 if uniform."""
    passes, heads = weights.shape
    picture = axis.imshow(weights * heads, cmap="Greys", vmin=0, vmax=top, aspect="auto")
    if heads <= NUMBERS_UP_TO and passes <= 2 * NUMBERS_UP_TO:
        for (r, h), weight in np.ndenumerate(weights):
            ink = "white" if weight * heads > 0.6 * top else "black"
            axis.text(h, r, f"{100 * weight:.1f}", ha="center", va="center", fontsize=8, color=ink)
    places = require("matplotlib.ticker").MaxNLocator(nbins=8, integer=True)
    axis.set(xlabel="head", ylabel="pass")
    for ticks, names in ((axis.xaxis, range(1, heads + 1)), (axis.yaxis, numbers)):
        n = len(names)
        at = [int(p) for p in (range(n) if n <= NUMBERS_UP_TO else places.tick_values(0, n - 1)) if 0 <= p < n]
        ticks.set_ticks(at, [f"{names[p]}" for p in at])
    return picture


def entropy_curves(runs: Mapping[str, Results]) -> Figure | None:
    """Routing entropy against step of every trained planner that routes, of one run or of several compared.

    The left panel is in nats; its upper line is ln(heads), the entropy of uniform routing. The right panel has the
    distance below this line on a logarithmic scale, which shows the first small changes. None if no entropy was logged.

    Args:
        runs: name shown to the reader -> Results. A single run needs no name: {"": results}.

    Example:
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
    window = max(1, min(len(row.curve) for row in rows) // 25) | 1  # odd, so that the mean is centred
    handles = {}
    for turn, (name, group) in enumerate(lines.items()):
        color, line, marker, _ = style_by_turn(turn)
        look = {"color": color, "linestyle": line, "marker": marker, "markersize": 4.5, "linewidth": 1.6}
        for row in group:
            steps = [point["step"] for point in row.curve]
            values = smooth(series(row, "routing_entropy"), window)
            every = max(1, len(steps) // 8)
            look["markevery"] = (every * turn // len(lines), every)
            handles[name] = axes[0].plot(steps, values, **look)[0]
            heads = row.config.get("n_heads")
            if heads and heads > 1:
                gap = math.log(heads) - values
                axes[1].plot(steps, np.where(gap > 0, gap, np.nan), **look)  # rounding may put it above ln(heads)
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
        step_axis(axis, max(row.curve[-1]["step"] for row in rows))
        axis.grid(alpha=0.3)
    legend(figure, list(handles.values()), list(handles))
    return figure
