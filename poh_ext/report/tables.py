"""The results table, built once and rendered as markdown or as plain text for a terminal."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, field

from poh_ext.report.document import Grid, Paragraph, markdown
from poh_ext.report.grouping import group_rows
from poh_ext.report.solvers import solver_sentences
from poh_ext.report.statistics import MEASURES, Proportion, estimate_rows
from poh_ext.results import Results, label

__all__ = ["Table", "results_table"]

# (heading in markdown, the same on two lines of a terminal)
COLUMNS = (
    ("model", ("", "model")),
    ("trained", ("", "trained")),
    ("parameters", ("", "params")),
    ("GFLOP per maze", ("GFLOP", "/maze")),
    ("reached % [95 % CI]", ("reached %", "[95 % CI]")),
    ("optimal % [95 % CI]", ("optimal %", "[95 % CI]")),
    ("exact % [95 % CI]", ("exact %", "[95 % CI]")),
    ("next-move accuracy %", ("next", "move %")),
    ("train s", ("train", "s")),
    ("train mazes/s", ("train", "maze/s")),
    ("eval mazes/s", ("eval", "maze/s")),
)
NONE = "-"
EXACT_NOTE = ("reached and optimal: of a rollout that prefers cells it has not visited, and so cannot turn back in a "
              "corridor. exact: the best move of each cell alone, without that memory, is a shortest path.")


@dataclass
class Table:
    """Cells as text, one list per row in the order of COLUMNS; `scales[i]` is the size class of row i or ""."""

    rows: list[list[str]] = field(default_factory=list)
    scales: list[str] = field(default_factory=list)
    footnotes: list[str] = field(default_factory=list)

    def grid(self) -> Grid:
        """The cells with their headings, with a column of sizes if there are several."""
        sized = any(self.scales)
        rows = [([s] if sized else []) + row for s, row in zip(self.scales, self.rows, strict=True)]
        header = (["size"] if sized else []) + [heading for heading, _ in COLUMNS]
        return Grid(header, rows, left=3 if sized else 2, caption="Outcomes on the test mazes")

    def markdown(self) -> str:
        return markdown([self.grid(), *map(Paragraph, self.footnotes)]).rstrip("\n")

    def text(self, width: int = 100) -> str:
        """Aligned ASCII. If `width` is too small, columns move together, and times and rates are left out."""
        headings = [list(pair) for _, pair in COLUMNS]
        rows = [[_short_params(c) if j == 2 else c for j, c in enumerate(row)] for row in self.rows]
        for keep, gap in ((11, 2), (11, 1), (9, 1), (8, 1)):
            widths = [max(map(len, [*headings[j], *(row[j] for row in rows)])) for j in range(keep)]
            if sum(widths) + gap * (keep - 1) <= width:
                break

        def line(cells):
            padded = (c.ljust(w) if j < 2 else c.rjust(w) for j, (c, w) in enumerate(zip(cells, widths, strict=False)))
            return (" " * gap).join(padded).rstrip()

        rule = "-" * (sum(widths) + gap * (len(widths) - 1))
        lines = [line([h[0] for h in headings]), line([h[1] for h in headings]), rule]
        for i, row in enumerate(rows):
            if self.scales[i] and (i == 0 or self.scales[i] != self.scales[i - 1]):
                lines.append(f"{self.scales[i]}:")
            lines.append(line(row))
        for note in self.footnotes:
            lines += textwrap.wrap(note, width, break_long_words=False)
        return "\n".join(lines)


def results_table(results: Results) -> Table:
    """One row per (scale, model, trained), pooled over seeds. Times and rates are means over seeds."""
    table = Table()
    notes: list[str] = []
    for (scale, model, trained), rows in group_rows(results).items():
        correct, total = sum(r.moves_correct for r in rows), sum(r.moves_total for r in rows)
        table.scales.append(scale)
        table.rows.append(
            [
                label(model),
                "yes" if trained else "no",
                f"{rows[0].params:,}",
                _number(_mean(r.gflop_per_maze for r in rows)),
                *(_percent(estimate_rows(rows, measure)) for measure in MEASURES),
                _percent(estimate_rows(rows, "exact")) if all(row.exact for row in rows) else NONE,
                f"{100 * correct / total:.1f}" if total else NONE,
                _number(_mean(r.train_seconds for r in rows)),
                _number(_mean(r.train_mazes_per_second for r in rows)),
                _number(_mean(r.eval_mazes_per_second for r in rows)),
            ]
        )
        notes += [f"{label(model, trained, scale)}, seed {r.seed}: {r.note}" for r in rows if r.note]
    table.footnotes = [*_explain(results), *solver_sentences(results), *notes]
    return table


def _explain(results: Results) -> list[str]:
    seeds = sorted({row.seed for row in results.rows})
    if not seeds:
        return ["No model was finished."]
    exact = [EXACT_NOTE] if any(row.exact for row in results.rows) else []
    sizes = [results.test_sets[seed]["n"] for seed in seeds]
    if len(seeds) == 1:
        return [f"{sizes[0]:,} test mazes of seed {seeds[0]}. Intervals: Wilson, over mazes.", *exact]
    n = f"{sizes[0]:,}" if len(set(sizes)) == 1 else f"{min(sizes):,} to {max(sizes):,}"
    text = f"{len(seeds)} seeds, {n} test mazes each; times and rates: means over seeds. "
    text += "Intervals: t over seeds, widened where Wilson's over all mazes is wider (random and "
    text += "beeline policy: Wilson's)."
    if len(seeds) < 5:
        text += f" A t interval of {len(seeds)} seeds is wide for want of seeds; 5 or more narrow it."
    shares = {len(rows) for rows in group_rows(results).values()}
    if shares != {len(seeds)}:
        text += " Not every row has every seed."
    return [text, *exact]


def _percent(p: Proportion) -> str:
    low, high = p.interval
    return f"{_one(p.percent)} [{_one(low)}-{_one(high)}]" if p.n else NONE


def _one(value: float) -> str:
    return "100" if value == 100 else f"{value:.1f}"


def _mean(values) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def _short_params(cell: str) -> str:
    n = int(cell.replace(",", ""))
    return cell if n < 100_000 else f"{n / 1e6:.2f}M" if n < 1e8 else f"{n / 1e6:.1f}M"
