"""Routing: the record in results.json, the heat maps, and the entropy curves."""

import json
import math

import numpy as np
import pytest
import torch

from poh_ext._figures import save_png
from poh_ext.models import PoHPlanner
from poh_ext.report import entropy_curves
from poh_ext.report.head_weights import routing_heatmaps
from poh_ext.results import Results
from poh_ext.routing_records import routing_record
from poh_ext.tasks import sample_tasks
from poh_ext.training.evaluate import first_maze_routing
from tests.cases.reports import make_results, make_row, make_run, make_scaling


def record(**changes):
    weights = [[[0.25, 0.75], [0.5, 0.5]], [[1.0, 0.0], [0.5, 0.5]], [[0.4, 0.6], [0.9, 0.1]]]  # [R=3][depth=2][2]
    return {"model": "poh", "scale": "", "seed": 0, "weights": weights, "entropy": 0.5, **changes}


def with_curve(entropies, heads, **changes):
    curve = [{"step": i + 1, "loss": 1.0, "routing_entropy": e} for i, e in enumerate(entropies)]
    return make_results([make_row("poh", curve=curve, config={"n_heads": heads}, **changes)])


class TestRecord:
    @pytest.mark.parametrize("routing", ["pooled", "token"])
    def test_of_a_planner(self, routing):
        torch.manual_seed(0)
        model = PoHPlanner(4, d_model=8, n_heads=2, d_ff=8, depth=2, R=3, routing=routing).train()
        tasks = sample_tasks(2, 4, seed=1)
        found = routing_record("poh", 0, *first_maze_routing(model, tasks), scale="tiny")
        assert model.training
        model.eval()
        model(tasks[:1].mazes, tasks[:1].start, tasks[:1].goal)
        expected = model.routing_weights().flatten(2, -2).mean(2)
        assert expected.shape == (3, 2, 2)
        torch.testing.assert_close(torch.tensor(found["weights"]), expected)
        assert found["entropy"] == pytest.approx(model.routing_entropy().item())
        make_results(routing=[{**found, "scale": ""}]).validate()

    def test_other_shapes_are_refused(self):
        with pytest.raises(ValueError, match=r"weights must be .* got \[3, 2\]"):
            routing_record("poh", 0, torch.ones(3, 2), 0.0)

    def test_round_trip_and_files_from_before_it(self, tmp_path):
        results = make_results(routing=[record(), record(model="poh_shallow", entropy=None)])
        path = results.save(tmp_path / "r.json")
        assert Results.load(path) == results
        older = json.loads(path.read_text())
        del older["routing"]
        path.write_text(json.dumps(older))
        assert Results.load(path).routing == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": 5}, r"routing\[1\] is of seed 5, which has no test set"),
            ({"model": "poh"}, r"routing\[1\] repeats poh 0"),
            ({"extra": 1}, r"must have the fields model, scale, seed, weights, entropy, not .*extra"),
            ({"entropy": -0.1}, "has entropy -0.1, which must be 0 or more"),
            ({"weights": [[[0.5, 0.6]]]}, "sum to 1 over the heads"),
            ({"weights": [[[1.5, -0.5]]]}, "0 or more"),
            ({"weights": [[[0.5, 0.5]], [[1.0]]]}, "of one depth and number of heads"),
            ({"weights": []}, "of one depth and number of heads"),
            ({"weights": [[0.5, 0.5]]}, r"must be numbers \[R\]\[depth\]\[heads\]"),
            ({"weights": [[[None, 1.0]]]}, "must be numbers"),
            ({"weights": [[[math.nan, 1.0]]]}, "0 or more"),
        ],
    )
    def test_contradictions_are_named(self, change, message):
        with pytest.raises(ValueError, match=message):
            make_results(routing=[record(), record(**{"model": "mine", **change})]).validate()


class TestHeatmaps:
    def test_each_block_shows_its_weights_pass_by_head(self):
        figure = routing_heatmaps(make_results(routing=[record(), record(model="poh_shallow")]))
        images = [axis.images[0] for axis in figure.axes if axis.images]
        assert len(images) == 4
        np.testing.assert_allclose(images[0].get_array(), [[0.5, 1.5], [2.0, 0.0], [0.8, 1.2]])
        assert {image.get_clim() for image in images} == {(0.0, 2.0)}
        texts = [text.get_text() for text in figure.axes[1].texts]
        assert texts == ["50.0", "50.0", "50.0", "50.0", "90.0", "10.0"]
        assert figure.axes[0].get_title(loc="left").startswith("PoH, entropy 0.50 of 0.69 nats")
        assert figure.axes[2].get_title(loc="left").startswith("shallow PoH")

    def test_many_blocks_and_heads_and_one_peaked_weight(self, tmp_path):
        weights = np.full((4, 6, 16), 0.1 / 15)
        weights[..., 3] = 0.9
        few = record(model="poh_shallow", weights=[[[1.0]]])
        figure = routing_heatmaps(make_results(routing=[record(weights=weights.tolist()), few]))
        assert sum(bool(axis.images) for axis in figure.axes) == 7
        assert figure.axes[0].images[0].get_clim() == (0.0, 4.0) and not figure.axes[0].texts
        save_png(figure, tmp_path / "routing.png")

    def test_only_the_first_seed(self):
        results = make_run(seeds=(3, 4), routing=[record(seed=3), record(seed=4)])
        assert sum(bool(axis.images) for axis in routing_heatmaps(results).axes) == 2

    def test_nothing_routed(self):
        assert routing_heatmaps(make_run()) is None


class TestEntropyCurves:
    def test_entropy_and_its_distance_from_the_uniform_line(self):
        entropy, distance = entropy_curves({"": with_curve([1.38, 1.0, 0.5], 4)}).axes
        curve, uniform = entropy.lines
        np.testing.assert_allclose(curve.get_ydata(), [1.38, 1.0, 0.5])
        assert set(uniform.get_ydata()) == {math.log(4)} and "ln 4 = 1.39" in entropy.texts[0].get_text()
        np.testing.assert_allclose(distance.lines[0].get_ydata(), [math.log(4) - e for e in (1.38, 1.0, 0.5)])
        assert distance.get_yscale() == "log" and "nats" in entropy.get_ylabel()

    def test_runs_are_compared_by_name(self):
        runs = {"weight 0": with_curve([1.3, 1.2], 4), "weight $5e-2$": with_curve([1.38, 1.38], 4)}
        figure = entropy_curves(runs)
        assert len(figure.axes[0].lines) == 3
        assert [t.get_text() for t in figure.legends[0].get_texts()] == ["weight 0", r"weight \$5e-2\$"]
        figure = entropy_curves({"a": make_scaling(("tiny", "small"), n=10), "b": runs["weight 0"]})
        assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a: tiny PoH", "a: small PoH", "b"]

    @pytest.mark.parametrize(("entropies", "heads"), [([0.0], 1), ([0.0, 0.0], 1), ([1.3, None], None)])
    def test_without_a_choice_or_a_known_number_of_heads(self, tmp_path, entropies, heads):
        figure = entropy_curves({"": with_curve(entropies, heads)})
        save_png(figure, tmp_path / "entropy.png")
        assert len(figure.axes) == 1

    def test_rounding_above_uniform_is_a_gap(self, tmp_path):
        figure = entropy_curves({"": with_curve([math.log(4) + 1e-7, math.log(4)], 4)})
        assert np.isnan(figure.axes[1].lines[0].get_ydata()).all()
        save_png(figure, tmp_path / "entropy.png")

    def test_nothing_routed(self):
        assert entropy_curves({}) is None
        assert entropy_curves({"": make_results([make_row("baseline")])}) is None
