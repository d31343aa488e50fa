"""Rows pooled over seeds, percentages with intervals, and paired comparisons of two models on the same mazes.

Two things vary: the mazes that are drawn, and the result of training with a seed. One seed shows only the first, so the
interval is Wilson's, over mazes. With several seeds the percentage of each seed varies for both reasons, so a t
interval over seeds covers both. But a few seeds that agree by chance give a t interval without width. Therefore
`interval`, which is shown, is the hull of the t interval and of Wilson's over all mazes, and never narrower than
either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from poh_ext._optional import require
from poh_ext.results import CONTROLS, Results, Row, label

__all__ = [
    "Comparison",
    "Proportion",
    "beats_chance",
    "chance_rows",
    "compare",
    "estimate",
    "estimate_rows",
    "group_rows",
    "mazes_needed",
    "mcnemar",
    "seeds_needed",
    "sizes",
    "span",
    "unchanged",
]

LEVEL = 0.95
POWER = 0.80  # of the tests that sample sizes are told for
RESAMPLES = 9999  # of the bootstrap
SMALL_DIFFERENCE = 0.02  # planned for when less than LEAST_DIFFERENCE was observed: nobody asks for 7,000 seeds
LEAST_DIFFERENCE = 0.005
MEASURES = ("reached", "optimal")
OPPONENTS = ("baseline", "looped_baseline", "poh_shallow", "poh_token")
"""What PoH is compared with, where it was trained."""
_PLANNERS = ("baseline", "looped_baseline", "poh", "poh_token", "poh_shallow", "looped_solver", "poh_solver")
_ORDER = {name: place for place, name in enumerate((*_PLANNERS, "others", *CONTROLS))}


def group_rows(results: Results) -> dict[tuple[str, str, bool], list[Row]]:
    """Rows of the same (scale, model, trained), seeds ascending; trained first, CONTROLS last."""
    scales = list(dict.fromkeys(row.scale for row in results.rows if row.model not in CONTROLS))
    scales += [row.scale for row in results.rows if row.scale not in scales]

    def place(row):
        return scales.index(row.scale), row.model in CONTROLS, not row.trained, _ORDER.get(row.model, _ORDER["others"])

    groups: dict[tuple[str, str, bool], list[Row]] = {}
    for row in sorted(results.rows, key=lambda r: (*place(r), r.seed)):
        groups.setdefault(row.key, []).append(row)
    return groups


def sizes(groups) -> list[str]:
    """The size classes of groups, in their order; [""] if there is only one size. CONTROLS have none."""
    return list(dict.fromkeys(scale for scale, model, _ in groups if model not in CONTROLS))


def unchanged(groups: dict) -> dict:
    """The rows without the variants of an ablation ("poh/without warm-up"), whose many lines would hide the models."""
    return {key: rows for key, rows in groups.items() if "/" not in key[1]}


def chance_rows(results: Results, scale: str) -> list[Row]:
    """The random policy's rows on the mazes of a size: its own, else those for all sizes, one per seed."""
    random = [row for row in results.rows if row.model == "random" and row.scale in (scale, "")]
    best = {row.seed: row for row in sorted(random, key=lambda row: row.scale == scale)}
    return [best[seed] for seed in sorted(best)]


@dataclass(frozen=True)
class Proportion:
    """A percentage pooled over mazes and seeds. Intervals are (low, high) in percent, at 95 %.

    `wilson` is over the pooled mazes, and `t` over the percentages of the seeds (None with one seed). `interval`, which
    is used in tables and plots, is their hull.
    """

    count: int
    n: int
    per_seed: dict[int, float]
    wilson: tuple[float, float]
    t: tuple[float, float] | None

    @property
    def percent(self) -> float:
        return 100 * self.count / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return _hull(self.wilson, self.t)

    def text(self, digits: int = 1, short: bool = False) -> str:
        """ "57.9 [45.0-69.8]", with so many digits of the percentage; "-" of no maze. `short` writes 100 for 100.0."""

        def number(value: float, digits: int = 1) -> str:
            return "100" if short and value == 100 else f"{value:.{digits}f}"

        low, high = self.interval
        return f"{number(self.percent, digits)} [{number(low)}-{number(high)}]" if self.n else "-"


@dataclass(frozen=True)
class Comparison:
    """First model minus second on the same mazes, in points of the percentage.

    `bootstrap` is a paired percentile interval over mazes, `t` an interval over the differences of the seeds (None with
    one seed), and `interval` their hull. `p_value` is McNemar's exact test on the pooled discordant mazes. `per_seed`
    maps seed -> (difference, only first, only second, p). `mazes_needed` and `seeds_needed` are for 80 % power at the
    observed difference (None: not known from one seed).
    """

    measure: str
    first: str
    second: str
    n: int
    difference: float
    only_first: int
    only_second: int
    p_value: float
    bootstrap: tuple[float, float]
    t: tuple[float, float] | None
    per_seed: dict[int, tuple[float, int, int, float]]
    mazes_needed: int
    seeds_needed: int | None

    @property
    def interval(self) -> tuple[float, float]:
        return _hull(self.bootstrap, self.t)

    @property
    def resolved(self) -> bool:
        """True if the exact test and the interval (with seeds) both exclude that there is no difference."""
        low, high = self.interval
        return self.p_value < 1 - LEVEL and (low > 0 or high < 0)

    def points(self, unit: str = " points") -> str:
        """ "+5.2 points [+2.1, +8.4]"."""
        return f"{self.difference:+.1f}{unit} {span(self.interval)}"

    def sentence(self) -> str:
        seeds = len(self.per_seed)
        where = f"{self.n:,} mazes" + (f" of {seeds} seeds" if seeds > 1 else " of one seed")
        facts = (
            f"{self.measure}: {self.first} - {self.second} = {self.points()} "
            f"on the same {where} ({self.only_first} only {self.first}, "
            f"{self.only_second} only {self.second}; exact McNemar {_p(self.p_value)})"
        )
        if self.resolved:
            better, worse = (self.first, self.second) if self.difference > 0 else (self.second, self.first)
            caution = "; other training seeds were not tried" if seeds == 1 else ""
            return f"{facts}. Resolved: {better} is better than {worse} here{caution}."
        return f"{facts}. Not resolved: {self._needed()}."

    def _needed(self) -> str:
        """What it would take to see the difference, of what there is less than that."""
        seeds, small = len(self.per_seed), abs(self.difference) < 100 * LEAST_DIFFERENCE
        plan = f"a difference of {100 * SMALL_DIFFERENCE:g} points" if small else "a difference of this size"
        one = " (and several seeds, as one says nothing of how training runs differ)" if seeds == 1 else ""
        need = []
        if self.mazes_needed > self.n:
            need.append(f"about {self.mazes_needed:,} mazes{one or ' (for these trained models)'}")
        if self.seeds_needed is not None and self.seeds_needed > seeds:
            need.append(f"{self.seeds_needed:,} seeds of as many mazes as here")
        if small and not need:
            between = " between these trained models" if seeds == 1 else ""
            return f"{plan}{between} would have been seen with 80 % power"
        needed = f"{', or '.join(need)}{',' * (len(need) > 1)}" if need else f"more than {self.n:,} mazes{one}"
        return f"to see {plan} with 80 % power, {needed} would be needed"


def estimate(outcomes: dict[int, list[bool]]) -> Proportion:
    """Pool one model's outcomes, seed -> one bool per maze, into a percentage with its 95 % intervals.

    Examples:
        >>> p = estimate({0: [True] * 33 + [False] * 24})
        >>> f"{p.percent:.1f} [{p.interval[0]:.1f}, {p.interval[1]:.1f}]"
        '57.9 [45.0, 69.8]'
    """
    stats = require("scipy.stats")
    count, n = sum(map(sum, outcomes.values())), sum(map(len, outcomes.values()))
    per_seed = {seed: 100 * sum(o) / len(o) for seed, o in outcomes.items() if len(o)}
    wilson = (0.0, 100.0)
    if n:
        ci = stats.binomtest(count, n).proportion_ci(LEVEL, method="wilson")
        wilson = (100 * float(ci.low), 100 * float(ci.high))
    return Proportion(count, n, per_seed, wilson, _t_interval(list(per_seed.values()), 0.0, 100.0))


def estimate_rows(rows: list[Row], measure: str) -> Proportion:
    """`estimate` of one group. Seeds of the random and beeline policies only draw mazes: their interval is Wilson's."""
    outcomes = {row.seed: getattr(row, measure) for row in rows}
    p = estimate(outcomes)
    return replace(p, t=None) if rows[0].model in ("random", "beeline") else p


def mcnemar(only_first: int, only_second: int) -> float:
    """p of the two-sided exact McNemar test: are mazes that only one model solves split evenly between both?"""
    discordant = only_first + only_second
    return float(require("scipy.stats").binomtest(only_first, discordant).pvalue) if discordant else 1.0


def compare(
    results: Results, measure: str, first=("poh", True), second=("baseline", True), scale: str = ""
) -> Comparison | None:
    """Compare two models, each (model, trained), over the seeds that both have; None if they share none.

    CONTROLS have no size: they are found for any `scale`.

    Examples:
        >>> comparison = compare(Results.load("results.json"), "reached")
        >>> comparison.resolved, comparison.sentence()
    """
    if measure not in MEASURES:
        raise ValueError(f"measure is {measure!r}; accepted: {', '.join(MEASURES)}")
    sides = []
    for model, trained in (first, second):
        rows = [row for row in results.rows if (row.model, row.trained) == (model, trained)]
        sides.append({row.seed: getattr(row, measure) for row in rows if row.scale in (scale, "")})
    seeds = [seed for seed in sorted(sides[0]) if seed in sides[1] and len(sides[0][seed])]
    if not seeds:
        return None
    per_seed, steps = {}, []
    for seed in seeds:
        d = np.asarray(sides[0][seed], dtype=np.int64) - np.asarray(sides[1][seed], dtype=np.int64)
        wins, losses = int((d > 0).sum()), int((d < 0).sum())
        per_seed[seed] = (100 * float(d.mean()), wins, losses, mcnemar(wins, losses))
        steps.append(d)
    d = np.concatenate(steps)
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    difference = float(d.mean())
    planned = difference if abs(difference) >= LEAST_DIFFERENCE else SMALL_DIFFERENCE
    differences = [value[0] for value in per_seed.values()]
    return Comparison(
        measure=measure,
        first=label(*first, scale),
        second=label(*second, "" if second[0] in CONTROLS else scale),
        n=len(d),
        difference=100 * difference,
        only_first=wins,
        only_second=losses,
        p_value=mcnemar(wins, losses),
        bootstrap=_paired_bootstrap(d),
        t=_t_interval(differences, -100.0, 100.0),
        per_seed=per_seed,
        mazes_needed=mazes_needed((wins + losses) / len(d), planned),
        seeds_needed=_seeds(differences, d, planned),
    )


def beats_chance(results: Results, model: str, scale: str, measure: str) -> bool:
    """False if the random policy was run and the model is not shown to be better than it."""
    c = compare(results, measure, (model, True), ("random", False), scale)
    return c is None or (c.resolved and c.difference > 0)


def mazes_needed(discordant: float, difference: float) -> int:
    """Mazes for 80 % power of a two-sided 5 % McNemar test.

    Args:
        discordant: share of mazes that exactly one of the models solves.
        difference: difference of the two models' shares; not 0.

    Formula: (z_a sqrt(psi) + z_b sqrt(psi - delta^2))^2 / delta^2, from R. J. Connor (1987), Sample size for
    testing differences in proportions for the paired-sample design, Biometrics 43, 207-211.
    """
    z_a, z_b = _quantiles()
    psi, delta = max(discordant, abs(difference)), abs(difference)
    return math.ceil((z_a * math.sqrt(psi) + z_b * math.sqrt(psi - delta * delta)) ** 2 / delta**2)


def seeds_needed(spread: float, difference: float) -> int:
    """Seeds for 80 % power of a two-sided 5 % paired t test over seeds.

    Args:
        spread: standard deviation of the per-seed differences, in the unit of `difference`.
        difference: mean of the per-seed differences; not 0.

    Formula: (z_a + z_b)^2 spread^2 / difference^2 + z_a^2 / 2, from W. C. Guenther (1981), Sample size formulas for
    normal theory t tests, The American Statistician 35, 243-244.
    """
    z_a, z_b = _quantiles()
    return max(2, math.ceil(((z_a + z_b) * spread / difference) ** 2 + z_a**2 / 2))


def _quantiles() -> tuple[float, float]:
    norm = require("scipy.stats").norm
    return float(norm.ppf(1 - (1 - LEVEL) / 2)), float(norm.ppf(POWER))


def _paired_bootstrap(d: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean of d in {-1, 0, 1}, in points. It is seeded, so a report can be repeated."""
    stats = require("scipy.stats")
    if (d == d[0]).all():
        # Resampling a constant gives no width. Wilson bounds the share r of mazes that could differ from it.
        r = 1 - float(stats.binomtest(len(d), len(d)).proportion_ci(LEVEL, method="wilson").low)
        spread = {0: (-r, r), 1: (1 - 2 * r, 1.0), -1: (-1.0, 2 * r - 1)}[int(d[0])]
        return 100 * spread[0], 100 * spread[1]
    # A resample of n values of three kinds is one multinomial draw: the same bootstrap, without its loop.
    kinds = np.array([-1, 0, 1])
    shares = [(d == kind).mean() for kind in kinds]
    means = np.random.default_rng(0).multinomial(len(d), shares, RESAMPLES) @ kinds / len(d)
    low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return 100 * float(low), 100 * float(high)


def _t_interval(values: list[float], lowest: float, highest: float) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    half = require("scipy.stats").t.ppf((1 + LEVEL) / 2, len(values) - 1)
    half = float(half) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    middle = float(np.mean(values))
    return max(lowest, middle - half), min(highest, middle + half)


def _seeds(differences: list[float], d: np.ndarray, planned: float) -> int | None:
    """`seeds_needed`, or None from one seed.

    A few seeds may agree by chance, so their spread is assumed to be at least what drawing other mazes alone gives.
    """
    if len(differences) < 2:
        return None
    of_mazes = float(np.std(d)) / math.sqrt(len(d) / len(differences))
    return seeds_needed(max(float(np.std(differences, ddof=1)) / 100, of_mazes), planned)


def _hull(a: tuple[float, float], b: tuple[float, float] | None) -> tuple[float, float]:
    return a if b is None else (min(a[0], b[0]), max(a[1], b[1]))


def span(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:+.1f}, {interval[1]:+.1f}]"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"
