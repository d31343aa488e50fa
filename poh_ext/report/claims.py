"""The claims that the benchmarks test. Each is answered in one sentence from the paired comparisons."""

from __future__ import annotations

from poh_ext.report.grouping import group_rows, sizes
from poh_ext.report.statistics import MEASURES, Comparison, compare
from poh_ext.results import Results

__all__ = ["CLAIMS", "beats_chance", "claims"]

# What is claimed, the planner that is claimed to be better, and the one it is held against.
CLAIMS = (
    ("PoH > baseline", "poh", "baseline"),
    ("depth > width", "poh", "poh_shallow"),
    ("PoH > looped baseline", "poh", "looped_baseline"),
)


def claims(results: Results) -> list[str]:
    """One sentence per claim and size, for claims whose two planners share a seed.

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
            answers = [_answer(c, beats_chance(results, winner, scale, c.measure)) for c in found if c is not None
                       for winner in [first if c.difference > 0 else second]]
            if answers:
                of = f", {scale}" if scale else ""
                seeds = next(len(c.per_seed) for c in found if c is not None)
                only = ". One training seed: others may differ." if seeds == 1 else "."
                lines.append(f'"{claim}"{of}: ' + "; ".join(answers) + only)
    return lines


def beats_chance(results: Results, model: str, scale: str, measure: str) -> bool:
    """False if the random policy was run and the model is not shown to be better than it."""
    c = compare(results, measure, (model, True), ("random", False), scale)
    return c is None or (c.resolved and c.difference > 0)


def _answer(c: Comparison, beats_chance: bool) -> str:
    low, high = c.interval
    verdict = "not resolved" if not c.resolved else "holds" if c.difference > 0 else "the opposite holds"
    caution = "" if beats_chance or not c.resolved else ", though the better one is not shown to beat the random policy"
    return f"{verdict} for {c.measure} ({c.difference:+.1f} points [{low:+.1f}, {high:+.1f}]){caution}"
