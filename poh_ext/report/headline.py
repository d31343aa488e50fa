"""The sentence on top of a report, for a reader in a hurry."""

from __future__ import annotations

from dataclasses import replace

from poh_ext.report.statistics import (
    MEASURES,
    OPPONENTS,
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


def headline(results: Results) -> str:
    """One sentence: what was compared, and who won by how much or why nothing is resolved.

    It is about the first of CLAIMS, else of OPPONENTS, whose two planners were trained on a common seed, and about
    their common seeds alone. It speaks of goals reached; of near-shortest paths ("optimal") where these alone are
    resolved, or the other way. Where PoH is held against the baseline, the looped baseline follows.

    Examples:
        >>> headline(Results.load("results.json"))
        'PoH (385,405 parameters) against baseline (434,704), 1,000 test mazes, one seed: nothing is resolved, ...'
    """
    last = _no_walls(results) + _diverged(results) + "."
    for first, second in [*(planners for _, *planners in CLAIMS), *(("poh", second) for second in OPPONENTS)]:
        if pairs := _pairs(results, first, second):
            one = len(pairs) == 1
            said = (_one_size if one else _several_sizes)(results, first, second, pairs)
            if second == "baseline" and (looped := _pairs(results, first, "looped_baseline")):
                found = (_found if len(looped) == 1 else _found_at_sizes)(results, first, "looped_baseline", looped)
                said += f"; against {label('looped_baseline')} {found}"
            return said + _solvers(results) + last
    trained = {key: rows for key, rows in group_rows(results).items() if key[2]}
    if not trained:
        return f"No planner was trained to the end: there is no result yet{last}"
    shares = {label(model, True, scale): estimate_rows(rows, "reached") for (scale, model, _), rows in trained.items()}
    reached = ", ".join(f"{name} {share.percent:.1f} %" for name, share in shares.items() if share.n)
    return (
        "Nothing is compared, because PoH and a planner that it is held against were not both trained on one seed"
        f"{'; goals reached: ' if reached else ''}{reached}{last}"
    )


def _pairs(results: Results, first: str, second: str) -> dict[str, list[Comparison]]:
    """Size -> the comparison in each of MEASURES, where the two planners share a seed."""
    pairs = {
        scale: [compare(results, m, (first, True), (second, True), scale) for m in MEASURES]
        for scale in sizes_of(group_rows(results))
    }
    return {scale: pair for scale, pair in pairs.items() if None not in pair}


def _what(results: Results, measure: str) -> str:
    """What is counted. As published, nobody walks in the maze whose shortest path is the yardstick."""
    if measure == "reached":
        return "goals reached"
    if results.protocol == "as-published":
        return "paths of at most 1.05 times the cells of the shortest in the maze with its walls"
    return "paths within 5 % of the shortest"


def _one_size(results: Results, first: str, second: str, pairs: dict[str, list[Comparison]]) -> str:
    ((scale, (c, _)),) = pairs.items()
    found = _found(results, first, second, pairs)
    results = _common(results, c)
    groups = group_rows(results)
    ours, theirs = (groups[scale, model, True] for model in (first, second))
    weak = [not beats_chance(results, model, scale, "reached") for model in (first, second)]
    if any(weak):
        who = "neither is" if all(weak) else f"{c.first if weak[0] else c.second} is not"
        chance = estimate_rows(chance_rows(results, scale), "reached").percent
        found += f"; {who} shown to beat a random policy, which reaches {chance:.1f} %"
    return (
        f"{c.first} ({ours[0].params:,} parameters) against {c.second} ({theirs[0].params:,}), "
        f"{_count(c.n, 'test maze')}, {_seeds([c])}: {found}"
    )


def _found(results: Results, first: str, second: str, pairs: dict[str, list[Comparison]]) -> str:
    """Who wins at the only size, in what and by how much; in both measures, if each has another winner."""
    ((scale, pair),) = pairs.items()
    groups = group_rows(_common(results, pair[0]))

    def shares(c: Comparison) -> list[str]:
        return [f"{estimate_rows(groups[scale, model, True], c.measure).percent:.1f}" for model in (first, second)]

    def figures(c: Comparison) -> str:
        return f"{_what(results, c.measure)} ({' against '.join(shares(c))} %, {c.points()})"

    if won := {_winner(c): c for c in reversed(pair) if c.resolved}:  # the first measure of each winner
        return " and ".join(f"{winner} wins in {figures(c)}" for winner, c in reversed(won.items()))
    if not pair[0].only_first and not pair[0].only_second:
        return f"nothing is resolved, because both reach the same goals ({shares(pair[0])[0]} %)"
    return f"nothing is resolved in {figures(pair[0])}, because {_why(pair[:1])}"


def _winner(c: Comparison) -> str:
    return c.first if c.difference > 0 else c.second


def _several_sizes(results: Results, first: str, second: str, pairs: dict[str, list[Comparison]]) -> str:
    """At which sizes each planner wins, and by how much at the most."""
    weak, ratios, compared = [], [], [pair[0] for pair in pairs.values()]
    for scale, (c, _) in pairs.items():
        common = _common(results, c)
        groups = group_rows(common)
        ratios.append(groups[scale, first, True][0].params / max(groups[scale, second, True][0].params, 1))
        if not any(beats_chance(common, model, scale, "reached") for model in (first, second)):
            weak.append(scale)
    chance = f"; neither is shown to beat a random policy at {', '.join(weak)}" if weak else ""
    return (
        f"{label(first)} (with {min(ratios):.2f} to {max(ratios):.2f} times the parameters) against {label(second)} at "
        f"{len(pairs)} sizes, up to {_count(max(c.n for c in compared), 'test maze')}, {_seeds(compared)}: "
        f"{_found_at_sizes(results, first, second, pairs)}{chance}"
    )


def _found_at_sizes(results: Results, first: str, second: str, pairs: dict[str, list[Comparison]]) -> str:
    """By measure who wins where: of the second measure, unless it alone is resolved, where it adds something."""
    told: dict[str, str] = {}  # size -> the last winner
    parts = []
    for i, measure in enumerate(MEASURES):
        won = {scale: pair[i] for scale, pair in pairs.items() if pair[i].resolved}
        won = {scale: c for scale, c in won.items() if told.get(scale) != _winner(c)}
        told |= {scale: _winner(c) for scale, c in won.items()}
        found = []
        for model in (first, second):
            at = {scale: abs(c.difference) for scale, c in won.items() if _winner(c) == label(model, True, scale)}
            if at:
                best = max(at, key=at.__getitem__)
                found.append(f"{label(model)} wins at {', '.join(at)} (by {at[best]:.1f} points at {best})")
        parts += [f"{' and '.join(found)} in {_what(results, measure)}"] * bool(found)
    unresolved = [scale for scale in pairs if scale not in told]
    if len(unresolved) == len(pairs):
        why = _why([pair[0] for pair in pairs.values()])
        parts.append(f"nothing is resolved at any size in {_what(results, MEASURES[0])}, because {why}")
    elif unresolved:
        parts.append(f"nothing is resolved at {', '.join(unresolved)}")
    return "; ".join(parts)


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


def _no_walls(results: Results) -> str:
    """A clause on what goals reached as published amount to."""
    if results.protocol != "as-published":
        return ""
    beeline = [row for row in results.rows if row.model == "beeline"]
    if not beeline:
        return "; the grids have no walls"
    reached = estimate_rows(beeline, "reached").percent
    return f"; the grids have no walls, and always stepping nearer to the goal reaches {reached:.1f} % of the goals"


def _diverged(results: Results) -> str:
    """A clause on the trainings that left no row, because their loss was not finite."""
    found = [warning.partition(DIVERGED)[0] for warning in results.warnings if DIVERGED in warning]
    return f"; the training of {' and of '.join(found)} diverged" if found else ""
