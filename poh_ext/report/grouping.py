"""Groups of rows: of one model and size, over the seeds; and the control that every size is compared with."""

from __future__ import annotations

from poh_ext.results import CONTROLS, Results, Row

__all__ = ["chance_rows", "group_rows", "sizes", "unchanged"]

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
