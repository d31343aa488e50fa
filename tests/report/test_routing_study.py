"""Does the routing matter, and what do the routers attend to: the evaluations, their records, the report's sections."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import poh_ext
from poh_ext.models import PoHPlanner
from poh_ext.report import verdicts, write_report
from poh_ext.report.effects import interventions_table, routing_effects, routing_verdicts
from poh_ext.report.head_weights import head_curves, head_weights_table
from poh_ext.results import Results
from poh_ext.routing_records import head_groups, kept_passes, over_mazes, routing_record
from poh_ext.training.config import Benchmark12x12Config
from poh_ext.training.evaluate import evaluate
from poh_ext.training.plan import planned_rows
from poh_ext.training.routing_study import RoutingStudy, interventions
from tests.cases.reports import STUDIED, make_results, make_row, make_study, study_record

pytestmark = pytest.mark.usefixtures("one_thread")


def planner(routing="pooled", R=3, **options):
    torch.manual_seed(1)
    shape = {"d_model": 16, "n_heads": 4, "d_ff": 24, "depth": 2, "residual": "none", "norm": "post", "log_t": -1.0}
    model = PoHPlanner(4, R=R, routing=routing, **{**shape, **options}).eval()
    for router in model.routers:
        torch.nn.init.normal_(router.logits.weight, std=2.0)
    return model


def planned(**changes):
    config = Benchmark12x12Config(**{"maze_size": 4, "rows": ("poh", "baseline", "untrained_poh"), "d_model": 8,
                                     "n_heads": 2, "d_ff": 8, "depth": 1, "parity": "none", **changes})  # fmt: skip
    return {row.model + ("" if row.trained else "-untrained"): row for row in planned_rows(config)}


def studied(model, tasks, row, **how):
    how = {"precision": "float32", "check": lambda: None, "label": "test", **how}
    study = RoutingStudy(model, tasks, how)
    outcome = evaluate(model, tasks, decode=row.config.decode_used, observe=study, **how)
    return study, study.record(row, 0, outcome), outcome


@pytest.mark.parametrize("routing", ["pooled", "token"])
@pytest.mark.parametrize("n", [65, 70])  # 65: the last batch of 64 would hold one maze alone
def test_the_study_evaluates_what_the_planner_does_with_other_weights(routing, n):
    model, tasks = planner(routing, valid_heads=1), poh_ext.sample_tasks(n, 4, seed=5)
    study, record, outcome = studied(model, tasks, planned()["poh"])
    assert list(record["interventions"]) == ["unchanged", "uniform", "shuffled", "frozen"]
    assert record["interventions"]["unchanged"]["reached"] == outcome.reached.tolist()
    args = tasks.mazes, tasks.start, tasks.goal
    with torch.no_grad():
        model(*args)
        weights = model.routing_weights()
        each = weights if routing == "pooled" else weights.mean(3)
        torch.testing.assert_close(study.mean().float(), each.mean((0, 2)))
        for how in ("uniform", "frozen"):
            with model.override_routing(study.mean() if how == "frozen" else how):
                rollout = poh_ext.greedy_rollout(model.policy(*args), tasks)
            assert record["interventions"][how] == {"reached": rollout.reached.tolist(),
                                                    "optimal": rollout.optimal.tolist()}  # fmt: skip
    seen = record["over_mazes"]
    near = np.array(seen["mean"])[..., 0]
    np.testing.assert_allclose(near, each[..., 0].mean(2), atol=1e-5)
    np.testing.assert_allclose(np.array(seen["mean"])[..., 1], each[..., 1:].mean((2, 3)), atol=1e-5)
    np.testing.assert_allclose(np.array(seen["low"])[..., 0], np.quantile(each[..., 0], 0.1, axis=2), atol=1e-5)
    assert seen["passes"] == [1, 2, 3] and (seen["near_heads"], seen["heads"]) == (1, 4)
    changed = [record["interventions"][how] != record["interventions"]["unchanged"] for how in ("uniform", "shuffled")]
    assert any(changed)  # of a planner whose routing is far from uniform
    row = make_row("poh", reached=outcome.reached, optimal=outcome.optimal)
    make_results([row], lengths=tasks.length.tolist(), routing=[json.loads(json.dumps(record))]).validate()


def test_which_rows_are_intervened_on_and_what_it_costs():
    rows = planned()
    counts = {name: interventions(row, 10) for name, row in rows.items()}
    assert counts == {"baseline": 0, "poh": 3, "poh-untrained": 0}
    assert interventions(rows["poh"], 1) == 2  # nobody to shuffle with
    assert interventions(planned(routing_intervention=False)["poh"], 10) == 0
    assert interventions(planned(decode="recondition")["poh"], 10) == 4
    variants = [row for row in planned_rows(Benchmark12x12Config(ablate=True)) if row.model.startswith("poh/")]
    assert variants and not any(interventions(row, 10) for row in variants)


def test_without_interventions_with_one_maze_and_with_reconditioning():
    model, tasks = planner(), poh_ext.sample_tasks(3, 4, seed=5)
    record = studied(model, tasks, planned(routing_intervention=False)["poh"])[1]
    assert "interventions" not in record and len(record["over_mazes"]["mean"]) == 3
    assert list(studied(model, tasks[:1], planned()["poh"])[1]["interventions"]) == ["unchanged", "uniform", "frozen"]
    study, record, _ = studied(model, tasks, planned(decode="recondition")["poh"])
    assert torch.cat(study.kept, 2).shape == (3, 2, 3, 4)  # of the tables alone
    by_table = evaluate(model, tasks)
    assert record["interventions"]["unchanged"]["optimal"] == by_table.optimal.tolist()


def test_a_stop_is_heeded_between_evaluations():
    class Stop(Exception):
        pass

    calls = []

    def check():
        calls.append(0)
        if len(calls) == 3:
            raise Stop

    model = planner()
    with pytest.raises(Stop):
        studied(model, poh_ext.sample_tasks(3, 4, seed=5), planned()["poh"], check=check)
    assert model._override is None


def test_many_passes_are_thinned_out():
    assert kept_passes(24) == list(range(1, 25))
    kept = kept_passes(220)
    assert kept[:4] == [1, 2, 3, 4] and kept[-1] == 220 and len(kept) <= 24 and sorted(set(kept)) == kept
    weights = torch.rand(220, 1, 2, 3).softmax(-1)
    record = routing_record("poh", 0, weights, 1.0)
    assert record["passes"] == kept and len(json.dumps(record)) < 5000
    assert record["weights"][-1] == weights[-1].double().mean(1).tolist()
    model, tasks = planner(R=40), poh_ext.sample_tasks(2, 4, seed=5)
    record = studied(model, tasks, planned()["poh"])[1]
    assert record["passes"] == record["over_mazes"]["passes"] == kept_passes(40)
    assert "passes" not in routing_record("poh", 0, weights[:24], 1.0)


def test_groups_of_heads():
    assert head_groups(4, 1) == [("neighbour heads", [0]), ("wide heads", [1, 2, 3])]
    assert [name for name, _ in head_groups(2, 2)] == [name for name, _ in head_groups(2, 0)] == ["head 1", "head 2"]


class TestVerdict:
    def test_what_matters_what_does_not_and_how_much(self):
        results = make_study([study_record(0), study_record(1, drop=66)])
        uniform, shuffled, frozen = routing_effects(results)
        c = uniform.comparisons["reached"]
        assert (c.n, c.only_first, c.only_second, c.difference) == (600, 0, 126, -21.0)
        assert uniform.verdict() == "reached falls, optimal falls"
        assert shuffled.verdict() == "not resolved" and shuffled.comparisons["reached"].only_first == 2
        assert frozen.verdict() == "no maze ends otherwise"
        (line,) = routing_verdicts(results)
        assert line.startswith('"routing matters", PoH, against uniform weights: holds (reached -21.0 points [')
        assert "another maze's weights: not resolved (reached +0.3 points [" in line
        assert "constant weights: not resolved, not one maze ends otherwise (reached +0.0" in line
        assert "seed" not in line and "random policy" not in line and line in verdicts(results)

    def test_an_intervention_that_helps_and_one_that_cuts_both_ways(self):
        record = study_record(drop=-60)
        outcome = record["interventions"]["frozen"]
        outcome["reached"], outcome["optimal"] = [i < 230 for i in range(STUDIED)], [i < 150 for i in range(STUDIED)]
        results = make_study([record])
        assert routing_effects(results)[0].verdict() == "reached rises, optimal rises"
        (line,) = routing_verdicts(results)
        assert "uniform weights: the opposite holds (reached +20.0 points" in line
        assert "constant weights: holds for one measure, the opposite for the other (reached +10.0" in line
        assert line.endswith("One training seed: others may differ.")

    def test_a_planner_no_better_than_chance_is_told(self):
        (line,) = routing_verdicts(make_study([study_record(drop=5)], reached=52))
        assert "is not shown to beat the random policy" in line
        assert "random policy" not in routing_verdicts(make_study([study_record()], random=False))[0]

    def test_p_values_are_corrected_for_all_interventions(self):
        record = study_record(drop=6)  # p of 6 against 0 is 0.03; of six comparisons 0.19
        alone, *_ = routing_effects(make_study([record]))
        assert alone.comparisons["reached"].resolved and not alone.resolved("reached")
        assert alone.verdict() == "not resolved"

    def test_the_section(self):
        table = interventions_table(make_study([study_record(0), study_record(1)]))
        assert table.title == "Does the routing matter?"
        kinds = ["its own", "uniform weights", "another maze's weights", "constant weights"]
        assert [row[:2] for row in table.rows] == [["PoH", kind] for kind in kinds]
        assert table.rows[0][2].startswith("66.7 [") and table.rows[1][2].startswith("46.7 [")
        assert table.rows[1][3].startswith("-20.0 [-") and table.rows[1][-1] == "reached falls, optimal falls"
        assert {len(row) for row in table.rows} == {len(table.header)} and len(table.terms) == 3
        assert "6 comparisons" in table.notes[0] and "one table" not in table.notes[0]
        (text,) = interventions_table(make_study([study_record()], reached=100)).notes  # rows decoded in another way
        assert "decoded from one table here, unlike the rows" in text

    def test_sizes_are_kept_apart(self):
        results = make_study([study_record(scale="tiny"), study_record(scale="small", drop=0)])
        tiny, small = routing_verdicts(results)
        assert tiny.startswith('"routing matters", tiny PoH, against uniform weights: holds')
        assert small.startswith('"routing matters", small PoH, against uniform weights: not resolved')

    def test_nothing_intervened_on(self):
        record = study_record()
        del record["interventions"]
        for results in (make_study([record]), make_study([]), make_results()):
            assert interventions_table(results) is None and routing_verdicts(results) == []


class TestHeads:
    def test_curves_of_two_kinds(self):
        figure = head_curves(make_study([study_record(0, depth=2), study_record(1)]))
        assert len(figure.axes) == 2  # the first seed's blocks
        near, wide, uniform = figure.axes[0].lines
        np.testing.assert_allclose(near.get_ydata(), [40, 25, 10], atol=0.01)
        np.testing.assert_allclose(wide.get_ydata(), [10, 25, 40], atol=0.01)
        assert set(uniform.get_ydata()) == {25} and len(figure.axes[0].collections) == 2
        band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
        assert band.max() == pytest.approx(40.8, abs=0.01) and band.min() == pytest.approx(9.2, abs=0.01)
        assert [t.get_text() for t in figure.legends[0].get_texts()] == ["wide heads", "neighbour heads", "uniform"]

    def test_curves_of_each_head_of_many_and_of_many_passes(self, tmp_path):
        weights = torch.rand(24, 1, 5, 16).softmax(-1)
        record = study_record(near=16, over_mazes=over_mazes(weights, kept_passes(220)[:24], 16))
        wide = over_mazes(weights[: len(kept_passes(220))], kept_passes(220), 16)
        figure = head_curves(make_study([{**record, "over_mazes": wide}]))
        (axis,) = figure.axes
        assert axis.get_xscale() == "log" and len(axis.lines) == 17
        looks = {(line.get_color(), str(line.get_linestyle())) for line in axis.lines}
        assert len(looks) == 17  # told apart without markers
        figure.savefig(tmp_path / "f.png")

    def test_table_of_two_kinds_and_whether_neighbours_come_first(self):
        table = head_weights_table(make_study([study_record(0), study_record(1)]))
        assert [row[1:5] for row in table.rows] == [
            [seed, "1", heads, "25.0"] for seed in "01" for heads in ("neighbour heads (2)", "wide heads (2)")
        ]
        assert table.rows[0][5:] == ["40.0 [39.2-40.8] in pass 1", "25.0 [24.2-25.8] in pass 2",
                                    "10.0 [9.2-10.8] in pass 3"]  # fmt: skip
        assert "falls, beyond both bands, in 2 of 2 blocks" in table.notes[0] and "rises so in 0" in table.notes[0]

    def test_table_of_one_kind_names_the_heaviest_head(self):
        table = head_weights_table(make_study([study_record(0, near=4), study_record(1, near=4)]))
        assert [row[1:4] for row in table.rows] == [["0", "1", "heaviest: head 3"]]
        assert table.rows[0][7].startswith("40.0 [") and "beyond both bands" not in table.notes[0]

    def test_files_from_before_it_and_changed_planners(self):
        record = study_record()
        del record["over_mazes"]
        for results in (make_study([record]), make_study([study_record(model="poh/without warm-up")]), make_study([])):
            assert head_curves(results) is None and head_weights_table(results) is None


def test_the_report_holds_both_sections_and_the_picture(tmp_path):
    results = make_study([study_record(0), study_record(1)])
    path = results.save(tmp_path / "results.json")
    assert Results.load(path).routing == results.routing
    write_report(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    sections = "Does the routing matter?", "What the routers attend to"
    for part in (*sections, "routing_heads.png", '"routing matters", PoH'):
        assert part in text and part.replace('"', "&quot;") in (tmp_path / "index.html").read_text()
    assert (tmp_path / "routing_heads.png").stat().st_size > 10_000


def damaged(path, value):
    record = json.loads(json.dumps(study_record()))
    *parents, last = path
    place = record
    for name in parents:
        place = place[name]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return record


@pytest.mark.parametrize(("path", "value", "message"), [
    (("passes",), [1], r"routing\[0\] names 1 passes for weights of 3"),
    (("over_mazes", "mean"), [[[0.5, 0.5]]], r"over_mazes: mean must be shares \[3\]\[depth\]\[2\], from 0 to 1"),
    (("over_mazes", "high"), [[[0.5]]] * 3, "over_mazes: high must be shares"),
    (("over_mazes", "low", 1, 0, 0), math.nan, "over_mazes: low must be shares"),
    (("over_mazes", "low", 1, 0, 0), 1.5, "over_mazes: low must be shares"),
    (("over_mazes", "low"), KeyError, r"over_mazes: KeyError\('low'\)"),
    (("over_mazes", "heads"), "four", "over_mazes: "),
    (("interventions", "hard"), {}, "has 'hard'; known: unchanged, uniform, shuffled, frozen"),
    (("interventions", "uniform", "optimal"), KeyError, "must have the fields reached, optimal, not reached"),
    (("interventions", "uniform", "reached"), [True], "has 1 reached and 300 optimal outcomes, .* has 300 mazes"),
    (("interventions", "uniform", "reached"), [False] * STUDIED,
     "uniform counts a maze as optimal that it did not reach"),
    (("mine",), 1, "must have the fields"),
])  # fmt: skip
def test_contradictions_are_named(path, value, message):
    results = make_study([study_record()])
    results.validate()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(results, routing=[damaged(path, value)]).validate()
