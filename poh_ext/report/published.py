"""What was published for the 12x12 benchmark, and the caveat that stands beside every run of its protocol."""

from __future__ import annotations

from poh_ext.report.document import Grid, Paragraph, Span
from poh_ext.report.results import label
from poh_ext.report.statistics import estimate

__all__ = ["AS_PUBLISHED_CAVEAT", "RANDOM_AS_PUBLISHED", "published_blocks"]

# What training-enhancement-summary.md reports for its 12x12 example: (reached, optimal) of 57 test mazes.
PUBLISHED_MAZES = 57
PUBLISHED = {"baseline": (33, 30), "poh": (36, 31)}
# A random policy on 100 test sets drawn as published (240 dfs mazes of 12x12, paths of 51 cells or more, 57 kept on
# average): mean, standard deviation and largest percentage. tests/test_report_caveat.py measures them again.
RANDOM_AS_PUBLISHED = {"reached": (26.9, 6.4, 46.0), "optimal": (2.1, 1.9, 8.3)}
AS_PUBLISHED_CAVEAT = """\
The models see an all-open grid, not the walls. In the published 12x12
example the length filter left 57 test mazes, so one maze is 1.75 points, and the published gap of 5.27 points between
PoH and the baseline is 3 mazes. A random policy under this protocol and rollout scores {reached} reached and
{optimal} optimal on 100 such test sets: the spread between test sets alone is wider than that gap.""".format(
    **{name: f"{mean} +/- {spread} % (up to {most} %)" for name, (mean, spread, most) in RANDOM_AS_PUBLISHED.items()}
)


def published_blocks() -> list:
    """The caveat, and the published figures with the intervals that their 57 mazes allow."""
    header = ["published", "reached % [95 % CI]", "optimal % [95 % CI]"]
    rows = []
    for model, counts in PUBLISHED.items():
        cells = []
        for count in counts:
            p = estimate({0: [True] * count + [False] * (PUBLISHED_MAZES - count)})
            cells.append(f"{p.percent:.2f} [{p.interval[0]:.1f}-{p.interval[1]:.1f}]")
        rows.append([label(model), *cells])
    warning = Span("strong", "Read the as-published protocol with care.")
    return [Paragraph([warning, " " + AS_PUBLISHED_CAVEAT]), Grid(header, rows, left=1, caption="As published")]
