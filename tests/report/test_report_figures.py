"""Figures: what is drawn stands at the right place, in decoded pixels and in the artists' data."""

import numpy as np
import pytest

from poh_ext._figures import percent_top, save_png
from poh_ext.report.outcome_figures import _bin_edges, accuracy_by_length, outcome_bars
from poh_ext.report.training_figures import learning_curves, smooth
from tests.cases.reports import decode, make_results, make_row, make_run, make_scaling

FIGURES = (learning_curves, outcome_bars, accuracy_by_length)


class TestFigures:
    @pytest.mark.parametrize("draw", FIGURES)
    @pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
    def test_pictures_are_not_empty_and_legends_cover_no_data(self, tmp_path, draw, seeds):
        figure = draw(make_run(seeds=seeds, looped=True))
        image, _ = decode(figure, tmp_path / "plot.png")
        assert image.shape[1] > 600 and 0.01 < (image.min(axis=-1) < 0.9).mean() < 0.6
        legends = [legend.get_window_extent() for legend in figure.legends]
        assert legends
        for axis in figure.axes:
            assert axis.get_xlabel()
            assert not any(axis.get_tightbbox().overlaps(box) for box in legends)

    @pytest.mark.parametrize("draw", FIGURES)
    def test_nothing_finished_draws_nothing(self, draw):
        assert draw(make_results([], test_sets={})) is None

    @pytest.mark.parametrize("share", [0, 1])
    def test_bars_at_0_and_100_percent(self, tmp_path, share):
        rows = [make_row("baseline", reached=[share] * 4), make_row("mine", reached=[share] * 4)]
        figure = outcome_bars(make_results(rows))
        save_png(figure, tmp_path / "bars.png")
        assert [p.get_width() for p in figure.axes[0].patches] == [100 * share] * 2
        assert figure.axes[0].get_xlim()[1] > (100 if share else 49)  # Wilson's upper end of 0 of 4

    @pytest.mark.parametrize(("highest", "top"), [(0, 10), (10, 10), (10.1, 20), (55, 60), (80.5, 100), (100, 100)])
    def test_axes_of_percentages_fit_small_shares(self, highest, top):
        assert percent_top(highest) == top

    def test_several_sizes_stand_in_panels_of_their_own(self, tmp_path):
        results = make_scaling(("tiny", "small", "xl"), n=80)
        curves, lengths = learning_curves(results), accuracy_by_length(results)
        assert [axis.get_title() for axis in curves.axes] == ["tiny", "small", "xl"]
        assert all(len(axis.lines) == 2 for axis in curves.axes)
        assert [axis.get_title() for axis in lengths.axes] == ["tiny", "tiny", "small", "small", "xl", "xl"]
        for axis in lengths.axes:
            assert len(axis.containers) == 3  # both models, and the random policy in each panel
        names = [text.get_text() for text in lengths.legends[0].get_texts()]
        assert names == ["baseline", "PoH", "random policy"]
        assert len(outcome_bars(results).axes[0].get_yticklabels()) == 3 * 4 + 1

    def test_bars_show_the_outcomes_in_the_rows_order(self, tmp_path):
        rows = [make_row("random", False, reached=(1, 0, 0, 0)), make_row(reached=(1, 1, 1, 0), optimal=(0, 1, 0, 0))]
        figure = outcome_bars(make_results(rows))
        reached, optimal = ([p.get_width() for p in axis.patches] for axis in figure.axes)
        assert reached == [75, 25] and optimal == [25, 25]
        assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["baseline", "random policy"]
        _, pixel = decode(figure, tmp_path / "bars.png")
        assert pixel(figure.axes[0], 45, 0.2).max() < 0.85 and pixel(figure.axes[0], 90, 0.2).min() > 0.97

    def test_curves_have_one_line_per_model_and_seed_and_survive_a_divergence(self, tmp_path):
        rows = [make_row(m, True, s) for m in ("baseline", "poh") for s in (0, 1)]
        rows[0].curve[5]["loss"] = None
        figure = learning_curves(make_results(rows))
        save_png(figure, tmp_path / "curves.png")
        (loss,) = figure.axes
        assert len(loss.lines) == 4
        np.testing.assert_allclose(loss.lines[1].get_ydata(), [5.0 / s for s in range(1, 21)])
        assert np.isnan(loss.lines[0].get_ydata()[5])
        assert len({line.get_linestyle() for line in loss.lines}) == 2

    def test_a_single_logged_step_is_visible(self, tmp_path):
        row = make_row(curve=[{"step": 1, "loss": 2.0}])
        figure = learning_curves(make_results([row]))
        assert len(figure.axes) == 1 and figure.axes[0].lines[0].get_marker() == "o"
        _, pixel = decode(figure, tmp_path / "curves.png")
        assert pixel(figure.axes[0], 1, 2.0).min() < 0.5

    def test_smoothing(self):
        np.testing.assert_allclose(smooth(np.array([0.0, 3.0, np.nan, 3.0, 6.0]), 3), [1.5, 1.5, np.nan, 4.5, 4.5])

    def test_lengths_are_counted_in_their_bin(self):
        reached = [1] * 20 + [0] * 20
        row = make_row(reached=reached)
        figure = accuracy_by_length(make_results([row], lengths=range(10, 50)))
        axis = figure.axes[0]
        assert [t.get_text() for t in axis.get_xticklabels()] == ["10-29\nn = 20", "30-49\nn = 20"]
        np.testing.assert_allclose(axis.containers[0][0].get_ydata(orig=False), [100, 0])

    @pytest.mark.parametrize("lengths", [[7], [5, 5, 5], list(range(40)), [3, 3, 3, 3, 9], [1, 50, 50, 50, 50]])
    def test_bins_hold_every_length_once_and_none_is_empty(self, lengths):
        edges = _bin_edges(np.array(lengths), 6)
        counts = np.histogram(lengths, edges)[0]
        assert counts.sum() == len(lengths) and counts.min() > 0
        assert edges[0] <= min(lengths) and edges[-1] > max(lengths)
