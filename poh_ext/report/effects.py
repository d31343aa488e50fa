"""The effects of changes to a planner, each against the same planner without it on the same mazes and seeds.

A change is a feature with which it was trained anew: rows are named "<planner>/<change>" ("poh/without warm-up"). Or it
is an intervention: the planner of the results, evaluated with other head weights than its routers give.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from poh_ext.report.statistics import (
    LEVEL,
    MEASURES,
    Comparison,
    Proportion,
    beats_chance,
    compare,
    estimate_rows,
    group_rows,
)
from poh_ext.report.tables import Table
from poh_ext.results import Results, Row, label

__all__ = [
    "Effect",
    "ablation_effects",
    "ablation_table",
    "holm",
    "interventions_table",
    "routing_effects",
    "routing_verdicts",
]

CORRECTED = (
    "comparisons: p is McNemar's exact test after Holm's correction for all of them, and a verdict needs both "
    "it and the interval, which covers seeds too."
)
# Of the interventions: name in the record, name for the reader, what it is, what it is to show.
OTHER_WEIGHTS = (
    ("uniform", "uniform weights", "every head has 1 / heads in every pass and block", "does what was learned matter?"),
    ("shuffled", "another maze's weights", "those that the routers give, in the same pass and block, for another test "
     "maze of the batch (with token routing, for a cell half a maze away in it)", "must they suit the maze?"),
    ("frozen", "constant weights", "their mean over test mazes and passes, one value for each head and block",
     "must they change, from pass to pass or from maze to maze?"),
)  # fmt: skip


@dataclass(frozen=True)
class Effect:
    """One planner with one change; everything is by measure.

    `comparisons` are changed minus unchanged, paired over mazes and seeds. `p_values` are McNemar's after Holm's
    correction for all effects of the table.
    """

    scale: str
    model: str
    change: str
    shares: dict[str, Proportion]
    comparisons: dict[str, Comparison]
    p_values: dict[str, float]

    def resolved(self, measure: str) -> bool:
        """Whether the interval excludes 0, and the corrected p too."""
        return self.comparisons[measure].resolved and self.p_values[measure] < 1 - LEVEL

    def verdict(self) -> str:
        """Which measures the change is shown to raise or lower."""
        found = [f"{m} {'rises' if c.difference > 0 else 'falls'}" for m, c in self.comparisons.items()
                 if self.resolved(m)]  # fmt: skip
        return ", ".join(found) or "not resolved"

    def least_p(self) -> str:
        return f"{min(self.p_values.values()):.3g}"


class _Intervention(Effect):
    def same(self) -> bool:
        """True if every maze has the same outcome, which an interval alone would not show."""
        return not any(c.only_first or c.only_second for c in self.comparisons.values())

    def verdict(self) -> str:
        return "no maze ends otherwise" if self.same() else super().verdict()


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction. The chance of any false rejection among all p values stays below the level.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _effects(results: Results, changes: Iterable[tuple[str, str, str]], kind: type[Effect]) -> list:
    """An effect for each (scale, model, change) whose planner shares a seed with the unchanged one."""
    groups, found = group_rows(results), []
    for scale, model, change in changes:
        changed = f"{model}/{change}"
        pairs = {m: compare(results, m, (changed, True), (model, True), scale) for m in MEASURES}
        if None not in pairs.values():
            shares = {m: estimate_rows(groups[scale, changed, True], m) for m in MEASURES}
            found.append((scale, model, change, shares, pairs))
    p_values = iter(holm([pairs[m].p_value for *_, pairs in found for m in MEASURES]))
    return [kind(*effect, {m: next(p_values) for m in MEASURES}) for effect in found]


# -- one feature at a time ---------------------------------------------------------------------------------------


def ablation_effects(results: Results) -> list[Effect]:
    """Those of all changed planners that share a seed with the unchanged one."""
    split = [(scale, *name.partition("/")) for scale, name, trained in group_rows(results) if trained]
    return _effects(results, [(scale, model, change) for scale, model, slash, change in split if slash], Effect)


def ablation_table(results: Results) -> Table | None:
    """Every change with what it comes to; None if nothing was changed.

    Examples:
        >>> print(ablation_table(Results.load("results.json")))
    """
    effects = ablation_effects(results)
    if not effects:
        return None
    rows = [[e.scale or "-", label(e.model), e.change,
             *(cell for m in MEASURES for cell in (f"{e.shares[m].percent:.1f}", e.comparisons[m].points(""))),
             e.least_p(), e.verdict()] for e in effects]  # fmt: skip
    header = ["size", "planner", "change", *(h for m in MEASURES for h in (f"{m} %", f"{m}: points [95 % CI]")),
              "least p (Holm)", "verdict"]  # fmt: skip
    note = (
        "Points: changed minus as chosen, on the same mazes and seeds; negative means that the change hurts. "
        f"{len(effects) * len(MEASURES)} {CORRECTED}"
    )
    return Table("Each planner with one feature changed", header, rows, 3, [note], title="One feature at a time")


# -- does the routing matter? ------------------------------------------------------------------------------------


def _study(results: Results) -> Results:
    """The outcomes of the interventions as rows "poh" and "poh/uniform", so that they are compared like models."""

    def rows() -> Iterator[Row]:
        for record in results.routing:
            for name, outcome in record.get("interventions", {}).items():
                model = record["model"] + ("" if name == "unchanged" else f"/{name}")
                yield Row(model, True, record["seed"], 0, None, 0, None, None, None, outcome["reached"],
                          outcome["optimal"], 0, 0, scale=record["scale"])  # fmt: skip

    return replace(results, rows=list(rows()))


def routing_effects(results: Results) -> list[Effect]:
    """All interventions that were evaluated, planner by planner in the order of OTHER_WEIGHTS."""
    planners = dict.fromkeys((r["scale"], r["model"]) for r in results.routing)
    return _effects(_study(results), [(*key, name) for key in planners for name, *_ in OTHER_WEIGHTS], _Intervention)


def routing_verdicts(results: Results) -> list[str]:
    """One sentence for each planner with interventions.

    Examples:
        >>> routing_verdicts(Results.load("results.json"))
        ['"routing matters", PoH, against uniform weights: holds (reached -9.0 points [-12.1, -5.8]); ...']
    """
    lines = []
    effects = routing_effects(results)
    for scale, model in dict.fromkeys((e.scale, e.model) for e in effects):
        own = [e for e in effects if (e.scale, e.model) == (scale, model)]
        seeds = len(own[0].comparisons[MEASURES[0]].per_seed)
        line = f'"routing matters", {label(model, True, scale)}, against ' + "; ".join(map(_answer, own)) + "."
        if not any(beats_chance(results, model, scale, m) for m in MEASURES):
            line += " The planner is not shown to beat the random policy: there is little that routing could change."
        lines.append(line + (" One training seed: others may differ." if seeds == 1 else ""))
    return lines


def _answer(effect: _Intervention) -> str:
    """Whether the planner needs its own weights. An intervention that does no harm is evidence against it."""
    shown = {m: c for m, c in effect.comparisons.items() if effect.resolved(m)}
    falls = {c.difference < 0 for c in shown.values()}
    verdict = "not resolved" if not falls else "holds" if falls == {True} else "the opposite holds"
    if len(falls) == 2:
        verdict = "holds for one measure, the opposite for the other"
    if effect.same():
        verdict += ", not one maze ends otherwise"
    points = ", ".join(f"{m} {c.points()}" for m, c in (shown or effect.comparisons).items())
    return f"{_name(effect)}: {verdict} ({points})"


def _name(effect: Effect) -> str:
    return next(name for change, name, *_ in OTHER_WEIGHTS if change == effect.change)


def interventions_table(results: Results) -> Table | None:
    """Every planner with its own and with other weights; None if there was no intervention."""
    effects = routing_effects(results)
    if not effects:
        return None
    own, rows, last = group_rows(_study(results)), [], None
    for e in effects:
        planner = label(e.model, True, e.scale)
        if (e.scale, e.model) != last:
            last = e.scale, e.model
            shares = (estimate_rows(own[e.scale, e.model, True], m).text() for m in MEASURES)
            rows.append([planner, "its own", *(cell for share in shares for cell in (share, "")), "", ""])
        cells = [cell for m in MEASURES for cell in (e.shares[m].text(), e.comparisons[m].points(""))]
        rows.append([planner, _name(e), *cells, e.least_p(), e.verdict()])
    header = ["planner", "head weights", *(h for m in MEASURES for h in (f"{m} % [95 % CI]", f"{m}: points [95 % CI]")),
              "least p (Holm)", "verdict"]  # fmt: skip
    terms = [(name, f"{what}. {question[0].upper()}{question[1:]}") for change, name, what, question in OTHER_WEIGHTS
             if change in {e.change for e in effects}]  # fmt: skip
    other = "" if _same_decoding(results) else " All are decoded from one table here, unlike the rows of the results."
    note = (
        "The planners are those of the results, trained once; at evaluation their routers' weights are replaced in "
        "every pass and block. Points: with the other weights minus with its own, on the same mazes and seeds; "
        f"negative means that the planner needs its own. {len(effects) * len(MEASURES)} {CORRECTED}{other}"
    )
    return Table("Trained planners with other head weights", header, rows, 2, [note], terms,
                 title="Does the routing matter?")  # fmt: skip


def _same_decoding(results: Results) -> bool:
    """Whether the unchanged outcomes are those of the rows."""
    rows = {(r.scale, r.model, r.seed): r for r in results.rows if r.trained}
    for record in results.routing:
        row = rows.get((record["scale"], record["model"], record["seed"]))
        own = record.get("interventions", {}).get("unchanged")
        if row is not None and own is not None and (row.reached, row.optimal) != (own["reached"], own["optimal"]):
            return False
    return True
