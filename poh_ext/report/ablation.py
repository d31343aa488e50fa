"""The effect of each feature: planners trained with one feature changed, against the same planner without the change.

Rows of a changed planner are named "<planner>/<change>" ("poh/without warm-up"). They have the mazes and seeds of the
row "<planner>", so every difference is paired.
"""

from __future__ import annotations

from dataclasses import dataclass

from poh_ext.report.document import Block, Grid, Heading, Paragraph
from poh_ext.report.grouping import group_rows
from poh_ext.report.statistics import LEVEL, MEASURES, Comparison, compare, estimate_rows
from poh_ext.results import Results, label

__all__ = ["AblationRow", "ablation_blocks", "ablation_rows", "ablation_table", "holm"]

HEADINGS = ("size", "planner", "change", "reached %", "reached: points [95 % CI]", "optimal %",
            "optimal: points [95 % CI]", "least p (Holm)", "verdict")  # fmt: skip


@dataclass(frozen=True)
class AblationRow:
    """One planner with one change; `comparisons` are changed minus unchanged, by measure.

    `p_values` are McNemar's, by measure, after Holm's correction for all comparisons of the table.
    """

    scale: str
    model: str
    change: str
    percents: dict[str, float]
    comparisons: dict[str, Comparison]
    p_values: dict[str, float]

    def verdict(self) -> str:
        """Which measures the change is shown to raise or lower: the interval excludes 0, and the corrected p too."""
        found = [
            f"{m} {'rises' if c.difference > 0 else 'falls'}"
            for m, c in self.comparisons.items()
            if c.resolved and self.p_values[m] < 1 - LEVEL
        ]
        return ", ".join(found) or "not resolved"


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction. The chance of any false rejection among all p values stays below the level.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def ablation_rows(results: Results) -> list[AblationRow]:
    """All changed planners that share a seed with the unchanged one."""
    found = []
    for (scale, name, trained), rows in group_rows(results).items():
        model, slash, change = name.partition("/")
        if slash and trained:
            pairs = {m: compare(results, m, (name, True), (model, True), scale) for m in MEASURES}
            if None not in pairs.values():
                percents = {m: estimate_rows(rows, m).percent for m in MEASURES}
                found.append((scale, model, change, percents, pairs))
    p_values = iter(holm([pairs[m].p_value for *_, pairs in found for m in MEASURES]))
    return [AblationRow(*row, {m: next(p_values) for m in MEASURES}) for row in found]


def ablation_blocks(results: Results) -> list[Block]:
    """The table of changed features, as blocks of the report; [] if nothing was changed."""
    rows = ablation_rows(results)
    if not rows:
        return []
    lines = []
    for row in rows:
        cells = [row.scale or "-", label(row.model), row.change]
        for measure, c in row.comparisons.items():
            low, high = c.interval
            cells += [f"{row.percents[measure]:.1f}", f"{c.difference:+.1f} [{low:+.1f}, {high:+.1f}]"]
        lines.append([*cells, f"{min(row.p_values.values()):.3g}", row.verdict()])
    n = len(rows) * len(MEASURES)
    note = (
        f"Points: changed minus as chosen, on the same mazes and seeds; negative means that the change hurts. {n} "
        "comparisons: p is McNemar's exact test after Holm's correction for all of them, and a verdict needs both it "
        "and the interval, which covers seeds too."
    )
    grid = Grid(list(HEADINGS), lines, left=3, caption="Each planner with one feature changed")
    return [Heading("One feature at a time", level=3), grid, Paragraph(note)]


def ablation_table(results: Results) -> str:
    """The table of changed features, for a terminal; "" if nothing was changed.

    Example:
        >>> print(ablation_table(Results.load("results.json")))
    """
    blocks = ablation_blocks(results)
    if not blocks:
        return ""
    _, grid, note = blocks
    lines = [grid.header, *grid.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ((cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)
    head, *body = ["  ".join(cells).rstrip() for cells in padded]
    return "\n".join([head, "-" * len(head), *body, note.text])
