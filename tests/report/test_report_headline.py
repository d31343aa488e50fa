"""The sentence on top of a report, against what was made to be so, and the picture below it."""

import re

import pytest

from poh_ext.report import headline, write_report
from tests.cases.reports import make_results, make_row, make_run, make_scaling

MAZES = 200


def pair(poh, baseline, random=0, near=None, seeds=(0,), **changes):
    """A run in which the models reach so many mazes, each a part of the others'; `near` of them nearly optimally."""
    rows = []
    for seed in seeds:
        for model, count, params in (("poh", poh, 1200), ("baseline", baseline, 1300), ("random", random, 0)):
            reached = [i < count for i in range(MAZES)]
            optimal = [i < (near or {}).get(model, count) for i in range(MAZES)]
            rows.append(make_row(model, model != "random", seed, reached, optimal, params=params))
    return make_results(rows, lengths=[50] * MAZES, **changes)


SAID = {
    "PoH (1,200 parameters) against baseline (1,300), 200 test mazes, one seed: PoH wins in goals reached (45.0 "
    "against 20.0 %, +25.0 points [+19.0, +31.0]).": pair(90, 40),
    "600 test mazes, 3 seeds: baseline wins in goals reached (20.0 against 45.0 %, -2": pair(40, 90, seeds=(0, 1, 2)),
    "nothing is resolved in goals reached (20.5 against 20.0 %, +0.5 points": pair(41, 40),
    "because the interval of the difference includes 0.": pair(41, 40),
    "nothing is resolved, because both reach the same goals (20.0 %).": pair(40, 40, near={"poh": 40, "baseline": 38}),
    "PoH wins in paths within 5 % of the shortest (20.0 against 5.0 %": pair(40, 40, near={"poh": 40, "baseline": 10}),
    "; baseline is not shown to beat a random policy, which reaches 30.0 %.": pair(90, 40, random=60),
    "PoH wins in goals reached (45.0 against 30.0 %, +15.0 points [+10.0, +20.0]); neither is shown to beat a random "
    "policy, which reaches 60.0 %.": pair(90, 60, random=120),
    "No planner was trained to the end: there is no result yet.": make_results([]),
    "Nothing is compared, because PoH and a planner that it is held against were not both trained on one seed; goals "
    "reached: baseline 75.0 %, looped baseline 75.0 %.": make_results([make_row(), make_row("looped_baseline")]),
    "not both trained on one seed; goals reached: PoH, without warm-up 75.0 %.":
        make_results([make_row("poh/without warm-up")]),
    "not both trained on one seed.": make_results([make_row(reached=())], lengths=()),
    "PoH (with 1.01 to 1.10 times the parameters) against baseline at 3 sizes, up to 60 test mazes, one seed: PoH wins "
    "at tiny, small, xl (by 20.0 points at tiny) in goals reached.": make_scaling(),
    "baseline wins at tiny, small, xl (by 20.0 points at tiny) in goals reached.": make_scaling(gain=-0.2, share=0.5),
    "2 seeds: nothing is resolved at any size in goals reached, because every interval of the difference includes 0.":
        make_scaling(gain=0, seeds=(0, 1)),
    "one seed: PoH wins in goals reached (45.0 against 20.0 %, +25.0 points [+19.0, +31.0]) and baseline wins in paths "
    "within 5 % of the shortest (5.0 against 15.0 %, -10.0 points [-14.5, -6.0]).":
        pair(90, 40, near={"poh": 10, "baseline": 30}),
    "PoH wins in paths of at most 1.05 times the cells of the shortest in the maze with its walls (20.0 against 5.0 %":
        pair(40, 40, near={"poh": 40, "baseline": 10}, protocol="as-published"),
    "PoH (7,412,688 parameters) against PoH per token (7,412,688), 4 test mazes, one seed: ":
        make_results([make_row("poh"), make_row("poh_token")]),
    "; neither is shown to beat a random policy at tiny, small.": make_scaling(share=0.0, gain=0.05),
}  # fmt: skip


@pytest.mark.parametrize("said", SAID)
def test_it_says_who_won_or_why_nothing_is_resolved(said):
    sentence = headline(SAID[said])
    assert said in sentence and ". " not in sentence and sentence.endswith(".")


def test_a_difference_of_one_size_alone_is_told_from_the_others():
    results = make_scaling(("tiny", "small"))
    same = next(row for row in results.rows if (row.model, row.scale, row.trained) == ("baseline", "small", True))
    for row in results.rows:
        if (row.model, row.scale, row.trained) == ("poh", "small", True):
            row.reached, row.optimal = same.reached, same.optimal
    assert "PoH wins at tiny (by 20.0 points at tiny) in goals reached; nothing is resolved at small." in headline(
        results
    )


def test_seeds_that_only_one_planner_has_are_left_out():
    results = pair(95, 80, random=40, seeds=(0, 1))
    results.rows = [row for row in results.rows if (row.model, row.seed) != ("poh", 1)]
    for row in results.rows:
        if (row.model, row.seed) == ("baseline", 1):
            row.reached = row.optimal = [False] * MAZES
    assert headline(results) == headline(pair(95, 80, random=40))


def test_several_sizes_speak_of_short_paths_where_these_alone_are_resolved():
    results = make_scaling(("tiny", "small"), gain=0)
    for row in results.rows:
        if row.model == "baseline":
            row.optimal = [False] * len(row.optimal)
    assert re.search(r"wins at tiny, small \(by [^)]*\) in paths within 5 % of the shortest\.$", headline(results))
    assert "goals reached" not in headline(results)


def test_a_size_resolved_the_other_way_in_short_paths_is_told():
    results = make_scaling(("tiny", "small"))
    rows = {(row.model, row.scale): row for row in results.rows if row.trained}
    rows["poh", "small"].reached = rows["baseline", "small"].reached
    rows["poh", "small"].optimal = [False] * len(rows["poh", "small"].optimal)
    assert (
        "PoH wins at tiny (by 20.0 points at tiny) in goals reached; baseline wins at small (by 40.0 points at small) "
        "in paths within 5 % of the shortest." in headline(results)
    )


def test_the_looped_baseline_follows_the_baseline():
    results = pair(90, 40)
    results.rows.append(make_row("looped_baseline", reached=[i < 90 for i in range(MAZES)]))
    said = "; against looped baseline nothing is resolved, because both reach the same goals (45.0 %)."
    assert "PoH wins in goals reached (45.0 against 20.0 %" in headline(results) and headline(results).endswith(said)


def test_as_published_the_grids_without_walls_are_told():
    results = pair(90, 40, protocol="as-published")
    assert headline(results).endswith("; the grids have no walls.")
    results.rows.append(make_row("beeline", False, reached=[True] * MAZES))
    said = "; the grids have no walls, and always stepping nearer to the goal reaches 100.0 % of the goals."
    assert headline(results).endswith(said)


def test_solvers_beside_the_compared_planners_are_named():
    results = pair(41, 40)
    solved = [True] * MAZES
    results.rows.append(make_row("looped_solver", reached=solved, exact=[i < 190 for i in range(MAZES)]))
    assert headline(results).endswith("; looped solver solves 95.0 % exactly.")


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("results, first", [(make_run(), "outcomes.png"), (make_scaling(), "scaling.png")])
def test_sentence_and_picture_stand_before_the_results_and_once(tmp_path, results, first):
    page, text = (path.read_text() for path in write_report(results, tmp_path)[:2])
    assert f"**{headline(results)}**" in text[: text.index("## Results")]
    for written, place, results_at in ((text, rf"!\[[^]]*\]\({first}\)", "## Results"),
                                       (page, f'<img src="{first}"', '<h2 id="results">')):  # fmt: skip
        assert len(re.findall(place, written)) == 1
        assert re.search(place, written).start() < written.index(results_at)
    assert "a path at most 5 % longer than the shortest" in text
