"""The heads that the routers of PoH prefer: on one test maze, and the mean over all test mazes in each pass.

Where a planner has both, neighbour heads are compared with heads that see all cells; else each head is shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from poh_ext._figures import STYLES, legend, panels
from poh_ext._optional import require
from poh_ext.report.tables import Table
from poh_ext.results import Results, label
from poh_ext.routing_records import MOST_PASSES, head_groups

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["head_curves", "head_weights_table", "routing_heatmaps"]

BLOCKS_ABREAST = 4
LIGHTEST_TOP, DARKEST_TOP = 2.0, 4.0  # times the uniform share that is black
NUMBERS_UP_TO = 8  # heads: beyond, the shares would not fit into their cells
_LINES = ("-", "--", ":", "-.")


def _name(record: dict) -> str:
    return label(record["model"], True, record["scale"])


def _block_panels(
    found: list[tuple[str, dict, int]], width: float, height: float, single: float
) -> tuple[Figure, list, list[tuple[Any, dict, int]]]:
    """A figure of a line of panels for each (name, record, depth), a panel for each block.

    Returns the figure, all its axes, and (axis, record, block from 0) of each panel. Panels are of that size in inches,
    and `single` wide where no record has a second block.
    """
    columns = min(BLOCKS_ABREAST, max(depth for *_, depth in found))
    cells: list = []  # None where the last line of a record's panels is not full
    for name, record, depth in found:
        cells += [(f"{name}\nblock 1" if b == 0 else f"block {b + 1}", record, b) for b in range(depth)]
        cells += [None] * (-depth % columns)
    figure, axes = panels(len(cells), columns, width if columns > 1 else single, height)
    shown = []
    for axis, cell in zip(axes, cells, strict=True):
        if cell is None:
            axis.set_axis_off()
            continue
        axis.set_title(cell[0], loc="left", fontsize=10)
        shown.append((axis, *cell[1:]))
    return figure, axes, shown


def routing_heatmaps(results: Results) -> Figure | None:
    """Routing weights on one test maze. Each planner of the first seed has one panel [pass x head] per block.

    Grey runs from 0 (white) to between 2 and 4 times the uniform share (black, also for more). So nearly uniform
    routing is mid-grey, and no single weight makes the other panels pale. None if the run has no `routing`.
    """
    records = [record for record in results.routing if record["seed"] == results.routing[0]["seed"]
               and "/" not in record["model"]]  # fmt: skip
    if not records:
        return None
    found, largest = [], 0.0
    for record in records:
        weights, entropy = np.asarray(record["weights"], dtype=np.float64), record["entropy"]
        heads = weights.shape[2]
        largest = max(largest, float(weights.max()) * heads)
        name = _name(record) + ("" if entropy is None else f", entropy {entropy:.2f} of {math.log(heads):.2f} nats")
        found.append((name, record, weights.shape[1]))
    top = min(max(largest, LIGHTEST_TOP), DARKEST_TOP)
    figure, axes, shown = _block_panels(found, 3.9, 3.0, single=3.9)
    for axis, record, block in shown:
        weights = np.asarray(record["weights"], dtype=np.float64)[:, block]
        drawn = _heatmap(axis, weights, record.get("passes", range(1, len(weights) + 1)), top)
    bar = figure.colorbar(drawn, ax=axes, shrink=min(1.0, 2.2 / figure.get_figheight()), pad=0.01,
                          extend="max" if largest > top else "neither")  # fmt: skip
    bar.set_label("routing weight (1 = uniform)")
    figure.suptitle(f"Routing weights on the first test maze of seed {records[0]['seed']}; numbers: weights in %")
    return figure


def _heatmap(axis, weights: np.ndarray, numbers: Sequence[int], top: float):
    """Draw one block, with the numbers of its passes. The colour is the weight times the heads: 1 if uniform."""
    passes, heads = weights.shape
    drawn = axis.imshow(weights * heads, cmap="Greys", vmin=0, vmax=top, aspect="auto")
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
    return drawn


def _over_mazes(results: Results) -> list[dict]:
    """The records over all mazes, of planners without a change."""
    return [r for r in results.routing if "over_mazes" in r and "/" not in r["model"]]


def _groups(record: dict) -> list[tuple[str, list[int]]]:
    return head_groups(record["over_mazes"]["heads"], record["over_mazes"]["near_heads"])


def head_curves(results: Results) -> Figure | None:
    """Mean weight of a head of each kind against the pass, with the band of the middle 80 % of the test mazes.

    Each planner of the first seed has one panel per block. None if the run has no such weights.
    """
    records = _over_mazes(results)
    if not records:
        return None
    found = [(_name(r), r, len(r["over_mazes"]["mean"][0])) for r in records if r["seed"] == records[0]["seed"]]
    figure, _, shown = _block_panels(found, 4.4, 3.3, single=7.0)
    handles: dict = {}
    for axis, record, block in shown:
        handles |= _panel(axis, record, block)
    figure.suptitle(f"Mean routing weight of a head over the test mazes of seed {records[0]['seed']};\n"
                    "band: the middle 80 % of the mazes")  # fmt: skip
    # Of planners with different heads: head 2 before head 10, uniform last.
    names = sorted(handles, key=lambda name: (name == "uniform", len(name), name))
    abreast = int(figure.get_figwidth() / 1.4)
    figure.set_figheight(figure.get_figheight() + 0.25 * (len(names) // abreast))
    legend(figure, {name: handles[name] for name in names}, columns=abreast)
    return figure


def _panel(axis, record: dict, block: int) -> dict:
    """Draw one block. Returns the name of each line -> its handle."""
    study, handles = record["over_mazes"], {}
    passes = study["passes"]
    mean, low, high = (100 * np.asarray(study[name])[:, block] for name in ("mean", "low", "high"))
    colors = [style.color for style in STYLES.values()]
    for g, (name, _) in enumerate(_groups(record)):
        color, line = colors[g % len(colors)], _LINES[g % len(_LINES)]  # 5 and 4: 20 looks
        marker = "o" if len(passes) <= MOST_PASSES else None
        handles[name] = axis.plot(passes, mean[:, g], color=color, linestyle=line, marker=marker, markersize=3.5)[0]
        axis.fill_between(passes, low[:, g], high[:, g], color=color, alpha=0.15, linewidth=0)
    handles["uniform"] = axis.axhline(100 / study["heads"], color="#444444", linestyle=(0, (1, 3)), linewidth=1.4)
    axis.set(xlabel="pass", ylabel="weight of a head (%)")
    axis.set_ylim(bottom=0)
    if passes[-1] > MOST_PASSES:  # which are thinned out evenly on this scale
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(require("matplotlib.ticker").FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.xaxis.set_major_locator(require("matplotlib.ticker").MaxNLocator(nbins=8, integer=True))
    axis.grid(alpha=0.3)
    return handles


def head_weights_table(results: Results) -> Table | None:
    """The weights at the first, a middle and the last pass; None if the run has no such weights.

    If there are neighbour heads and heads that see all cells, each kind has a line for every seed. Else only the
    heaviest head of the first seed has a line, because heads of two trainings are not the same heads.
    """
    records = _over_mazes(results)
    if not records:
        return None
    first, lines, kinds = records[0]["seed"], [], False
    for record in records:
        groups, study = _groups(record), record["over_mazes"]
        mean, low, high = (100 * np.asarray(study[name]) for name in ("mean", "low", "high"))
        middle = int(np.searchsorted(study["passes"], (study["passes"][-1] + 1) // 2))
        two = groups[0][0] == "neighbour heads"
        kinds = kinds or two
        if not two and record["seed"] != first:
            continue
        for block in range(mean.shape[1]):
            for g in range(len(groups)) if two else [int(mean[-1, block].argmax())]:
                name = f"{groups[g][0]} ({len(groups[g][1])})" if two else f"heaviest: {groups[g][0]}"
                cells = [f"{mean[p, block, g]:.1f} [{low[p, block, g]:.1f}-{high[p, block, g]:.1f}] in pass "
                         f"{study['passes'][p]}" for p in (0, middle, len(mean) - 1)]  # fmt: skip
                even = f"{100 / study['heads']:.1f}"
                lines.append([_name(record), str(record["seed"]), str(block + 1), name, even, *cells])
    header = ["planner", "seed", "block", "heads", "uniform %", "first pass %", "middle pass %", "last pass %"]
    note = "Weight of one head, mean over the test mazes, in brackets where the middle 80 % of the mazes lie. "
    note += _trend(records) if kinds else "Without heads of both kinds: the head that is heaviest in the last pass."
    return Table("Routing weights over all test mazes", header, lines, 4, [note], title="What the routers attend to")


def _trend(records: list[dict]) -> str:
    """Whether neighbour heads are chosen early and heads that see all cells late, counted over planners, seeds and
    blocks."""
    falls = rises = total = 0
    for record in records:
        if _groups(record)[0][0] != "neighbour heads":
            continue
        study = record["over_mazes"]
        for block in range(len(study["mean"][0])):
            start, end = study["mean"][0][block][0], study["mean"][-1][block][0]
            start_band, end_band = ((study["low"][p][block][0], study["high"][p][block][0]) for p in (0, -1))
            total += 1
            falls += end < start and end_band[1] < start_band[0]
            rises += end > start and end_band[0] > start_band[1]
    return (
        f"From the first pass to the last the weight of neighbour heads falls, beyond both bands, in {falls} of "
        f"{total} blocks (all planners and seeds), and rises so in {rises}: neighbour heads early and wide heads late "
        "would be a fall."
    )
