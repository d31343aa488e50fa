"""The findings of a run in sentences, which say so if the run shows nothing."""

from __future__ import annotations

from poh_ext.report.claims import claims
from poh_ext.report.grouping import group_rows
from poh_ext.report.routing_matters import routing_verdicts
from poh_ext.report.scaling import OPPONENTS
from poh_ext.report.statistics import MEASURES, compare
from poh_ext.results import CONTROLS, Results, label

__all__ = ["verdicts"]

# Which question the comparison answers, where the names of the models do not say it.
LEADS = {"baseline": "", "looped_baseline": "equal passes: ", "poh_shallow": "depth > width? ",
         "poh_token": "routing per maze or per cell: "}


def verdicts(results: Results) -> list[str]:
    """Sentences on the claims, PoH against each of OPPONENTS, compute, routing, and trained models against chance."""
    groups = group_rows(results)
    lines = claims(results)
    for scale in dict.fromkeys(key[0] for key in groups if key[1] not in CONTROLS):
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
        if not trained:
            continue
        c = compare(results, "reached", (model, True), ("random", False), scale)
        if c is None:
            continue
        if not (c.resolved and c.difference > 0):
            low, high = c.interval
            how = "worse than" if c.resolved else "not shown to be better than"
            lines.append(
                f"Caution: {c.first}, trained, is {how} the random policy "
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
