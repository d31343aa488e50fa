"""Write report.md and its pictures from Results: what was run, what came out, and how far it can be trusted."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from poh_ext.report import plots
from poh_ext.report._optional import require
from poh_ext.report.figures import save_png
from poh_ext.report.grouping import group_rows
from poh_ext.report.results import Results, label, plain, write_atomically
from poh_ext.report.routing import entropy_curves, routing_heatmaps
from poh_ext.report.scaling import OPPONENTS, scaling_panels
from poh_ext.report.sheet import MazeSample, maze_sheet
from poh_ext.report.statistics import LEVEL, MEASURES, Comparison, compare, estimate
from poh_ext.report.tables import results_table

__all__ = ["FILES", "verdicts", "write_report"]

REPORT_MD = "report.md"
RESULTS_JSON = "results.json"
LEARNING_CURVES_PNG = "learning_curves.png"
SCALING_PNG = "scaling.png"
OUTCOMES_PNG = "outcomes.png"
PATH_LENGTH_PNG = "accuracy_by_path_length.png"
ROUTING_PNG = "routing_weights.png"
ENTROPY_PNG = "routing_entropy.png"
MAZES_PNG = "mazes.png"
FILES = {
    REPORT_MD: "this report",
    RESULTS_JSON: "configuration, environment and the raw outcome of every test maze",
    LEARNING_CURVES_PNG: "training loss against the step",
    SCALING_PNG: "reached, optimal and the advantages of PoH against parameters",
    OUTCOMES_PNG: "reached and optimal with intervals and controls",
    PATH_LENGTH_PNG: "reached and optimal against the length of the shortest path",
    ROUTING_PNG: "PoH's routing weights over refinement passes, on one test maze",
    ENTROPY_PNG: "PoH's routing entropy against the step",
    MAZES_PNG: "test mazes with the shortest path and each model's path",
}

# What training-enhancement-summary.md reports for its 12x12 example: (reached, optimal) of 57 test mazes.
PUBLISHED_MAZES = 57
PUBLISHED = {"baseline": (33, 30), "poh": (36, 31)}
# A random policy on 100 test sets drawn as published (240 dfs mazes of 12x12, paths of 51 cells or more, 57 kept on
# average): mean, standard deviation and largest percentage. tests/test_report_caveat.py measures them again.
RANDOM_AS_PUBLISHED = {"reached": (26.9, 6.4, 46.0), "optimal": (2.1, 1.9, 8.3)}
AS_PUBLISHED_CAVEAT = """\
**Read the as-published protocol with care.** The models see an all-open grid, not the walls. In the published 12x12
example the length filter left 57 test mazes, so one maze is 1.75 points, and the published gap of 5.27 points between
PoH and the baseline is 3 mazes. A *random* policy under this protocol and rollout scores {reached} reached and
{optimal} optimal on 100 such test sets: the spread between test sets alone is wider than that gap.""".format(
    **{name: f"{mean} +/- {spread} % (up to {most} %)" for name, (mean, spread, most) in RANDOM_AS_PUBLISHED.items()}
)


def write_report(results: Results, folder: str | os.PathLike, mazes: MazeSample | None = None) -> list[Path]:
    """Write report.md and the PNGs that the run has data for into `folder`; works for partial runs too.

    `results.json` is not written here (`results.save` does), only listed when it is there. Files are replaced
    atomically, so a report can be written again after each finished row.

    Args:
        results: a whole or interrupted run.
        folder: made if missing.
        mazes: test mazes to draw, with the models' paths.

    Returns:
        Paths of the files written, report.md first.

    Raises:
        ValueError: `results` contradicts itself. ImportError: scipy or matplotlib is missing. In both cases before
            anything is written.

    Example:
        >>> write_report(Results.load("run/results.json"), "run")
        [PosixPath('run/report.md'), PosixPath('run/outcomes.png'), ...]
    """
    results.validate()
    require("scipy.stats")
    require("matplotlib.figure")
    folder = Path(folder)
    figures = {
        SCALING_PNG: scaling_panels(results),
        OUTCOMES_PNG: plots.outcome_bars(results),
        LEARNING_CURVES_PNG: plots.learning_curves(results),
        PATH_LENGTH_PNG: plots.accuracy_by_length(results),
        ROUTING_PNG: routing_heatmaps(results),
        ENTROPY_PNG: entropy_curves({"": results}),
        MAZES_PNG: maze_sheet(mazes) if mazes is not None else None,
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    pictures = [save_png(figure, folder / name) for name, figure in drawn.items()]
    listed = [name for name in FILES if name in drawn or name == REPORT_MD or (folder / name).is_file()]
    # A picture of an earlier call with more data would contradict this one: it is neither shown nor listed.
    listed = [name for name in listed if name not in figures or name in drawn]
    text = "\n\n".join(_sections(results, list(drawn), listed)) + "\n"
    return [write_atomically(folder / REPORT_MD, text.encode()), *pictures]


def verdicts(results: Results) -> list[str]:
    """Sentences: PoH against each of OPPONENTS, trained models against chance, unequal compute."""
    groups = group_rows(results)
    lines = []
    for scale in dict.fromkeys(key[0] for key in groups if key[1] != "random"):
        for second in OPPONENTS:
            found = [compare(results, m, second=(second, True), scale=scale) for m in MEASURES]
            lines += [c.sentence() for c in found if c is not None]
        lines += _compute(groups, scale)
    if not lines:
        lines.append("PoH and the baseline were not both trained on a common seed: there is nothing to compare.")
    return lines + _against_chance(results, groups)


def _against_chance(results: Results, groups) -> list[str]:
    lines = []
    for scale, model, trained in groups:
        if not trained:
            continue
        c = compare(results, "reached", (model, True), ("random", False), scale)
        if c is None:
            continue
        if not (c.resolved and c.difference > 0):
            low, high = c.interval
            lines.append(
                f"Caution: {c.first}, trained, is not shown to be better than the random policy "
                f"(reached: {c.difference:+.1f} points [{low:+.1f}, {high:+.1f}])."
            )
    return lines


def _compute(groups, scale: str) -> list[str]:
    cost = {model: rows[0].gflop_per_maze for (s, model, t), rows in groups.items() if t and s == scale}
    ours, theirs = cost.get("poh"), cost.get("baseline")
    if not ours or not theirs or 0.9 < ours / theirs < 1.1:
        return []
    control = "the looped baseline is the control for it" if "looped_baseline" in cost else "no row controls for it"
    name = label("poh", True, scale)
    return [f"Compute is unequal: {name} takes {ours / theirs:.2g} times the baseline's GFLOP per maze; {control}."]


def _sections(results: Results, pictures: list[str], files: list[str]) -> list[str]:
    out = [f"# {results.experiment}, {results.protocol} protocol", f"Created {results.created}."]
    if results.status == "interrupted":
        out.append("**Interrupted:** this run was stopped early; only what was finished by then is shown.")
    out += [f"```\n{results.command}\n```", "## Results", results_table(results).markdown()]
    if results.protocol == "as-published":
        out += _published()
    sizes = sorted({results.test_sets[row.seed]["n"] for row in results.rows} - {0})
    if sizes and sizes[0] < 200:
        out.append(f"With {sizes[0]} test mazes per seed, one maze is {100 / sizes[0]:.2f} points.")
    out += ["## Verdict", _bullets(verdicts(results))]
    out += _per_seed(results)
    if results.warnings:
        out += ["## Warnings", _bullets(results.warnings)]
    if pictures:
        out += ["## Pictures", *(f"![{FILES[name]}]({name})\n\n*{FILES[name]}*" for name in pictures)]
    out += ["## How it was run", _test_sets(results), _pairs("Options", results.config)]
    out += [_pairs("Environment", results.environment)]
    out += ["## Files", _bullets(f"[{name}]({name}): {FILES[name]}" for name in files)]
    return out


def _published() -> list[str]:
    lines = ["| published | reached % [95 % CI] | optimal % [95 % CI] |", "| --- | ---: | ---: |"]
    for model, counts in PUBLISHED.items():
        cells = []
        for count in counts:
            p = estimate({0: [True] * count + [False] * (PUBLISHED_MAZES - count)})
            cells.append(f"{p.percent:.2f} [{p.interval[0]:.1f}-{p.interval[1]:.1f}]")
        lines.append(f"| {label(model)} | {' | '.join(cells)} |")
    return [AS_PUBLISHED_CAVEAT, "\n".join(lines)]


def _per_seed(results: Results) -> list[str]:
    """Differences per seed, where there are several: whether the seeds agree is what decides the verdict."""
    lines = []
    for scale in dict.fromkeys(row.scale for row in results.rows if row.model != "random"):
        for second, measure in itertools.product(OPPONENTS, MEASURES):
            c = compare(results, measure, second=(second, True), scale=scale)
            if c is not None and len(c.per_seed) > 1:
                lines += _seed_lines(c)
    if not lines:
        return []
    head = "| comparison | seed | points | only first | only second | exact McNemar p |\n| --- | ---: " + "| ---: " * 4
    note = (
        "Pooled rows: interval over mazes by a paired bootstrap, over seeds by a paired t; the verdict uses the hull "
        "of both, and the pooled McNemar test treats the trained models as given."
    )
    return ["### Seed by seed", "\n".join([head + "|", *lines]), note]


def _seed_lines(c: Comparison) -> list[str]:
    name = f"{c.measure}: {c.first} - {c.second}"
    lines = [
        f"| {name} | {seed} | {points:+.1f} | {wins} | {losses} | {p:.3g} |"
        for seed, (points, wins, losses, p) in c.per_seed.items()
    ]
    over = [f"mazes [{c.bootstrap[0]:+.1f}, {c.bootstrap[1]:+.1f}]", f"seeds [{c.t[0]:+.1f}, {c.t[1]:+.1f}]"]
    points = f"{c.difference:+.1f}; {100 * LEVEL:.0f} % over " + ", over ".join(over)
    return [*lines, f"| {name} | all | {points} | {c.only_first} | {c.only_second} | {c.p_value:.3g} |"]


def _test_sets(results: Results) -> str:
    lines = []
    for seed, s in results.test_sets.items():
        lengths = s["path_lengths"]
        span = f", shortest paths of {min(lengths)} to {max(lengths)} cells" if lengths else ""
        lines.append(f"seed {seed}: {s['n_train']:,} training mazes, {s['n']:,} test mazes{span}")
    return _bullets(lines) if lines else "No maze was drawn."


def _pairs(title: str, values: dict) -> str:
    def flat(prefix, value):
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from flat(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            yield f"`{prefix}`: {_line(value)}"

    return f"{title}:\n\n" + (_bullets(flat("", plain(values))) if values else "none recorded")


def _bullets(lines) -> str:
    return "\n".join(f"- {_line(line)}" for line in lines)


def _line(value) -> str:
    return " ".join(str(value).split())  # a line break in a message would end the list item
