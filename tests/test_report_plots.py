"""Plots: what is drawn stands at the right place, in decoded pixels and in the artists' data."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from report_cases import carve, make_results, make_row, make_run, make_scaling, pad, walk

from poh_ext._figures import percent_top, save_png
from poh_ext.maze_drawing import MazeSample, first_stray, maze_sheet
from poh_ext.report.outcome_figures import _bin_edges, accuracy_by_length, outcome_bars
from poh_ext.report.training_figures import learning_curves, smooth

UP, DOWN, LEFT, RIGHT = 1, 2, 4, 8  # bits of MazeBatch.passages
PLOTS = (learning_curves, outcome_bars, accuracy_by_length)


def decode(figure, path):
    """PNG as float [height, width, 3] and a function from an axis' data coordinates to its pixel."""
    image = imread(save_png(figure, path))[..., :3]

    def pixel(axis, x, y):
        column, row = axis.transData.transform((x, y))
        return image[image.shape[0] - 1 - int(row), int(column)]

    return image, pixel


def is_dark(color):
    return color.max() < 0.35


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    passages = carve(2, 4, 6, seed=3)
    truth = [walk(p, 0, 23) for p in passages]
    lost = [walk(p, 0, 23, np.random.default_rng(1)) for p in passages]
    sample = MazeSample(
        torch.from_numpy(passages), torch.zeros(2, dtype=torch.int64), np.full(2, 23), pad(truth),
        {"baseline": pad(lost), "PoH": torch.from_numpy(pad(truth))},
    )  # fmt: skip
    figure = maze_sheet(sample)
    return sample, figure, *decode(figure, tmp_path_factory.mktemp("sheet") / "mazes.png")


class TestSheet:
    def test_walls_are_dark_and_passages_are_not(self, sheet):
        sample, figure, _, pixel = sheet
        sides = {UP: (0, -0.5), DOWN: (0, 0.5), LEFT: (-0.5, 0), RIGHT: (0.5, 0)}
        seen = set()
        for j, axis in enumerate(figure.axes):
            for (row, column), bits in np.ndenumerate(sample.passages[j // 2]):
                for bit, (dx, dy) in sides.items():
                    # 0.38 beside the middle of the side, where no path is drawn
                    color = pixel(axis, column + dx + (0.38 if dy else 0), row + dy + (0.38 if dx else 0))
                    wall = not bits & bit
                    assert is_dark(color) == wall, (j, row, column, bit)
                    seen.add(wall)
        assert seen == {True, False}

    def test_the_true_path_lies_under_every_cell_on_it_and_no_other(self, sheet):
        sample, figure, _, pixel = sheet
        axis = figure.axes[1]  # PoH walks the true path
        ends = (0, 23)
        for cell in range(24):
            color = pixel(axis, cell % 6, cell // 6)
            on = cell in sample.true_paths[0]
            assert (is_dark(color) if on else color.min() > 0.97) or cell in ends, cell
            beside = pixel(axis, cell % 6 + 0.07, cell // 6 + 0.07)  # off the thin line, on the broad one
            expected = (0xB8 / 255, 0xCF / 255, 0xE0 / 255) if on else (1, 1, 1)
            assert np.allclose(beside, expected, atol=0.02) or cell in ends, cell

    def test_the_first_stray_is_marked_where_it_happens(self, sheet):
        sample, figure, _, pixel = sheet
        marked = 0
        for i in range(2):
            path, truth = sample.paths["baseline"][i], sample.true_paths[i]
            same = [a == b for a, b in zip(path, truth, strict=False)]
            if all(same[: (truth >= 0).sum()]):
                continue
            stray = same.index(False)
            assert first_stray(sample.passages[i], 23, path) == stray
            axis = figure.axes[2 * i]
            assert f"strays at move {stray}" in axis.get_xlabel()
            red, green, blue = pixel(axis, path[stray] % 6, path[stray] // 6)
            assert red > 0.7 and green < 0.5 and blue < 0.2
            marked += 1
        assert marked
        assert "strays" not in figure.axes[1].get_xlabel()

    def test_captions_count_moves_and_tell_failures(self):
        passages = np.array([[[RIGHT, LEFT | RIGHT, LEFT]]], dtype=np.uint8)
        paths = {"a": [[0, 1, 2]], "b": [[0, 1, -1]], "c": [[0, 1, 0]]}
        sample = MazeSample(passages, [0], [2], [[0, 1, 2]], paths)
        texts = [axis.get_xlabel() for axis in maze_sheet(sample).axes]
        assert texts[0] == "reached in 2 moves, shortest 2"
        assert texts[1] == "not reached in 1 move, shortest 2"
        assert texts[2] == "not reached in 2 moves, shortest 2\nstrays at move 2, sees 2 cells"

    def test_a_walk_that_goes_to_and_fro_is_shown_where(self):
        passages = np.array([[[RIGHT, LEFT | RIGHT, LEFT | RIGHT, LEFT]]], dtype=np.uint8)
        path = [0, 1, 0, 1, 0, 1, 2, 1]
        figure = maze_sheet(MazeSample(passages, [0], [3], [[0, 1, 2, 3]], {"a": [path]}))
        _, often = figure.axes[0].collections
        assert [segment.tolist() for segment in often.get_segments()] == [[[0, 0], [1, 0]]]
        (end,) = [line for line in figure.axes[0].lines if line.get_marker() == "s"]
        assert (end.get_xdata()[0], end.get_ydata()[0]) == (1, 0)

    def test_another_shortest_path_of_an_open_maze_is_not_a_stray(self):
        passages = np.array([[DOWN | RIGHT, DOWN | LEFT], [UP | RIGHT, UP | LEFT]], dtype=np.uint8)
        for path in ([0, 1, 3], [0, 2, 3]):
            assert first_stray(passages, 3, np.array(path)) is None
        assert first_stray(passages, 3, np.array([0, 1, 0, 1, 3])) == 2

    @pytest.mark.parametrize("models", [1, 2, 5])
    def test_the_legend_lies_within_the_picture_and_beside_the_mazes(self, tmp_path, models):
        passages = carve(1, 6, 6)
        path = pad([walk(passages[0], 0, 35)])
        figure = maze_sheet(MazeSample(passages, [0], [35], path, {f"model {i}": path for i in range(models)}))
        decode(figure, tmp_path / "mazes.png")
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
        assert not any(axis.get_tightbbox().overlaps(box) for axis in figure.axes)

    def test_many_models_stand_below_each_other(self):
        passages = carve(2, 3, 3)
        path = pad([walk(p, 0, 8) for p in passages])
        paths = {f"model {i}": path for i in range(5)}
        figure = maze_sheet(MazeSample(passages, [0, 0], [8, 8], path, paths))
        assert [axis.get_title() for axis in figure.axes[:2]] == ["test maze 1", "test maze 2"]
        assert [axis.get_ylabel() for axis in figure.axes[::2]] == list(paths)

    def test_nothing_to_draw(self):
        empty = np.zeros((0, 3, 3), dtype=np.uint8)
        none = np.zeros((0, 4), dtype=np.int64)
        assert maze_sheet(MazeSample(empty, [], [], none, {"PoH": none})) is None
        assert maze_sheet(MazeSample(carve(1, 3, 3), [0], [8], [[0]], {})) is None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"passages": np.zeros((3, 3))}, r"passages must be \[n, H, W\], not \[3, 3\]"),
            ({"start": [0, 0]}, r"start must be \[n\] with n=1 as in passages, not \[2\]"),
            ({"true_paths": [0, 1]}, r"true_paths must be \[n, L\] with n=1"),
            ({"start": [0.5]}, r"start must hold cell indices, not float64"),
            ({"goal": [9]}, r"goal has cells outside 0..8"),
            ({"paths": {"PoH": [[0, -2]]}}, r"paths\['PoH'\] has cells outside"),
        ],
    )
    def test_bad_samples_are_named(self, change, message):
        good = {"passages": carve(1, 3, 3), "start": [0], "goal": [8], "true_paths": [[0]], "paths": {}}
        with pytest.raises((ValueError, TypeError), match=message):
            MazeSample(**{**good, **change})


class TestPlots:
    @pytest.mark.parametrize("draw", PLOTS)
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

    @pytest.mark.parametrize("draw", PLOTS)
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
