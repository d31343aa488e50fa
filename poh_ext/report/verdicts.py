"""The findings of a run in sentences, which say so if the run shows nothing."""

from __future__ import annotations

from poh_ext.report.effects import routing_verdicts
from poh_ext.report.statistics import MEASURES, OPPONENTS, Comparison, beats_chance, compare, group_rows, sizes
from poh_ext.results import Results, label

__all__ = ["CLAIMS", "claims", "verdicts"]

# What is claimed, the planner that is claimed to be better, and the one it is held against.
CLAIMS = (
    ("PoH > baseline", "poh", "baseline"),
    ("depth > width", "poh", "poh_shallow"),
    ("PoH > looped baseline", "poh", "looped_baseline"),
)
# Which question the comparison answers, where the names of the models do not say it.
LEADS = {
    "baseline": "",
    "looped_baseline": "equal passes: ",
    "poh_shallow": "depth > width? ",
    "poh_token": "routing per maze or per cell: ",
}


def claims(results: Results) -> list[str]:
    """One sentence per claim of the benchmarks and size, for claims whose two planners share a seed.

    Example:
        >>> claims(Results.load("results.json"))
        ['"PoH > baseline": holds for reached (+5.2 points [+2.1, +8.4]); not resolved for optimal (...).']
    """
    lines = []
    for scale in sizes(group_rows(results)):
        for claim, first, second in CLAIMS:
            if second == "poh_shallow" and results.config.get("parity", "depth") != "depth":
                continue  # the PoH of this run is not the depth-first one
            found = [compare(results, m, (first, True), (second, True), scale) for m in MEASURES]
            answers = [_answer(c, beats_chance(results, first if c.difference > 0 else second, scale, c.measure))
                       for c in found if c is not None]  # fmt: skip
            if answers:
                of = f", {scale}" if scale else ""
                seeds = next(len(c.per_seed) for c in found if c is not None)
                only = ". One training seed: others may differ." if seeds == 1 else "."
                lines.append(f'"{claim}"{of}: ' + "; ".join(answers) + only)
    return lines


def _answer(c: Comparison, beats_chance: bool) -> str:
    verdict = "not resolved" if not c.resolved else "holds" if c.difference > 0 else "the opposite holds"
    caution = "" if beats_chance or not c.resolved else ", though the better one is not shown to beat the random policy"
    return f"{verdict} for {c.measure} ({c.points()}){caution}"


def verdicts(results: Results) -> list[str]:
    """Sentences on the claims, PoH against each of OPPONENTS, compute, routing, and trained models against chance."""
    groups = group_rows(results)
    lines = claims(results)
    for scale in sizes(groups):
        for second in OPPONENTS:
            found = [compare(results, m, second=(second, True), scale=scale) for m in MEASURES]
            lines += [LEADS[second] + c.sentence() for c in found if c is not None]
        lines += _compute(groups, scale)
    if not lines:
        lines.append("PoH and the baseline were not both trained on a common seed: there is nothing to compare.")
    return lines + routing_verdicts(results) + _against_chance(results, groups)


def _against_chance(results: Results, groups) -> list[str]:
    lines = []
    for scale, model, trained in groups:
        c = compare(results, "reached", (model, True), ("random", False), scale) if trained else None
        if c is not None and not (c.resolved and c.difference > 0):
            how = "worse than" if c.resolved else "not shown to be better than"
            lines.append(f"Caution: {c.first}, trained, is {how} the random policy (reached: {c.points()}).")
    return lines


def _compute(groups, scale: str) -> list[str]:
    cost = {model: rows[0].gflop_per_maze for (s, model, t), rows in groups.items() if t and s == scale}
    ours, theirs = cost.get("poh"), cost.get("baseline")
    if not ours or not theirs or 0.9 < ours / theirs < 1.1:
        return []
    control = "the looped baseline is the control for it" if "looped_baseline" in cost else "no row controls for it"
    name = label("poh", True, scale)
    return [f"Compute is unequal: {name} takes {ours / theirs:.2g} times the baseline's GFLOP per maze; {control}."]
