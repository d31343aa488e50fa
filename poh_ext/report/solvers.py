"""Why the planners of --preset solve solve mazes that planners of the published shape do not, if both were trained."""

from __future__ import annotations

from poh_ext.report.grouping import group_rows
from poh_ext.report.statistics import estimate_rows
from poh_ext.results import Results, Row, label

__all__ = ["SOLVER_ROWS", "solver_sentences"]

SOLVER_ROWS = ("looped_solver", "poh_solver")
_PUBLISHED = ("baseline", "poh")


def solver_sentences(results: Results) -> list[str]:
    """One sentence, if solvers and planners of the published shape were trained and exactness was measured.

    Example:
        >>> solver_sentences(Results.load("results.json"))
        ['Why the looped solver (100 % exact) solves what baseline (0.1 %) and PoH (0.2 %) do not: ...']
    """
    found = {model: rows for (_, model, trained), rows in group_rows(results).items()
             if trained and all(row.exact for row in rows)}  # fmt: skip
    solvers, others = ([name for name in names if name in found] for names in (SOLVER_ROWS, _PUBLISHED))
    if not solvers or not others:
        return []
    passes = max(row.config.get("loops", row.config.get("R", 1)) for name in solvers for row in found[name])
    worst, best = (min(_exact(found[n]) for n in solvers), max(_exact(found[n]) for n in others))
    if worst <= best:
        return []
    do, does = "s" * (len(solvers) == 1), "es" * (len(others) == 1)
    return [f"Why {_named(solvers, found)} solve{do} mazes and {_named(others, found)} do{does} not: a solver runs one "
            f"layer up to {passes} times, its heads see only a cell and its passable neighbours, and every cell's move "
            "is trained, so that news of the goal travels along the corridors cell by cell; the published shape looks "
            "at all cells at once in a few passes, and learns from the cells of the path alone (docs/solve.md)."]


def _exact(rows: list[Row]) -> float:
    return estimate_rows(rows, "exact").percent


def _named(names: list[str], found: dict[str, list[Row]]) -> str:
    return " and ".join(f"{label(name)} ({_exact(found[name]):.1f} % exact)" for name in names)
