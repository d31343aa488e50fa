"""Whether the routing matters: outcomes with other head weights, against outcomes with the routers' own weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from poh_ext.report.ablation import holm
from poh_ext.report.claims import beats_chance
from poh_ext.report.document import Block, Bullets, Grid, Heading, Paragraph, Span
from poh_ext.report.statistics import LEVEL, MEASURES, Comparison, Proportion, compare, estimate
from poh_ext.results import Results, Row, label

__all__ = ["Effect", "routing_blocks", "routing_effects", "routing_verdicts"]

# Name in the record, name of the row, what it is, what it is to show.
KINDS = (
    ("uniform", "uniform weights", "every head has 1 / heads in every pass and block", "does what was learned matter?"),
    ("shuffled", "another maze's weights", "those that the routers give, in the same pass and block, for another test "
     "maze of the batch (with token routing, for a cell half a maze away in it)", "must they suit the maze?"),
    ("frozen", "constant weights", "their mean over test mazes and passes, one value for each head and block",
     "must they change, from pass to pass or from maze to maze?"),
)  # fmt: skip


@dataclass(frozen=True)
class Effect:
    """One intervention on one planner; everything is by measure.

    `comparisons` are the intervention minus the unchanged planner, paired over mazes and seeds. `p_values` are
    McNemar's after Holm's correction for all interventions of the run.
    """

    scale: str
    model: str
    kind: str
    shares: dict[str, Proportion]
    comparisons: dict[str, Comparison]
    p_values: dict[str, float]

    def resolved(self, measure: str) -> bool:
        return self.comparisons[measure].resolved and self.p_values[measure] < 1 - LEVEL

    def same(self) -> bool:
        """True if every maze has the same outcome, which an interval alone would not show."""
        return not any(c.only_first or c.only_second for c in self.comparisons.values())

    def verdict(self) -> str:
        if self.same():
            return "no maze ends otherwise"
        found = [f"{m} {'rises' if c.difference > 0 else 'falls'}" for m, c in self.comparisons.items()
                 if self.resolved(m)]  # fmt: skip
        return ", ".join(found) or "not resolved"


def routing_effects(results: Results) -> list[Effect]:
    """All interventions that were evaluated, planner by planner in the order of KINDS."""
    study = replace(results, rows=list(_rows(results)))
    found = []
    for scale, model in dict.fromkeys((r["scale"], r["model"]) for r in results.routing):
        for kind, *_ in KINDS:
            pairs = {m: compare(study, m, (f"{model}/{kind}", True), (model, True), scale) for m in MEASURES}
            if None not in pairs.values():
                shares = {m: _share(study, scale, f"{model}/{kind}", m) for m in MEASURES}
                found.append((scale, model, kind, shares, pairs))
    p_values = iter(holm([pairs[m].p_value for *_, pairs in found for m in MEASURES]))
    return [Effect(*effect, {m: next(p_values) for m in MEASURES}) for effect in found]


def _rows(results: Results) -> Iterator[Row]:
    """The outcomes as rows "poh" and "poh/uniform", so that they are compared like models."""
    for record in results.routing:
        for kind, outcome in record.get("interventions", {}).items():
            model = record["model"] + ("" if kind == "unchanged" else f"/{kind}")
            yield Row(model, True, record["seed"], 0, None, 0, None, None, None, outcome["reached"], outcome["optimal"],
                      0, 0, scale=record["scale"])  # fmt: skip


def _share(study: Results, scale: str, model: str, measure: str) -> Proportion:
    return estimate({r.seed: getattr(r, measure) for r in study.rows if (r.scale, r.model) == (scale, model)})


def routing_verdicts(results: Results) -> list[str]:
    """One sentence for each planner with interventions.

    Example:
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


def _answer(effect: Effect) -> str:
    """Whether the planner needs its own weights. An intervention that does no harm is evidence against it."""
    name = next(name for kind, name, *_ in KINDS if kind == effect.kind)
    shown = {m: c for m, c in effect.comparisons.items() if effect.resolved(m)}
    falls = {c.difference < 0 for c in shown.values()}
    verdict = "not resolved" if not falls else "holds" if falls == {True} else "the opposite holds"
    if len(falls) == 2:
        verdict = "holds for one measure, the opposite for the other"
    if effect.same():
        verdict += ", not one maze ends otherwise"
    points = ", ".join(f"{m} {_points(c)}" for m, c in (shown or effect.comparisons).items())
    return f"{name}: {verdict} ({points})"


def _points(c: Comparison, unit: str = " points") -> str:
    low, high = c.interval
    return f"{c.difference:+.1f}{unit} [{low:+.1f}, {high:+.1f}]"


def routing_blocks(results: Results) -> list[Block]:
    """The section of the report; [] if there was no intervention."""
    effects = routing_effects(results)
    if not effects:
        return []
    study, lines, last = replace(results, rows=list(_rows(results))), [], None
    names = {kind: name for kind, name, *_ in KINDS}
    for e in effects:
        planner = label(e.model, True, e.scale)
        if (e.scale, e.model) != last:
            last = e.scale, e.model
            lines.append([planner, "its own", *(x for m in MEASURES for x in (_percent(_share(study, *last, m)), "")),
                          "", ""])  # fmt: skip
        cells = [x for m, c in e.comparisons.items() for x in (_percent(e.shares[m]), _points(c, ""))]
        lines.append([planner, names[e.kind], *cells, f"{min(e.p_values.values()):.3g}", e.verdict()])
    header = ["planner", "head weights"]
    header += [x for m in MEASURES for x in (f"{m} % [95 % CI]", f"{m}: points [95 % CI]")]
    header += ["least p (Holm)", "verdict"]
    grid = Grid(header, lines, left=2, caption="Trained planners with other head weights")
    kinds = {e.kind for e in effects}
    what = [[Span("strong", name), f": {text}. {question[0].upper()}{question[1:]}"]
            for kind, name, text, question in KINDS if kind in kinds]  # fmt: skip
    n = len(effects) * len(MEASURES)
    table = "" if _same_decoding(results) else " All are decoded from one table here, unlike the rows of the results."
    note = (
        "The planners are those of the results, trained once; at evaluation their routers' weights are replaced in "
        "every pass and block. Points: with the other weights minus with its own, on the same mazes and seeds; "
        f"negative means that the planner needs its own. {n} comparisons: p is McNemar's exact test after Holm's "
        f"correction for all of them, and a verdict needs both it and the interval, which covers seeds too.{table}"
    )
    return [Heading("Does the routing matter?", level=3), grid, Bullets(what), Paragraph(note)]


def _same_decoding(results: Results) -> bool:
    """Whether the unchanged outcomes are those of the rows."""
    rows = {(r.scale, r.model, r.seed): r for r in results.rows if r.trained}
    for record in results.routing:
        row = rows.get((record["scale"], record["model"], record["seed"]))
        own = record.get("interventions", {}).get("unchanged")
        if row is not None and own is not None and (row.reached, row.optimal) != (own["reached"], own["optimal"]):
            return False
    return True


def _percent(p: Proportion) -> str:
    return f"{p.percent:.1f} [{p.interval[0]:.1f}-{p.interval[1]:.1f}]"
