"""The heads that the routers prefer: mean weights over all test mazes in each pass.

Where a planner has both, neighbour heads are compared with heads that see all cells; else each head is shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from poh_ext._figures import STYLES, legend, panels
from poh_ext._optional import require
from poh_ext.report.document import Block, Grid, Heading, Paragraph
from poh_ext.results import Results, label
from poh_ext.routing_records import MOST_PASSES, head_groups

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["head_blocks", "head_curves"]

BLOCKS_ABREAST = 4
_LINES = ("-", "--", ":", "-.")


def _shown(results: Results) -> list[dict]:
    """The records over all mazes, of planners without a change."""
    return [r for r in results.routing if "over_mazes" in r and "/" not in r["model"]]


def _groups(record: dict) -> list[tuple[str, list[int]]]:
    return head_groups(record["over_mazes"]["heads"], record["over_mazes"]["near_heads"])


def head_curves(results: Results) -> Figure | None:
    """Mean weight of a head of each kind against the pass, with the band of the middle 80 % of the test mazes.

    Each planner of the first seed has one panel per block. None if the run has no such weights.
    """
    records = _shown(results)
    records = [r for r in records if r["seed"] == records[0]["seed"]]
    cells = []  # (title, record, block), padded to whole lines of panels
    columns = min(BLOCKS_ABREAST, max((len(r["over_mazes"]["mean"][0]) for r in records), default=0))
    for record in records:
        depth = len(record["over_mazes"]["mean"][0])
        name = label(record["model"], True, record["scale"])
        cells += [(f"{name}\nblock 1" if b == 0 else f"block {b + 1}", record, b) for b in range(depth)]
        cells += [("", None, 0)] * (-depth % columns)
    if not cells:
        return None
    figure, axes = panels(len(cells), columns, 4.4 if columns > 1 else 7.0, 3.3)
    handles: dict = {}
    for axis, (title, record, block) in zip(axes, cells, strict=True):
        if record is None:
            axis.set_axis_off()
            continue
        handles |= _panel(axis, record, block)
        axis.set_title(title, loc="left", fontsize=10)
    figure.suptitle(f"Mean routing weight of a head over the test mazes of seed {records[0]['seed']};\n"
                    "band: the middle 80 % of the mazes")  # fmt: skip
    # Of planners with different heads: head 2 before head 10, uniform last.
    names = sorted(handles, key=lambda name: (name == "uniform", len(name), name))
    abreast = int(figure.get_figwidth() / 1.4)
    figure.set_figheight(figure.get_figheight() + 0.25 * (len(names) // abreast))
    legend(figure, [handles[name] for name in names], names, columns=abreast)
    return figure


def _panel(axis, record: dict, block: int) -> dict:
    """Draw one block. Returns the name of each line -> its handle."""
    study, handles = record["over_mazes"], {}
    passes = study["passes"]
    mean, low, high = (100 * np.asarray(study[name])[:, block] for name in ("mean", "low", "high"))
    colors = [style[0] for style in STYLES.values()]
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


def head_blocks(results: Results) -> list[Block]:
    """The weights at the first, a middle and the last pass as a table; [] if the run has no such weights.

    If there are neighbour heads and heads that see all cells, each kind has a line for every seed. Else only the
    heaviest head of the first seed has a line, because heads of two trainings are not the same heads.
    """
    records = _shown(results)
    if not records:
        return []
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
                planner = label(record["model"], True, record["scale"])
                even = f"{100 / study['heads']:.1f}"
                lines.append([planner, str(record["seed"]), str(block + 1), name, even, *cells])
    header = ["planner", "seed", "block", "heads", "uniform %", "first pass %", "middle pass %", "last pass %"]
    note = "Weight of one head, mean over the test mazes, in brackets where the middle 80 % of the mazes lie. "
    note += _trend(records) if kinds else "Without heads of both kinds: the head that is heaviest in the last pass."
    caption = "Routing weights over all test mazes"
    return [Heading("What the routers attend to", level=3), Grid(header, lines, left=4, caption=caption),
            Paragraph(note)]  # fmt: skip


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
