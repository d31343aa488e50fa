"""The four panels against parameters: points, intervals and reference lines are those of the statistics."""

import numpy as np
import pytest
from matplotlib.image import imread

from poh_ext._figures import save_png
from poh_ext.report.outcome_figures import accuracy_by_length, outcome_bars, scaling_panels
from poh_ext.report.statistics import OPPONENTS, chance_rows, compare, estimate_rows
from poh_ext.report.training_figures import learning_curves
from poh_ext.results import label
from tests.cases.reports import SIZES, make_run, make_scaling


def points(axis, marker, filled=True):
    """Of the lines drawn with a marker: [(x, y), ...]."""
    found = []
    for line in axis.lines:
        hollow = line.get_markerfacecolor() == "white"
        if line.get_marker() == marker and hollow != filled:
            found += zip(line.get_xdata(), line.get_ydata(), strict=True)
    return found


def bars(axis):
    """Ends of every vertical interval: {(low, high), ...}, rounded."""
    ends = set()
    for container in axis.containers:
        for segment in container[2][0].get_segments():
            ends.add((round(segment[0][1], 6), round(segment[1][1], 6)))
    return ends


def test_shares_and_controls_stand_at_the_models_parameters():
    results = make_scaling()
    figure = scaling_panels(results)
    reached = figure.axes[0]
    assert reached.get_xscale() == "log" and "parameters (millions" in reached.get_xlabel()
    solved = points(reached, "o")
    np.testing.assert_allclose([x for x, _ in solved], [baseline for baseline, _ in SIZES.values()], rtol=0.06)
    np.testing.assert_allclose([y for _, y in solved], [30, 40, 50])
    np.testing.assert_allclose([y for _, y in points(reached, "^")], [50, 60, 70])
    np.testing.assert_allclose([y for _, y in points(reached, "o", filled=False)], [5, 5, 5])
    rows = [r for r in results.rows if r.key == ("tiny", "baseline", True)]
    assert tuple(np.round(estimate_rows(rows, "reached").interval, 6)) in bars(reached)
    (chance,) = [line for line in reached.lines if line.get_linestyle() == ":"]
    assert set(chance.get_ydata()) == {10.0}
    (band,) = reached.patches
    low, high = estimate_rows(chance_rows(results, "tiny"), "reached").interval
    assert band.get_extents().height == pytest.approx(
        reached.transData.transform((1e6, high))[1] - reached.transData.transform((1e6, low))[1]
    )


def test_advantages_are_paired_and_hollow_where_not_resolved():
    results = make_scaling(n=40, gain=0.2)
    axis = scaling_panels(results).axes[2]
    np.testing.assert_allclose([y for _, y in points(axis, "o")], [20, 20, 20])
    expected = {tuple(np.round(compare(results, "reached", scale=s).interval, 6)) for s in SIZES}
    assert bars(axis) == expected
    assert {text.get_text() for text in axis.texts} == set(SIZES)
    small = scaling_panels(make_scaling(n=40, gain=0.05)).axes[2]  # 2 of 40 mazes
    assert not points(small, "o") and len(points(small, "o", filled=False)) == 3


def test_every_opponent_has_a_line_and_no_interval_hides_another():
    figure = scaling_panels(make_scaling(ablation=True))
    axis = figure.axes[3]
    places = {}
    for opponent, marker in zip(OPPONENTS, "osvD", strict=True):
        found = points(axis, marker) + points(axis, marker, filled=False)
        places[opponent] = sorted(x for x, _ in found)
        assert len(found) == 3
    assert len({x[0] for x in places.values()}) == 4
    names = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {f"PoH - {label(o)}, paired" for o in OPPONENTS} | {"random policy", "shallow PoH, untrained"} <= names


@pytest.mark.parametrize("share", [0.3, 0.0])
def test_the_picture_is_whole_and_its_legend_beside_the_data(tmp_path, share):
    figure = scaling_panels(make_scaling(ablation=True, share=share, gain=0.0 if share == 0 else 0.2))
    image = imread(save_png(figure, tmp_path / "scaling.png"))
    assert image.shape[:2] == (1144, 1612)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert not any(axis.get_tightbbox().overlaps(box) for axis in figure.axes)
    assert all(axis.get_ylabel().endswith(("(% of test mazes)", "(points)")) for axis in figure.axes)


def test_one_size_has_nothing_to_compare():
    assert scaling_panels(make_run()) is None
    assert scaling_panels(make_scaling(("tiny",))) is None


def test_the_random_policy_of_a_size_comes_before_that_of_all():
    results = make_scaling(("tiny", "small"))
    shared = results.rows[-1]
    own = make_scaling(("tiny",)).rows[-1]
    own.scale = "small"
    results.rows.insert(0, own)
    assert chance_rows(results, "small") == [own] and chance_rows(results, "tiny") == [shared]


def test_variants_of_an_ablation_are_bars_only():
    results = make_scaling(("tiny", "small"), n=40)
    variants = make_scaling(("tiny", "small"), n=40).rows
    for row in variants:
        row.model += "/without warm-up"
    results.rows += variants[:-1]
    for draw in (learning_curves, accuracy_by_length, scaling_panels):
        names = [text.get_text() for text in draw(results).legends[0].get_texts()]
        assert names and not any("warm-up" in name for name in names)
    figure = outcome_bars(results)
    assert len(figure.axes[0].get_yticklabels()) == 2 * 8 + 1
    colors = {p.get_facecolor()[:3] for p in figure.axes[0].patches}
    assert len(colors) == 3  # of the baseline, of PoH, and the white of controls
