"""Write report.md, the page index.html and their figures from Results."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from poh_ext._figures import save_png
from poh_ext._files import write_atomically
from poh_ext._optional import require
from poh_ext.maze_drawing import MazeSample, maze_sheet
from poh_ext.report.effects import ablation_table, interventions_table
from poh_ext.report.head_weights import head_curves, head_weights_table, routing_heatmaps
from poh_ext.report.headline import headline
from poh_ext.report.outcome_figures import accuracy_by_length, outcome_bars, scaling_panels
from poh_ext.report.rendering import png_size, render
from poh_ext.report.tables import differences_table, results_table, seeds_table
from poh_ext.report.training_figures import accuracy_curves, accuracy_table, entropy_curves, learning_curves
from poh_ext.report.verdicts import AS_PUBLISHED_CAVEAT, published_table, verdicts
from poh_ext.results import Results, plain

__all__ = ["FIGURES", "FILES", "write_report"]

REPORT_MD = "report.md"
INDEX_HTML = "index.html"


class Kind(NamedTuple):
    """`about` describes the figure in lists of files, `alt` replaces it, and `caption` stands below it."""

    draw: Callable[[Results], Any] | None
    about: str
    alt: str
    caption: str


class _Drawn(NamedTuple):
    """A figure beside the report, with its size (width, height) in pixels."""

    file: str
    kind: Kind
    size: tuple[int, int]


ACCURACY_PNG = "accuracy_over_training.png"  # has a section of its own
MAZES_PNG = "mazes.png"  # drawn from a MazeSample, not from Results
LEADING = ("scaling.png", MAZES_PNG, "outcomes.png")  # the first of them that was drawn stands on top
FIGURES = {
    "scaling.png": Kind(
        scaling_panels,
        "reached, optimal and the advantages of PoH against parameters",
        "Four panels against parameters: reached, optimal, and PoH's advantage in each. The results table and the "
        "verdict hold the same numbers.",
        "Against parameters. Above: shares of test mazes, pooled over seeds, with 95 % intervals; trained models are "
        "thick, untrained ones thin and hollow, the random policy is dotted with its interval as a band. Below: PoH "
        "minus each other model on the same mazes, in points; filled markers are resolved differences, hollow ones "
        "are not.",
    ),
    "outcomes.png": Kind(
        outcome_bars,
        "reached and optimal with intervals and controls",
        "Bars of the share of test mazes each model reached and solved optimally. The results table holds the same "
        "numbers.",
        "Share of test mazes whose goal was reached (left) and reached by a path of at most 1.05 times the shortest "
        "in the maze with its walls (right), with 95 % intervals. White bars are controls.",
    ),
    "accuracy_by_path_length.png": Kind(
        accuracy_by_length,
        "reached and optimal against the length of the shortest path",
        "Lines of the share of test mazes reached and solved optimally, against the length of the shortest path.",
        "The same shares by the length of the shortest path; n is the number of mazes in a bin, and the intervals are "
        "Wilson's, 95 %, over its mazes.",
    ),
    ACCURACY_PNG: Kind(
        accuracy_curves,
        "validation mazes solved against the time of training",
        "Lines of the share of validation mazes each model reached, solved optimally and solved exactly, against the "
        "time of training.",
        "Share of validation mazes reached, solved optimally and (where it is measured) solved exactly while training, "
        "against its time alone. Of several seeds each is a thin line and their mean a thick one; a single seed has "
        "Wilson's 95 % interval as a band.",
    ),
    "learning_curves.png": Kind(
        learning_curves,
        "training loss against the step",
        "Lines of the training loss of each model against the optimiser step.",
        "Training loss against the optimiser step; of PoH it includes the weighted routing entropy.",
    ),
    MAZES_PNG: Kind(
        None,
        "test mazes with the shortest path and each model's path",
        "Drawings of test mazes, one row or column per model, with the shortest path and the path the "
        "model walked; below each stands whether the goal was reached and at which move the model first strayed.",
        "The first test mazes. The broad light line is a shortest path; the model's own path is solid until it first "
        "steps away from the goal (cross) and dashed from there on.",
    ),
    "routing_weights.png": Kind(
        routing_heatmaps,
        "PoH's routing weights over refinement passes, on one test maze",
        "Heat maps of PoH's routing weights on one test maze, one per block: refinement passes down, heads across.",
        "How PoH weighs its attention heads in each refinement pass on the first test maze; darker is heavier. Token "
        "routing is averaged over the cells.",
    ),
    "routing_heads.png": Kind(
        head_curves,
        "PoH's routing weights over refinement passes, over all test mazes",
        "Lines of the mean routing weight of a head against the refinement pass, one panel per block of PoH. Where "
        "some heads see neighbours only, these against the wide heads.",
        "Routing weight of a head in each refinement pass: mean over the test mazes, with the band in which the middle "
        "80 % of them lie. Heads that see only neighbours are told from wide ones where a planner has both; else each "
        "head has its line. Dotted: uniform routing.",
    ),
    "routing_entropy.png": Kind(
        lambda results: entropy_curves({"": results}),
        "PoH's routing entropy against the step",
        "Lines of PoH's routing entropy against the optimiser step, and of its distance from uniform routing.",
        "Routing entropy while training (left), and how far it is below that of uniform routing (right).",
    ),
}
FILES = {
    INDEX_HTML: "this report as a page with its pictures, for a browser",
    REPORT_MD: "this report as text",
    "results.json": "configuration, environment and the raw outcome of every test maze",
    **{name: kind.about for name, kind in FIGURES.items()},
}


def write_report(results: Results, folder: str | os.PathLike, mazes: MazeSample | None = None) -> list[Path]:
    """Write report.md, index.html and the PNGs that the run has data for into `folder`; works for partial runs, too.

    The page opens from disk, without a network. `results.json` is not written here (`results.save` does that); it is
    listed if it exists. Files are replaced atomically, so a report can be written again after each finished row.

    Args:
        results: a whole or interrupted run.
        folder: folder of the report; it is made if it is missing.
        mazes: test mazes to draw, with the models' paths.

    Returns:
        Paths of the files written, index.html first.

    Raises:
        ValueError: `results` contradicts itself. ImportError: scipy, matplotlib or jinja2 is missing. Nothing is
            written then.

    Examples:
        >>> write_report(Results.load("run/results.json"), "run")
        [PosixPath('run/index.html'), PosixPath('run/report.md'), PosixPath('run/outcomes.png'), ...]
    """
    results.validate()
    for package in ("scipy.stats", "matplotlib.figure", "jinja2"):
        require(package)
    folder = Path(folder)
    figures = {name: kind.draw(results) for name, kind in FIGURES.items() if kind.draw}
    figures[MAZES_PNG] = maze_sheet(mazes) if mazes is not None else None
    written = [save_png(figures[name], folder / name) for name in FIGURES if figures[name] is not None]
    drawn = {p.name: _Drawn(p.name, FIGURES[p.name], png_size(p)) for p in written}
    # A picture of an earlier call with more data would contradict this one: it is neither shown nor listed.
    files = {
        name: about
        for name, about in FILES.items()
        if name in drawn or name in (REPORT_MD, INDEX_HTML) or (name not in FIGURES and (folder / name).is_file())
    }
    context = _context(results, drawn, files)
    return [
        *(
            # A path may hold bytes that are no UTF-8.
            write_atomically(folder / name, render(template, **context).encode(errors="backslashreplace"))
            for name, template in ((INDEX_HTML, "report.html.j2"), (REPORT_MD, "report.md.j2"))
        ),
        *written,
    ]


def _context(results: Results, drawn: dict[str, _Drawn], files: dict[str, str]) -> dict[str, Any]:
    """What the templates are given, by the names that they use."""
    mazes = sorted({results.test_sets[row.seed]["n"] for row in results.rows} - {0})
    few = f"With {mazes[0]} test mazes per seed, one maze is {100 / mazes[0]:.2f} points." if mazes else ""
    lead = next((drawn[name] for name in LEADING if name in drawn), None)
    details = (f(results) for f in (ablation_table, interventions_table, head_weights_table, seeds_table))
    return {
        "title": f"{results.experiment}, {results.protocol} protocol",
        "run": results,
        "headline": headline(results),
        "lead": lead,
        "outcomes": results_table(results),
        "caveat": AS_PUBLISHED_CAVEAT,
        "published": published_table() if results.protocol == "as-published" else None,
        "few_mazes": few if mazes and mazes[0] < 200 else "",
        "differences": differences_table(results),
        "verdicts": verdicts(results),
        "details": [table for table in details if table is not None],
        "accuracy": accuracy_table(results),
        "accuracy_figure": drawn.get(ACCURACY_PNG),
        "figures": [figure for name, figure in drawn.items() if name != ACCURACY_PNG and figure is not lead],
        "test_sets": [_test_set(seed, test_set) for seed, test_set in results.test_sets.items()],
        "recorded": {"Options": _flat(results.config), "Environment": _flat(results.environment)},
        "files": files,
    }


def _test_set(seed: int, test_set: dict) -> str:
    lengths = test_set["path_lengths"]
    span = f", shortest paths of {min(lengths)} to {max(lengths)} cells" if lengths else ""
    return f"seed {seed}: {test_set['n_train']:,} training mazes, {test_set['n']:,} test mazes{span}"


def _flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested options as (dotted name, value) pairs."""
    out = []
    for key, value in plain(values).items():
        name = f"{prefix}.{key}" if prefix else str(key)
        out += _flat(value, name) if isinstance(value, dict) and value else [(name, str(value) or "-")]
    return out
