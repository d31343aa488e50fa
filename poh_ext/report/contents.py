"""The content of the report of a run, as blocks in their order."""

from __future__ import annotations

import itertools
import re

from poh_ext.report.ablation import ablation_blocks
from poh_ext.report.document import Block, Bullets, Code, Grid, Heading, Pairs, Paragraph, Picture, Span
from poh_ext.report.grouping import group_rows, sizes
from poh_ext.report.pictures import ACCURACY_PNG, PICTURES
from poh_ext.report.published import published_blocks
from poh_ext.report.routing_heads import head_blocks
from poh_ext.report.routing_matters import routing_blocks
from poh_ext.report.scaling import OPPONENTS
from poh_ext.report.statistics import LEVEL, MEASURES, Comparison, compare
from poh_ext.report.tables import results_table
from poh_ext.report.training_accuracy import accuracy_blocks
from poh_ext.report.verdicts import verdicts
from poh_ext.results import Results, plain

__all__ = ["contents", "title_of"]


def title_of(results: Results) -> str:
    return f"{results.experiment}, {results.protocol} protocol"


def contents(results: Results, pictures: list[str], files: dict[str, str]) -> list[Block]:
    """The blocks of the report.

    Args:
        results: a whole or interrupted run.
        pictures: names in PICTURES of the pictures beside the report.
        files: name -> description, of all files beside the report.
    """
    out: list[Block] = [Heading(title_of(results), level=1), Paragraph(f"Created {results.created}.")]
    if results.status == "interrupted":
        said = " this run was stopped early; only what was finished by then is shown."
        out.append(Paragraph([Span("strong", "Interrupted:"), said]))
    table = results_table(results)
    out += [Code(results.command), Heading("Results"), table.grid(), *map(Paragraph, table.footnotes)]
    if results.protocol == "as-published":
        out += published_blocks()
    mazes = sorted({results.test_sets[row.seed]["n"] for row in results.rows} - {0})
    if mazes and mazes[0] < 200:
        out.append(Paragraph(f"With {mazes[0]} test mazes per seed, one maze is {100 / mazes[0]:.2f} points."))
    out += [Heading("Verdict"), *_summary(results)]
    out += [Bullets([_stressed(line) for line in verdicts(results)]), *ablation_blocks(results)]
    shown = {name: Picture(name, PICTURES[name].alt, PICTURES[name].caption) for name in pictures}
    out += [*routing_blocks(results), *head_blocks(results), *_per_seed(results)]
    out += accuracy_blocks(results, shown.pop(ACCURACY_PNG, None))
    if results.warnings:
        out += [Heading("Warnings"), Bullets(list(results.warnings))]
    if shown:
        out += [Heading("Pictures"), *shown.values()]
    out += [Heading("How it was run"), *_test_sets(results)]
    out += [Pairs("Options", _flat(results.config)), Pairs("Environment", _flat(results.environment))]
    out += [Heading("Files"), Bullets([[Span("link", name), f": {about}"] for name, about in files.items()])]
    return out


def _summary(results: Results) -> list[Block]:
    """Every comparison in one line, because the sentences below it are long, and a scaling run has dozens."""
    rows = []
    for scale, second in itertools.product(sizes(group_rows(results)), OPPONENTS):
        found = [compare(results, measure, second=(second, True), scale=scale) for measure in MEASURES]
        if found[0] is not None:
            cells = [(f"{c.difference:+.1f} [{c.interval[0]:+.1f}, {c.interval[1]:+.1f}]",
                      "yes" if c.resolved else "no") for c in found]  # fmt: skip
            rows.append([f"{found[0].first} - {found[0].second}", *itertools.chain(*cells)])
    header = ["comparison", *itertools.chain(*((f"{m}, points [95 % CI]", "resolved") for m in MEASURES))]
    return [Grid(header, rows, left=1, caption="Differences on the same mazes")] if rows else []


def _stressed(verdict: str) -> list[str | Span]:
    """The verdict, with its main words in bold."""
    parts = re.split(r"\b(Resolved:|Not resolved:|Caution:|Compute is unequal:)", verdict)
    return [Span("strong", part) if i % 2 else part for i, part in enumerate(parts) if part]


def _per_seed(results: Results) -> list[Block]:
    """Differences per seed, if there are several: the verdict depends on whether the seeds agree."""
    lines = []
    for scale, second, measure in itertools.product(sizes(group_rows(results)), OPPONENTS, MEASURES):
        c = compare(results, measure, second=(second, True), scale=scale)
        if c is not None and len(c.per_seed) > 1:
            lines += _seed_lines(c)
    if not lines:
        return []
    header = ["comparison", "seed", "points", "only first", "only second", "exact McNemar p"]
    note = (
        "Pooled rows: interval over mazes by a paired bootstrap, over seeds by a paired t; the verdict uses the hull "
        "of both, and the pooled McNemar test treats the trained models as given."
    )
    caption = "First model minus second, on the same mazes"
    return [Heading("Seed by seed", level=3), Grid(header, lines, left=1, caption=caption), Paragraph(note)]


def _seed_lines(c: Comparison) -> list[list[str]]:
    name = f"{c.measure}: {c.first} - {c.second}"
    lines = [
        [name, str(seed), f"{points:+.1f}", str(wins), str(losses), f"{p:.3g}"]
        for seed, (points, wins, losses, p) in c.per_seed.items()
    ]
    over = [f"mazes [{c.bootstrap[0]:+.1f}, {c.bootstrap[1]:+.1f}]", f"seeds [{c.t[0]:+.1f}, {c.t[1]:+.1f}]"]
    points = f"{c.difference:+.1f}; {100 * LEVEL:.0f} % over " + ", over ".join(over)
    return [*lines, [name, "all", points, str(c.only_first), str(c.only_second), f"{c.p_value:.3g}"]]


def _test_sets(results: Results) -> list[Block]:
    lines = []
    for seed, s in results.test_sets.items():
        lengths = s["path_lengths"]
        span = f", shortest paths of {min(lengths)} to {max(lengths)} cells" if lengths else ""
        lines.append(f"seed {seed}: {s['n_train']:,} training mazes, {s['n']:,} test mazes{span}")
    return [Bullets(lines)] if lines else [Paragraph("No maze was drawn.")]


def _flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    out = []
    for key, value in plain(values).items():
        name = f"{prefix}.{key}" if prefix else str(key)
        out += _flat(value, name) if isinstance(value, dict) and value else [(name, str(value) or "-")]
    return out
