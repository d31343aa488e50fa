"""The tables of a report: cells as text, with the notes below them, and the tables of outcomes and comparisons."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from poh_ext.report.statistics import (
    LEVEL,
    MEASURES,
    OPPONENTS,
    Comparison,
    compare,
    estimate_rows,
    group_rows,
    sizes,
    span,
)
from poh_ext.results import Results, label

__all__ = ["Table", "differences_table", "results_table", "seeds_table"]

# (heading in the report, the same on two lines of a terminal)
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
OPTIMAL_NOTE = "optimal: the goal was reached, by a path at most 5 % longer than the shortest."
OPTIMAL_NOTE_AS_PUBLISHED = (
    "optimal: the goal was reached on a grid without walls, by a path of at most 1.05 times the cells of the shortest "
    "one in the maze with its walls."
)
EXACT_NOTE = (
    "reached and optimal: of a rollout that prefers cells it has not visited, and so cannot turn back in a "
    "corridor. exact: the best move of each cell alone, without that memory, is a shortest path."
)
SOLVERS, PUBLISHED_SHAPES = ("looped_solver", "poh_solver"), ("baseline", "poh")
PUBLISHED_FORM = {"valid_heads": 0, "supervision": "path"}
SOLVED, NOT_SOLVED = 90, 10  # percent: who solves exactly at least so many mazes solves them, at most so many does not


@dataclass
class Table:
    """Cells as text; the first `left` columns are names, the others are numbers.

    `notes` stand below the table, and before them `terms`, (word, explanation) of what occurs in it. `title` heads the
    section of the report that the table has for itself.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    left: int
    notes: list[str] = field(default_factory=list)
    terms: list[tuple[str, str]] = field(default_factory=list)
    title: str = ""

    def __str__(self) -> str:
        return self.text()

    def text(self) -> str:
        """For a terminal: aligned columns, a rule below the header, and the notes."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = ((cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)
        head, *body = ["  ".join(cells).rstrip() for cells in padded]
        return "\n".join([head, "-" * len(head), *body, *self.notes])


class _ResultsTable(Table):
    def text(self, width: int = 100) -> str:
        """Aligned ASCII. If `width` is too small, columns move together, and times and rates are left out."""
        scales = [row[0] if self.left == 3 else "" for row in self.rows]
        rows = [[_short_params(c) if j == 2 else c for j, c in enumerate(row[self.left - 2 :])] for row in self.rows]
        headings = [pair for _, pair in COLUMNS]
        for keep, gap in ((11, 2), (11, 1), (9, 1), (8, 1)):
            widths = [max(map(len, [*headings[j], *(row[j] for row in rows)])) for j in range(keep)]
            if sum(widths) + gap * (keep - 1) <= width:
                break

        def line(cells: Iterable[str]) -> str:
            padded = (c.ljust(w) if j < 2 else c.rjust(w) for j, (c, w) in enumerate(zip(cells, widths, strict=False)))
            return (" " * gap).join(padded).rstrip()

        lines = [*map(line, zip(*headings, strict=True)), "-" * (sum(widths) + gap * (len(widths) - 1))]
        for scale, found in itertools.groupby(zip(scales, rows, strict=True), key=lambda pair: pair[0]):
            lines += [f"{scale}:"] * bool(scale) + [line(row) for _, row in found]
        for note in self.notes:
            lines += textwrap.wrap(note, width, break_long_words=False)
        return "\n".join(lines)


def results_table(results: Results) -> Table:
    """One row per (scale, model, trained), pooled over seeds. Times and rates are means over seeds.

    A column of sizes stands first if there are several.
    """
    groups, notes = group_rows(results), []
    sized, lines = any(scale for scale, *_ in groups), []
    for (scale, model, trained), rows in groups.items():
        correct, total = sum(r.moves_correct for r in rows), sum(r.moves_total for r in rows)
        lines.append([
            *([scale] if sized else []),
            label(model),
            "yes" if trained else "no",
            f"{rows[0].params:,}",
            _mean(r.gflop_per_maze for r in rows),
            *(estimate_rows(rows, measure).text(short=True) for measure in MEASURES),
            estimate_rows(rows, "exact").text(short=True) if all(row.exact for row in rows) else NONE,
            f"{100 * correct / total:.1f}" if total else NONE,
            _mean(r.train_seconds for r in rows),
            _mean(r.train_mazes_per_second for r in rows),
            _mean(r.eval_mazes_per_second for r in rows),
        ])  # fmt: skip
        notes += [f"{label(model, trained, scale)}, seed {r.seed}: {r.note}" for r in rows if r.note]
    header = (["size"] if sized else []) + [heading for heading, _ in COLUMNS]
    return _ResultsTable("Outcomes on the test mazes", header, lines, 3 if sized else 2,
                         [*_explain(results), *_why_solvers_solve(results), *notes])  # fmt: skip


def _explain(results: Results) -> list[str]:
    seeds = sorted({row.seed for row in results.rows})
    if not seeds:
        return ["No model was finished."]
    optimal = OPTIMAL_NOTE_AS_PUBLISHED if results.protocol == "as-published" else OPTIMAL_NOTE
    terms = [optimal, *([EXACT_NOTE] if any(row.exact for row in results.rows) else [])]
    mazes = [results.test_sets[seed]["n"] for seed in seeds]
    if len(seeds) == 1:
        return [f"{mazes[0]:,} test mazes of seed {seeds[0]}. Intervals: Wilson, over mazes.", *terms]
    n = f"{mazes[0]:,}" if len(set(mazes)) == 1 else f"{min(mazes):,} to {max(mazes):,}"
    text = (
        f"{len(seeds)} seeds, {n} test mazes each; times and rates: means over seeds. Intervals: t over seeds, "
        "widened where Wilson's over all mazes is wider (random and beeline policy: Wilson's)."
    )
    if len(seeds) < 5:
        text += f" A t interval of {len(seeds)} seeds is wide for want of seeds; 5 or more narrow it."
    shares = {len(rows) for rows in group_rows(results).values()}
    if shares != {len(seeds)}:
        text += " Not every row has every seed."
    return [text, *terms]


def _why_solvers_solve(results: Results) -> list[str]:
    """One sentence, if planners of --preset solve and of the published form were trained, exactness was measured, and
    the solvers solve what the others do not:

        Why looped solver (100.0 % exact) solves mazes and baseline (0.1 % exact) and PoH (0.2 % exact) do not: ...
    """
    found = {model: rows for (_, model, trained), rows in group_rows(results).items()
             if trained and all(row.exact for row in rows)}  # fmt: skip
    exact = {model: estimate_rows(rows, "exact").percent for model, rows in found.items()}
    solvers, others = ([name for name in names if name in found] for names in (SOLVERS, PUBLISHED_SHAPES))
    published = all(results.config.get(name, value) == value for name, value in PUBLISHED_FORM.items())
    if not (solvers and others and published):
        return []
    if min(exact[n] for n in solvers) < SOLVED or max(exact[n] for n in others) > NOT_SOLVED:
        return []
    passes = max(row.config.get("loops", row.config.get("R", 1)) for name in solvers for row in found[name])
    do, does = "s" * (len(solvers) == 1), "es" * (len(others) == 1)
    these, those = (" and ".join(f"{label(name)} ({exact[name]:.1f} % exact)" for name in names)
                    for names in (solvers, others))  # fmt: skip
    return [
        f"Why {these} solve{do} mazes and {those} do{does} not: a solver runs one "
        f"layer up to {passes} times, its heads see only a cell and its passable neighbours, and every cell's move "
        "is trained, so that news of the goal travels along the corridors cell by cell; the published shape looks "
        "at all cells at once in a few passes, and learns from the cells of the path alone (docs/solve.md)."
    ]


def _mean(values: Iterable[float | None]) -> str:
    known = [v for v in values if v is not None]
    value = sum(known) / len(known) if known else math.nan
    if not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def _short_params(cell: str) -> str:
    n = int(cell.replace(",", ""))
    return cell if n < 100_000 else f"{n / 1e6:.2f}M" if n < 1e8 else f"{n / 1e6:.1f}M"


def _comparisons(results: Results) -> Iterator[list[Comparison]]:
    """PoH against each of OPPONENTS that shares a seed with it, size by size: one comparison for each measure."""
    for scale, second in itertools.product(sizes(group_rows(results)), OPPONENTS):
        found = [compare(results, measure, second=(second, True), scale=scale) for measure in MEASURES]
        if None not in found:
            yield found


def differences_table(results: Results) -> Table | None:
    """Every comparison in one line, because the sentences below it are long, and a scaling run has dozens."""
    rows = [[f"{found[0].first} - {found[0].second}",
             *(cell for c in found for cell in (c.points(""), "yes" if c.resolved else "no"))]
            for found in _comparisons(results)]  # fmt: skip
    header = ["comparison", *(heading for m in MEASURES for heading in (f"{m}, points [95 % CI]", "resolved"))]
    return Table("Differences on the same mazes", header, rows, 1) if rows else None


def seeds_table(results: Results) -> Table | None:
    """Differences per seed, if there are several: the verdict depends on whether the seeds agree."""
    rows = []
    for c in itertools.chain(*_comparisons(results)):
        if len(c.per_seed) > 1:
            name = f"{c.measure}: {c.first} - {c.second}"
            rows += [[name, str(seed), f"{points:+.1f}", str(wins), str(losses), f"{p:.3g}"]
                     for seed, (points, wins, losses, p) in c.per_seed.items()]  # fmt: skip
            points = f"{c.difference:+.1f}; {100 * LEVEL:.0f} % over mazes {span(c.bootstrap)}, over seeds {span(c.t)}"
            rows.append([name, "all", points, str(c.only_first), str(c.only_second), f"{c.p_value:.3g}"])
    note = (
        "Pooled rows: interval over mazes by a paired bootstrap, over seeds by a paired t; the verdict uses the hull "
        "of both, and the pooled McNemar test treats the trained models as given."
    )
    header = ["comparison", "seed", "points", "only first", "only second", "exact McNemar p"]
    caption = "First model minus second, on the same mazes"
    return Table(caption, header, rows, 1, [note], title="Seed by seed") if rows else None
