"""The sentence on top of a report, for a reader in a hurry."""

from __future__ import annotations

from dataclasses import replace

from poh_ext.report.statistics import (
    MEASURES,
    Comparison,
    beats_chance,
    chance_rows,
    compare,
    estimate_rows,
    group_rows,
)
from poh_ext.report.statistics import sizes as sizes_of
from poh_ext.report.tables import SOLVERS
from poh_ext.report.verdicts import CLAIMS
from poh_ext.results import DIVERGED, Results, label

__all__ = ["headline"]

WHAT = {"reached": "goals reached", "optimal": "paths within 5 % of the shortest"}


def headline(results: Results) -> str:
    """One sentence: what was compared, and who won by how much or why nothing is resolved.

    It is about the first of CLAIMS whose two planners were trained on a common seed, and about their common seeds
    alone. It speaks of goals reached; of near-shortest paths ("optimal") only if these alone are resolved.

    Examples:
        >>> headline(Results.load("results.json"))
        'PoH (385,405 parameters) against baseline (434,704), 1,000 test mazes, one seed: nothing is resolved, ...'
    """
    sizes = sizes_of(group_rows(results))
    for _, first, second in CLAIMS:
        pairs = {
            scale: [compare(results, m, (first, True), (second, True), scale) for m in MEASURES] for scale in sizes
        }
        pairs = {scale: pair for scale, pair in pairs.items() if None not in pair}
        if pairs:
            say = _one_size if len(pairs) == 1 else _several_sizes
            return say(results, first, second, pairs) + _solvers(results) + _diverged(results) + "."
    trained = {key: rows for key, rows in group_rows(results).items() if key[2]}
    if not trained:
        return f"No planner was trained to the end: there is no result yet{_diverged(results)}."
    shares = {label(model, True, scale): estimate_rows(rows, "reached") for (scale, model, _), rows in trained.items()}
    reached = ", ".join(f"{name} {share.percent:.1f} %" for name, share in shares.items() if share.n)
    return (
        "Nothing is compared, because PoH and a planner that it is held against were not both trained on one seed"
        f"{'; goals reached: ' if reached else ''}{reached}{_diverged(results)}."
    )


def _one_size(results: Results, first: str, second: str, pairs: dict[str, list[Comparison]]) -> str:
    ((scale, pair),) = pairs.items()
    c = next((c for c in pair if c.resolved), pair[0])
    results = _common(results, c)
    groups = group_rows(results)
    ours, theirs = (groups[scale, model, True] for model in (first, second))
    shares = " against ".join(f"{estimate_rows(rows, c.measure).percent:.1f}" for rows in (ours, theirs))
    figures = f"{shares} %, {c.points()}"
    if c.resolved:
        found = f"{c.first if c.difference > 0 else c.second} wins in {WHAT[c.measure]} ({figures})"
    elif not c.only_first and not c.only_second:
        found = f"nothing is resolved, because both reach the same goals ({shares.split()[0]} %)"
    else:
        found = f"nothing is resolved in {WHAT[c.measure]} ({figures}), because {_why([c])}"
    weak = [not beats_chance(results, model, scale, "reached") for model in (first, second)]
    if any(weak):
        who = "neither is" if all(weak) else f"{c.first if weak[0] else c.second} is not"
        chance = estimate_rows(chance_rows(results, scale), "reached").percent
        found += f"; {who} shown to beat a random policy, which reaches {chance:.1f} %"
    return (
        f"{c.first} ({ours[0].params:,} parameters) against {c.second} ({theirs[0].params:,}), "
        f"{_count(c.n, 'test maze')}, {_seeds([c])}: {found}"
    )


def _several_sizes(results: Results, first: str, second: str, pairs: dict[str, list[Comparison]]) -> str:
    """At which sizes each planner wins, and by how much at the most."""
    resolved = [any(pair[i].resolved for pair in pairs.values()) for i in range(len(MEASURES))]
    chosen = {scale: pair[0 if resolved[0] or not resolved[1] else 1] for scale, pair in pairs.items()}
    parts, weak, ratios = [], [], []
    for model, sign in ((first, 1), (second, -1)):
        won = {scale: c for scale, c in chosen.items() if c.resolved and sign * c.difference > 0}
        if won:
            best = max(won, key=lambda scale: abs(won[scale].difference))
            by = f"by {abs(won[best].difference):.1f} points at {best}"
            parts.append(f"{label(model)} wins at {', '.join(won)} ({by})")
    unresolved = [scale for scale, c in chosen.items() if not c.resolved]
    if len(unresolved) == len(chosen):
        parts.append(f"nothing is resolved at any size, because {_why(list(chosen.values()))}")
    elif unresolved:
        parts.append(f"nothing is resolved at {', '.join(unresolved)}")
    for scale, c in chosen.items():
        common = _common(results, c)
        groups = group_rows(common)
        ratios.append(groups[scale, first, True][0].params / max(groups[scale, second, True][0].params, 1))
        if not any(beats_chance(common, model, scale, "reached") for model in (first, second)):
            weak.append(scale)
    if weak:
        parts.append(f"neither is shown to beat a random policy at {', '.join(weak)}")
    measure = next(iter(chosen.values())).measure
    return (
        f"{label(first)} (with {min(ratios):.2f} to {max(ratios):.2f} times the parameters) against {label(second)} at "
        f"{len(chosen)} sizes, {WHAT[measure]} of up to {_count(max(c.n for c in chosen.values()), 'test maze')}, "
        f"{_seeds(list(chosen.values()))}: {'; '.join(parts)}"
    )


def _common(results: Results, c: Comparison) -> Results:
    """The rows of the seeds that were compared."""
    return replace(results, rows=[row for row in results.rows if row.seed in c.per_seed])


def _why(unresolved: list[Comparison]) -> str:
    if all(c.interval[0] <= 0 <= c.interval[1] for c in unresolved):
        return f"{'the' if len(unresolved) == 1 else 'every'} interval of the difference includes 0"
    return "the interval includes 0, or p is not below 0.05"


def _seeds(compared: list[Comparison]) -> str:
    counts = sorted({len(c.per_seed) for c in compared})
    return "one seed" if counts == [1] else f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _solvers(results: Results) -> str:
    """A clause on the planners of --preset solve that were trained beside the compared ones."""
    found = [
        f"{label(model, True, scale)} solves {estimate_rows(rows, 'exact').percent:.1f} % exactly"
        for (scale, model, trained), rows in group_rows(results).items()
        if trained and model in SOLVERS and all(row.exact for row in rows)
    ]
    return f"; {' and '.join(found)}" if found else ""


def _diverged(results: Results) -> str:
    """A clause on the trainings that left no row, because their loss was not finite."""
    found = [warning.partition(DIVERGED)[0] for warning in results.warnings if DIVERGED in warning]
    return f"; the training of {' and of '.join(found)} diverged" if found else ""
