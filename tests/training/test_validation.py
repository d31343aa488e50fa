"""How planners are evaluated: the same way at the test and with --validate-every, which changes no training."""

import dataclasses
import functools
import importlib.util
import time

import pytest
import torch

from poh_ext.mazes import MazeBatch
from poh_ext.models.base import Planner
from poh_ext.results import Results
from poh_ext.tasks import sample_tasks_as_published
from poh_ext.training import benchmark, loop, trial
from poh_ext.training.config import ConfigError
from poh_ext.training.data import make_data
from poh_ext.training.evaluate import Validation, evaluate, evaluation_options, validations
from tests.cases.training import build_planner, tiny, tiny_solver

pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")
small = functools.partial(tiny_solver, epochs=5, dropout=0.2, ema=0.5, validate_every=2, validation=8)
plain = functools.partial(tiny, epochs=3, validation=8)


def train(config, name="poh", seed=3, validated=True):
    """(planner, training, random state at the end of the training) with --validate-every as `validated` says."""
    config = config if validated else dataclasses.replace(config, validate_every=0)
    config.check()
    model, data, states = build_planner(name, config, seed=seed), make_data(config, seed), []
    validation = Validation(config, data.validation, "float32") if validated else None

    class Last:
        def step(self, record):
            states.append(torch.get_rng_state())

        def validated(self, point):
            pass

        def epoch(self, *_):
            states.append(torch.get_rng_state())

    training = loop.train_planner(
        model, data.batches, config, seed=seed, label=name, validation=validation, watch=lambda step: [Last()]
    )
    return model, training, states


# -- the mazes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        plain(validate_every=1, maze_size=3, train=40, test=30, validation=25, min_path=0.3),
        plain(validate_every=1, maze_size=3, train="online", test=30, validation=25, min_path=0.3, batch_size=50),
        plain(validate_every=1, protocol="as-published", maze_size=4, train=20, min_path=0.4),
    ],
    ids=["fixed", "online", "as-published"],
)
def test_validation_mazes_are_neither_test_nor_training_mazes(config):
    data = make_data(config, 3)
    if config.protocol == "default":
        assert len(data.validation) == config.validation
        assert int(data.validation.length.min()) >= config.min_path_cells
    assert 0 < len(data.validation) <= config.validation
    if config.protocol == "as-published":  # its tasks are on open grids, all alike
        apart = [
            sample_tasks_as_published(3 * n, 4, config.min_path_cells, seed).keys()
            for n, seed in ((config.train, 3), (config.test, 10_003), (config.validation, 20_003))
        ]
        kept = ~torch.isin(apart[2], torch.cat([apart[0][: config.train], apart[1][: config.test]]))
        assert len(data.validation) == int(kept[: config.validation].sum())
        return
    assert not torch.isin(data.validation.keys(), data.test.keys()).any()
    rejected = 0
    for batch, _, left_out in data.batches.run(0, 20):
        assert not torch.isin(batch.keys(), data.validation.keys()).any()
        rejected += left_out
    without = make_data(dataclasses.replace(config, validate_every=0), 3)
    assert without.validation is None
    assert torch.equal(without.test.keys(), data.test.keys())
    if config.train == "online":
        assert rejected > sum(left_out for *_, left_out in without.batches.run(0, 20)) > 0
    else:
        assert torch.equal(without.train.keys(), data.train.keys())
        assert torch.equal(without.train.start, data.train.start)


def test_validation_mazes_come_from_a_seed_of_their_own():
    config = plain(validate_every=1, validation=6)
    data, test = make_data(config, 3), make_data(config, 3 + 10_000).test
    assert torch.equal(data.validation.keys(), test.keys())  # seed + 20000
    with pytest.raises(ConfigError, match="--validation 8 with --maze-size 2"):  # all four are test mazes
        make_data(plain(validate_every=1, train="online", maze_size=2, test=200, min_path=0.5), 3)


# -- that it changes nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, name",
    [
        (small(), "poh"),
        (small(tolerance=1e-2, deep_supervision=2), "looped_baseline"),
        (small(ema=0.0), "poh_token"),
        (plain(validate_every=1), "baseline"),
        (plain(validate_every=3, maze_enc=True), "poh"),
        (plain(validate_every=1, protocol="as-published", train=30), "poh"),
    ],
    ids=["ema", "looped", "last weights", "baseline", "published", "as-published"],
)
def test_the_trained_weights_are_those_of_a_run_without_it(config, name):
    (model, training, states), (other, without, others) = train(config, name), train(config, name, validated=False)
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    assert training.curve == without.curve and training.steps == without.steps and not without.validation
    assert len(states) == len(others) and all(map(torch.equal, states, others))
    every, n = config.validate_every, training.steps // config.epochs
    after = [e + 1 for e in range(config.epochs) if (e + 1) % every == 0 or e + 1 == config.epochs]
    assert [point["step"] for point in training.validation] == [n * e for e in after]
    assert [point["epoch"] + 1 for point in training.validation] == after and len(after) == validations(config)
    assert validations(dataclasses.replace(config, validate_every=0)) == 0


def test_the_last_point_is_the_evaluation_of_the_planner_that_is_kept():
    for config in (small(tolerance=0.05, test_R=9), small(ema=0.0), plain(validate_every=2, decode="recondition")):
        for seed in (3, 4):
            model, training, _ = train(config, seed=seed)
            tasks = make_data(config, seed).validation
            outcome = evaluate(model, tasks, decode=config.decode_used, **evaluation_options(model, config, "float32"))
            exact = {} if outcome.exact is None else {"exact": outcome.exact.double().mean().item()}
            assert (config.decode_used == "table") == bool(exact)
            assert training.validation[-1] == {
                "step": training.steps,
                "epoch": config.epochs - 1,
                "seconds": training.validation[-1]["seconds"],
                "mazes": 8,
                "reached": outcome.reached.double().mean().item(),
                "optimal": outcome.optimal.double().mean().item(),
                **exact,
            }
            assert model.training  # as it was given


def test_it_evaluates_as_the_test_does(monkeypatch):
    calls = []
    for module in ("evaluate", "trial"):
        monkeypatch.setattr(
            f"poh_ext.training.{module}.evaluate",
            lambda model, tasks, **how: (
                calls.append(
                    (
                        len(tasks),
                        model.training,
                        {name: how[name] for name in ("decode", "passes", "tolerance", "precision")},
                    )
                )
                or evaluate(model, tasks, **how)
            ),
        )
    config = small(rows=("poh",), tolerance=0.01, test_R=7, routing_intervention=False)
    seed, planned = 3, benchmark.planned_rows(config)[0]
    place = trial.Place(None, torch.device("cpu"), "bfloat16", {})
    data, how = make_data(config, seed), {"decode": "table", "passes": 7, "tolerance": 0.01, "precision": "float32"}
    Validation(config, data.validation, "bfloat16")(build_planner("poh", config, seed=seed))
    trial._evaluate(
        build_planner("poh", config, seed=seed), planned, seed, data, place, lambda: None, "", loop.Training()
    )
    assert [(n, given) for n, _, given in calls] == [(8, how), (6, how)]


def test_the_average_is_what_is_validated(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "poh_ext.training.evaluate.evaluate",
        lambda model, *given, **how: (
            seen.append([p.clone() for p in model.parameters()]) or evaluate(model, *given, **how)
        ),
    )
    averaged, *_ = train(small(ema=0.9))
    assert all(map(torch.equal, averaged.parameters(), seen[-1]))
    last, *_ = train(small(ema=0.0))
    assert all(map(torch.equal, last.parameters(), seen[-1]))
    assert not all(map(torch.equal, averaged.parameters(), last.parameters()))


def test_the_time_of_validation_is_no_training_time(monkeypatch):
    """On a clock of its own: a second for each validation, and nothing else takes any."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    waited = evaluate

    def slow(*given, **how):
        now[0] += 1000.0
        return waited(*given, **how)

    monkeypatch.setattr("poh_ext.training.evaluate.evaluate", slow)
    config = small()
    model, data = build_planner("poh", config, seed=3), make_data(config, 3)

    class Clock:
        def step(self, record):
            now[0] += 1.0

        def validated(self, point):
            now[0] += 50.0

        def epoch(self, *_):
            now[0] += 70.0

    training = loop.train_planner(
        model,
        data.batches,
        config,
        seed=3,
        label="",
        watch=lambda step: [Clock()],
        validation=Validation(config, data.validation, "float32"),
    )
    assert training.seconds == 10.0 and [point["seconds"] for point in training.validation] == [4.0, 8.0, 10.0]
    assert time.perf_counter is loop.time.perf_counter and now[0] == 100 + 10 + 3 * 1050 + 5 * 70


# -- a run ---------------------------------------------------------------------------------------------------------


def test_a_run_reports_its_points(tmp_path, capsys):
    config = small(output=tmp_path, rows=("random", "untrained_poh", "poh"), seeds=2, tolerance=1e-3)
    assert benchmark.run_benchmark(config) == 0
    out = capsys.readouterr().out
    assert "; validation of 8 mazes every 2 epochs, and at the end" in out
    results = Results.load(tmp_path / "results.json")
    for row in results.rows:
        steps = [point["step"] for point in row.validation]
        assert steps == ([4, 8, 10] if row.trained else [])
        assert all(0 < point["seconds"] <= row.train_seconds for point in row.validation)
        if row.trained:
            assert "were test or validation mazes" in row.note
    text = (tmp_path / "report.md").read_text()
    section = text[text.index("## Accuracy over training time") :]
    assert "](accuracy_over_training.png)" in section and (tmp_path / "accuracy_over_training.png").is_file()
    assert section.count("| 42 | 8 |") == section.count("| 43 | 8 |") == 1
    assert text.count("accuracy_over_training.png") == 3  # shown once, and among the files
    without = dataclasses.replace(config, output=tmp_path / "without", validate_every=0, rows=("poh",), seeds=1)
    assert benchmark.run_benchmark(without) == 0
    assert "Accuracy over training time" not in (tmp_path / "without" / "report.md").read_text()
    assert not (tmp_path / "without" / "accuracy_over_training.png").exists()
    (other,) = Results.load(tmp_path / "without" / "results.json").rows
    (row,) = [row for row in results.rows if row.trained and row.seed == 42]
    for name in ("reached", "optimal", "curve", "paths"):
        assert getattr(row, name) == getattr(other, name)


# -- passes, precision and --tolerance -----------------------------------------------------------------------------


def test_many_passes_run_in_float32_and_a_planner_of_one_pass_keeps_it():
    for changes, precision in (({}, "float32"), ({"valid_heads": 0}, "bfloat16")):
        config = tiny_solver(test_R=9, **changes)
        assert evaluation_options(build_planner("poh", config, seed=0), config, "bfloat16")["precision"] == precision
    assert evaluation_options(build_planner("poh", config, seed=0), config, "float32")["passes"] == 9
    assert evaluation_options(build_planner("baseline", config, seed=0), config, "float32")["passes"] is None


def test_the_tolerance_reaches_the_policy_of_planners_that_loop():
    config = tiny_solver(tolerance=0.5, test_R=12)
    for name, expected in (("poh", 0.5), ("looped_baseline", 0.5), ("baseline", 0.0)):
        model, tasks = build_planner(name, config, seed=1), make_data(config, 1).test
        how = evaluation_options(model, config, "float32")
        assert how["tolerance"] == expected
        given, tables, policy = [], [], model.policy
        model.policy = lambda *args, given=given, tables=tables, policy=policy, **chosen: (
            given.append(chosen) or tables.append(policy(*args, **chosen)) or tables[-1]
        )
        evaluate(model, tasks, **how)
        evaluate(model, tasks, **{**how, "tolerance": 0.0})
        passes = {"passes": 12} if expected else {}
        assert given == [passes | ({"tolerance": 0.5} if expected else {}), passes]
        assert torch.equal(*tables) == (not expected)


def test_the_tolerance_reaches_the_test_the_routing_study_and_tensorboards_pictures(monkeypatch, tmp_path):
    given, shown = [], importlib.util.find_spec("tensorboard") is not None
    hidden_passes = Planner.hidden_passes

    def noting(self, mazes, *args, tolerance=0.0, **how):
        if isinstance(mazes, MazeBatch):  # else its arithmetic is counted
            given.append((self.training, len(mazes), tolerance))
        return hidden_passes(self, mazes, *args, tolerance=tolerance, **how)

    monkeypatch.setattr(Planner, "hidden_passes", noting)
    config = tiny_solver(output=tmp_path, rows=("poh",), tolerance=0.02, tensorboard=shown)
    assert benchmark.run_benchmark(config) == 0
    tested = {n for training, n, tolerance in given if not training and tolerance == 0.02}
    # Test with its interventions, the first maze's routing; pictures.
    assert tested == {6, 1} | ({4} if shown else set())
    assert not any(tolerance for training, _, tolerance in given if training)
    assert all(tolerance == 0.02 for training, _, tolerance in given if not training)
    assert sum(n == 6 for training, n, _ in given if not training) == 1 + 3
