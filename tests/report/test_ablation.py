"""--parity, --ablation and --ablate: what they train, and what the report says of it."""

import dataclasses
import functools

import pytest

from poh_ext.models import parameter_count
from poh_ext.models.planners import PLANNERS
from poh_ext.report import ablation_table, claims, write_report
from poh_ext.report.effects import ablation_effects, holm
from poh_ext.report.verdicts import verdicts
from poh_ext.results import Results
from poh_ext.training import benchmark, loop
from poh_ext.training.config import Benchmark12x12Config, ConfigError, ScalingBenchmarkConfig
from poh_ext.training.data import make_data
from poh_ext.training.plan import one_at_a_time, planned_rows, planner_config
from tests.cases.reports import make_results, make_row
from tests.cases.training import build_planner, planner_options, tiny

pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")
small = functools.partial(tiny, maze_size=4, depth=2)


def params(name, config, scale=""):
    return parameter_count(
        PLANNERS[planner_config(name, config, scale).kind], config.maze_size, **planner_options(name, config, scale)
    )


# -- parity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config, scale", [(Benchmark12x12Config(), ""), (ScalingBenchmarkConfig(), "small")])
def test_parity_decides_what_poh_gives_up(config, scale):
    shape = config.shapes[scale]
    modes = ("depth", "width", "none")
    found = {p: planner_options("poh", dataclasses.replace(config, parity=p), scale) for p in modes}
    assert found["depth"]["depth"] == shape.depth and found["depth"]["d_model"] < shape.d_model
    assert found["width"]["depth"] < shape.depth and found["width"]["d_model"] == shape.d_model
    assert found["none"]["depth"] == shape.depth and found["none"]["d_model"] == shape.d_model
    assert planner_options("poh_shallow", config, scale) == found["width"]
    baseline = params("baseline", config, scale)
    for name in ("poh", "poh_shallow"):
        assert params(name, config, scale) <= 1.1 * baseline
    assert params("poh", dataclasses.replace(config, parity="none"), scale) > 1.1 * baseline


def test_parity_other_than_depth_is_told():
    assert "--parity none" in small(parity="none").ineffective()[0]
    assert "fewer layers" in small(parity="width").ineffective()[0]
    assert small().ineffective() == []


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"ablation": True, "ablate": True}, "--ablate contradicts --ablation"),
        ({"ablation": True, "rows": ("poh",)}, "--rows contradicts --ablation"),
        ({"ablate": True, "rows": ("poh",)}, "--rows contradicts --ablate"),
        ({"ablation": True, "parity": "width"}, "--parity width contradicts --ablation"),
        ({"ablate": True, "looped_baseline": True}, "--looped-baseline contradicts --ablate"),
        ({"parity": "size"}, "--parity size: must be one of depth, width, none"),
    ],
)
def test_contradictions_are_named(changes, words):
    with pytest.raises(ConfigError) as error:
        small(**changes).check()
    assert words in str(error.value)


# -- ablation ----------------------------------------------------------------------------------------------------


def test_ablation_trains_the_four_planners_on_the_same_mazes_and_answers_the_claims(tmp_path, capsys):
    config = small(ablation=True, depth=3, output=tmp_path)
    assert benchmark.run_benchmark(config) == 0
    results = Results.load(tmp_path / "results.json")
    trained = {row.model: row for row in results.rows if row.trained}
    assert set(trained) == {"baseline", "looped_baseline", "poh", "poh_shallow"}
    assert {row.model for row in results.rows if not row.trained} == {"random", "baseline", "poh"}
    assert trained["poh"].config["depth"] == 3 and trained["poh"].config["d_model"] < 64
    assert trained["poh_shallow"].config["depth"] < 3 and trained["poh_shallow"].config["d_model"] == 64
    assert trained["looped_baseline"].config["loops"] == 2
    assert trained["looped_baseline"].gflop_per_maze > 1.8 * trained["baseline"].gflop_per_maze
    text, report = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    for claim in ('"PoH > baseline"', '"depth > width"', '"PoH > looped baseline"'):
        assert claim in text and claim in report
    for name in ("baseline", "looped baseline", "PoH", "shallow PoH"):
        assert f"| {name} | yes |" in report


def outcomes(solved, n=100):
    return [i < solved for i in range(n)]


def invented(**solved):
    rows = [make_row(name.replace("__", "/").replace("_x_", " "), True, 0, outcomes(k)) for name, k in solved.items()]
    return make_results(rows, lengths=[50] * 100)


def test_claims_say_holds_opposite_and_not_resolved():
    lines = claims(invented(baseline=40, looped_baseline=62, poh=60, poh_shallow=80))
    assert len(lines) == 3
    assert lines[0].startswith('"PoH > baseline": holds for reached (+20.0 points [')
    assert lines[1].startswith('"depth > width": the opposite holds for reached (-20.0 points [')
    assert lines[2].startswith('"PoH > looped baseline": not resolved for reached (-2.0 points [')
    assert claims(invented(baseline=40)) == []


def test_a_claim_is_not_sold_as_more_than_it_is():
    rows = [
        make_row(name, name != "random", seed, outcomes(k))
        for seed in (0, 1)
        for name, k in (("baseline", 40), ("poh", 60), ("random", 70))
    ]
    one = make_results([row for row in rows if row.seed == 0], lengths=[50] * 100)
    line = claims(one)[0]
    assert "holds for reached (+20.0" in line and "not shown to beat the random policy" in line
    assert line.endswith("One training seed: others may differ.")
    assert "One training seed" not in claims(make_results(rows, lengths=[50] * 100))[0]
    rows = [
        dataclasses.replace(row, reached=outcomes(10), optimal=outcomes(10)) if row.model == "random" else row
        for row in rows
    ]
    assert "random policy" not in claims(make_results(rows, lengths=[50] * 100))[0]


def test_depth_over_width_is_only_claimed_of_the_depth_first_poh():
    results = invented(poh=60, poh_shallow=60)
    assert len(claims(results)) == 1
    assert sum("depth > width? reached: PoH - shallow PoH" in line for line in verdicts(results)) == 1
    results.config["parity"] = "none"
    assert claims(results) == []
    assert not any("depth > width" in line for line in verdicts(results))
    assert sum(line.startswith("reached: PoH - shallow PoH") for line in verdicts(results)) == 1


# -- one feature at a time ---------------------------------------------------------------------------------------


def test_each_feature_is_switched_off_where_it_is_on_and_on_where_it_is_off():
    assert one_at_a_time(ScalingBenchmarkConfig()) == [
        ("without multi-horizon", {"multi_horizon": 1}, False),
        ("without label smoothing", {"label_smoothing": 0.0}, False),
        ("without warm-up", {"warmup_steps": 0}, False),
        ("without maze encoder", {"maze_enc": False}, False),
        ("with validity mask", {"validity_mask": True}, False),
        ("without routing entropy weight", {"route_ent_weight": 0.0}, True),
    ]
    bare = Benchmark12x12Config(label_smoothing=0.0, warmup_steps=0, validity_mask=True)
    assert [change for _, change, _ in one_at_a_time(bare)] == [
        {"multi_horizon": 3},
        {"label_smoothing": 0.1},
        {"warmup_steps": 500},
        {"maze_enc": True},
        {"validity_mask": False},
        {"route_ent_weight": 5e-4},
    ]


def test_only_the_feature_changes_not_the_shape():
    rows = planned_rows(ScalingBenchmarkConfig(ablate=True, models=("tiny",)))
    by_model = {row.model: row for row in rows if row.trained}
    assert len(by_model) == 2 + 2 * 5 + 1 and "baseline/without routing entropy weight" not in by_model
    for row in by_model.values():
        chosen = by_model[row.kind]
        mine, theirs = dataclasses.asdict(row.config), dataclasses.asdict(chosen.config)
        assert sum(mine[name] != theirs[name] for name in mine) == ("/" in row.model)
        assert {k: v for k, v in row.options.items() if k != "maze_enc"} == {
            k: v for k, v in chosen.options.items() if k != "maze_enc"
        }
        assert row.options["maze_enc"] == row.config.maze_enc


def test_ablate_trains_every_change_and_reports_paired_differences(tmp_path, capsys):
    config = small(ablate=True, depth=1, output=tmp_path, multi_horizon=2, route_ent_weight=0.5)
    assert benchmark.run_benchmark(config) == 0
    results = Results.load(tmp_path / "results.json")
    losses = {}
    for row in results.rows:
        if row.trained:
            losses.setdefault(row.model.split("/")[0], []).append(tuple(point["loss"] for point in row.curve))
    assert len(losses["baseline"]) == 6 and len(losses["poh"]) == 7
    for curves in losses.values():
        assert len(set(curves)) == len(curves)  # each change reached the training
    text, report = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    for change in (
        "without multi-horizon",
        "with maze encoder",
        "with validity mask",
        "without routing entropy weight",
    ):
        assert change in text and f"| PoH | {change} |" in report
    assert "PoH, without warm-up" in report


def test_the_table_counts_changed_minus_chosen():
    results = invented(baseline=60, poh=60, baseline__without_x_warmup=90, poh__with_x_mask=20)
    rows = {(row.model, row.change): row for row in ablation_effects(results)}
    up, down = rows["baseline", "without warmup"], rows["poh", "with mask"]
    assert up.comparisons["reached"].difference == pytest.approx(30) and up.shares["reached"].percent == 90
    assert down.comparisons["optimal"].difference == pytest.approx(-40)
    assert up.verdict() == "reached rises, optimal rises" and down.verdict() == "reached falls, optimal falls"
    table = str(ablation_table(results))
    assert "+30.0 [" in table and "-40.0 [" in table and "4 comparisons" in table
    assert ablation_table(invented(baseline=60, poh=60)) is None


def test_many_comparisons_are_corrected():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
    alone = invented(baseline=50, baseline__without_x_a=56)  # p = 0.03 of one comparison
    assert ablation_effects(alone)[0].comparisons["reached"].resolved
    assert ablation_effects(alone)[0].verdict() == "not resolved"  # it is one of two here


def test_a_report_of_changed_planners_is_written_with_every_row(tmp_path):
    results = invented(baseline=60, poh=60, baseline__without_x_a=61, poh__without_x_a=59)
    write_report(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    for name in ("baseline", "PoH", "baseline, without a", "PoH, without a"):
        assert f"| {name} | yes |" in text
    assert verdicts(results)[0].startswith('"PoH > baseline": not resolved')


# -- routing entropy ---------------------------------------------------------------------------------------------


def test_entropy_falls_as_its_weight_rises_and_annealing_gives_some_back():
    """30 steps from the same weights and batches."""
    config = small(epochs=30, lr=1e-2, depth=1, batch_size=8)
    data = make_data(config, 3).train

    def curve(weight, anneal=False):
        model = build_planner("poh", config, seed=3)
        options = dataclasses.replace(config, route_ent_weight=weight, ent_anneal=anneal)
        training = loop.train_planner(model, data, options, seed=3, label="poh")
        return [point["routing_entropy"] for point in training.curve]

    free, light, heavy, annealed = curve(0.0), curve(5e-2), curve(5.0), curve(5.0, anneal=True)
    assert free[0] == light[0] == heavy[0] == annealed[0]  # the same start
    assert light[-1] < free[-1] and heavy[-1] < light[-1]
    assert heavy[-1] < 0.98 * heavy[0]
    assert heavy[-1] < annealed[-1] < free[-1]
