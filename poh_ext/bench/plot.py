"""Draw the ratios of a benchmark run (matplotlib, an optional extra)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poh_ext._figures import new_figure
from poh_ext.bench.case import OURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(machine: dict, records: list[dict]) -> Figure:
    """One bar per case and rival: how many times faster poh_ext is (log scale), with p20 and p80."""
    bars = [
        (f"{record['name']}\nvs {name}", entry["speedup_of_ours"])
        for record in records
        for name, entry in record["variants"].items()
        if name != OURS
    ]
    figure = new_figure(9, 1.2 + 0.42 * len(bars))
    axes = figure.add_subplot()
    middle = [r["p50"] for _, r in bars]
    spread = [[r["p50"] - r["p20"] for _, r in bars], [r["p80"] - r["p50"] for _, r in bars]]
    places = range(len(bars))
    axes.barh(places, middle, xerr=spread, color="0.75", edgecolor="black", capsize=3)
    axes.set_yticks(places, [label for label, _ in bars], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(0.5, *middle) / 1.2, max(middle, default=1) * 2.5)
    axes.axvline(1, color="black", linewidth=1)
    for place, value in zip(places, middle, strict=True):
        place_of_text = {"xytext": (14, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{value:.1f}x", (value, place), fontsize=7, **place_of_text)
    axes.set_xlabel("times faster than the rival (median of rounds; whiskers: 20th and 80th percentile)")
    axes.set_title(
        f"poh_ext {machine['poh_ext']}, {machine['dtype']}, torch {machine['torch']}\n"
        f"{machine.get('gpu', machine['cpu'])}, {machine['threads']} threads",
        fontsize=9,
    )
    return figure
