"""Accuracy over training time: the record, the curves, the table of when the mazes were solved."""

import json

import numpy as np
import pytest

from poh_ext._figures import save_png
from poh_ext.report import write_report
from poh_ext.report.statistics import estimate
from poh_ext.report.training_figures import accuracy_curves, accuracy_table, solved_from
from poh_ext.results import Results
from tests.cases.reports import make_results, make_row


def points(optimal, *, mazes=200, reached=None, every=10, pace=2.0):
    """Shares `optimal` after `every` steps each, of `pace` seconds."""
    reached = optimal if reached is None else reached
    return [
        {
            "step": every * (i + 1),
            "epoch": i,
            "seconds": pace * every * (i + 1),
            "mazes": mazes,
            "reached": r,
            "optimal": o,
        }
        for i, (o, r) in enumerate(zip(optimal, reached, strict=True))
    ]


def run(*rows, **changes):
    return make_results(list(rows), **changes)


class TestRecord:
    def test_round_trip_and_files_from_before_it(self, tmp_path):
        results = run(make_row("poh", validation=points([0.5, 0.995])), make_row("baseline"))
        path = results.save(tmp_path / "r.json")
        assert Results.load(path) == results
        older = json.loads(path.read_text())
        for row in older["rows"]:
            del row["validation"]
        path.write_text(json.dumps(older))
        assert [row.validation for row in Results.load(path).rows] == [[], []]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda p: p[1].pop("mazes"),
                r"validation\[1\] must have the fields step, epoch.*not step, epoch, seconds",
            ),
            (lambda p: p.append(3), r"validation\[2\] must have the fields .*, not int"),
            (lambda p: p[0].update(reached="all"), r"validation\[0\] must be finite numbers"),
            (lambda p: p[0].update(seconds=float("inf")), r"validation\[0\] must be finite numbers"),
            (lambda p: p[0].update(optimal=0.7), r"validation\[0\] must have shares .* not 0.7 and 0.5 of 200"),
            (lambda p: p[0].update(reached=1.5), "not 0.5 and 1.5 of 200"),
            (lambda p: p[0].update(exact=0.6), "0 <= exact <= optimal .*not 0.6 and 0.5 and 0.5 of 200"),
            (lambda p: p[0].update(optimal=-0.5), "not -0.5 and 0.5 of 200"),
            (lambda p: p[0].update(mazes=0), "of 1 maze or more"),
            (lambda p: p.reverse(), "validation goes back, from step 20 at 40.0 s to step 10 at 20.0 s"),
            (lambda p: p[1].update(seconds=1.0), "goes back, from step 10 at 20.0 s to step 20 at 1.0 s"),
        ],
    )
    def test_what_contradicts_is_named(self, change, message):
        row = make_row("poh", seed=4, validation=points([0.5, 0.9]))
        run(row).validate()
        change(row.validation)
        with pytest.raises(ValueError, match=rf"row 'poh' \(trained, seed 4\).*{message}"):
            run(row).validate()


@pytest.mark.parametrize(
    ("optimal", "step"),
    [
        ([1.0], 10),
        ([0.5], None),
        ([0.5, 1.0, 0.999, 1.0], 20),
        ([1.0, 0.998, 1.0], 30),
        ([1.0, 1.0, 0.99], None),
        ([], None),
    ],
)
def test_solved_from_is_the_first_point_after_which_no_other_fails(optimal, step):
    found = solved_from(points(optimal, mazes=1000))
    assert (found and found["step"]) == step


class TestCurves:
    def test_nothing_to_draw(self):
        assert accuracy_curves(run(make_row(), make_row("poh", seed=1))) is None
        assert accuracy_table(run(make_row())) is None

    def test_one_seed_has_wilsons_band(self, tmp_path):
        row = make_row("poh", validation=points([0.4, 0.8, 0.9], reached=[0.5, 0.8, 1.0]))
        figure = accuracy_curves(run(row, make_row("baseline")))
        for axis, shares in zip(figure.axes, ([0.5, 0.8, 1.0], [0.4, 0.8, 0.9]), strict=True):
            (line,) = axis.lines
            assert line.get_xdata().tolist() == [20, 40, 60] and axis.get_xlabel() == "seconds of training"
            assert line.get_ydata() == pytest.approx([100 * s for s in shares])
            (band,) = axis.collections
            corners = {(x, round(y, 6)) for x, y in band.get_paths()[0].vertices}
            for x, s in zip((20, 40, 60), shares, strict=True):
                k = round(200 * s)
                low, high = estimate({0: [True] * k + [False] * (200 - k)}).wilson
                assert {(x, round(low, 6)), (x, round(high, 6))} <= corners and low < 100 * s
        assert "200 validation mazes (band" in figure.get_suptitle()
        assert [text.get_text() for text in figure.legends[0].texts] == ["PoH"]
        assert save_png(figure, tmp_path / "a.png").stat().st_size > 10_000

    def test_seeds_are_thin_and_their_mean_is_thick(self):
        rows = [
            make_row("poh", seed=0, validation=points([0.2, 0.6, 1.0])),
            make_row("poh", seed=1, validation=points([0.4, 0.8, 0.8], pace=4.0)),
            make_row("baseline", seed=0, validation=points([0.1])),
            make_row("poh/without warm-up", seed=0, validation=points([0.3])),
        ]
        figure = accuracy_curves(run(*rows))
        baseline, *seeds, mean = figure.axes[1].lines
        assert [line.get_ydata() for line in seeds] == [pytest.approx([20, 60, 100]), pytest.approx([40, 80, 80])]
        assert np.allclose(mean.get_xdata(), [30, 60, 90]) and np.allclose(mean.get_ydata(), [30, 70, 90])
        assert mean.get_linewidth() > 2 * seeds[0].get_linewidth()
        assert baseline.get_ydata() == pytest.approx([10])
        assert len(figure.axes[1].collections) == 1  # the single seed's band alone
        assert "thin: 2 seeds" in figure.get_suptitle()
        assert [text.get_text() for text in figure.legends[0].texts] == ["baseline", "PoH"]

    def test_long_trainings_are_in_minutes_and_sizes_have_their_panels(self):
        rows = [
            make_row("poh", scale="tiny", validation=points([0.2], pace=60.0)),
            make_row("poh", scale="small", validation=points([0.02, 0.05], pace=60.0, mazes=400)),
        ]
        figure = accuracy_curves(run(*rows))
        assert [axis.get_title() for axis in figure.axes] == ["tiny", "tiny", "small", "small"]
        assert all(axis.get_xlabel() == "minutes of training" for axis in figure.axes)
        assert figure.axes[3].lines[0].get_xdata().tolist() == [10, 20]
        assert figure.axes[3].get_ylim()[1] < 11 < figure.axes[1].get_ylim()[1]  # each fits its own shares
        assert "200 to 400 validation mazes" in figure.get_suptitle()


class TestBlocks:
    def test_when_each_planner_solved_the_mazes(self):
        rows = [
            make_row("poh", seed=0, validation=points([0.2, 1.0, 1.0])),
            make_row("poh", seed=1, validation=points([1.0, 0.9, 0.995], pace=70.0)),
            make_row("baseline"),
        ]
        table = accuracy_table(run(*rows))
        assert table.title == "Accuracy over training time"
        low, high = estimate({0: [True] * 200}).wilson
        assert table.rows[0] == [
            "PoH",
            "0",
            "200",
            "20",
            "40.0",
            "100.0 (step 20)",
            f"100.0 [{low:.1f}-{high:.1f}]",
            "30",
            "60.0",
        ]
        assert table.rows[1][:6] == ["PoH", "1", "200", "-", "-", "100.0 (step 10)"] and table.rows[1][-1] == "2,100"
        assert len(table.rows) == 2 and "optimal >= 99.9 % from step" in table.header
        assert "Of 200 mazes, 99.9 % means all." in table.notes[0]
        table = accuracy_table(run(make_row("poh", validation=points([0.999], mazes=1000))))
        assert "means all" not in table.notes[0]

    def test_the_picture_stands_in_its_section_and_not_among_the_others(self, tmp_path):
        results = run(make_row("poh", validation=points([0.2, 1.0])), make_row("baseline"))
        text = write_report(results, tmp_path)[1].read_text()
        section, rest = text[text.index("## Accuracy over training time") :].split("## Pictures")
        assert "(accuracy_over_training.png)" in section and "| PoH | 0 | 200 | 20 |" in section
        assert "accuracy_over_training.png" not in rest.split("## Files")[0]
        page = (tmp_path / "index.html").read_text()
        assert page.count("<img") == text.count("![") and "Accuracy over training time" in page
