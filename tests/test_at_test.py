"""--tolerance: how planners are evaluated reaches every evaluation of a run, and no training."""

import importlib.util

import pytest
import torch
from training_cases import build_planner

from poh_ext.mazes import MazeBatch
from poh_ext.models.base import Planner
from poh_ext.training import benchmark
from poh_ext.training.config import Benchmark12x12Config
from poh_ext.training.data import make_data
from poh_ext.training.evaluate import evaluate, evaluation_options

pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")
BASE = {"train": "online", "steps_per_epoch": 2, "epochs": 2, "test": 6, "maze_size": 5, "batch_size": 4, "R": 4,
        "d_model": 16, "n_heads": 4, "d_ff": 24, "depth": 1, "parity": "none", "warmup_steps": 1, "lr": 1e-2,
        "dropout": 0.0, "cell_features": 6, "valid_heads": "all", "norm": "post", "head": "moves", "positions": "none",
        "reinject": "on", "residual": "none", "route_scale": "heads", "supervision": "all", "train_R": (2, 5),
        "device": "cpu", "precision": "float32"}


def small(**changes):
    return Benchmark12x12Config(**{**BASE, **changes})


def test_many_passes_run_in_float32_and_a_planner_of_one_pass_keeps_it():
    for changes, precision in (({}, "float32"), ({"valid_heads": 0}, "bfloat16")):
        config = small(test_R=9, **changes)
        assert evaluation_options(build_planner("poh", config, seed=0), config, "bfloat16")["precision"] == precision
    assert evaluation_options(build_planner("poh", config, seed=0), config, "float32")["passes"] == 9
    assert evaluation_options(build_planner("baseline", config, seed=0), config, "float32")["passes"] is None


def test_the_tolerance_reaches_the_policy_of_planners_that_loop():
    config = small(tolerance=0.5, test_R=12)
    for name, expected in (("poh", 0.5), ("looped_baseline", 0.5), ("baseline", 0.0)):
        model, tasks = build_planner(name, config, seed=1), make_data(config, 1).test
        how = evaluation_options(model, config, "float32")
        assert how["tolerance"] == expected
        given, tables, policy = [], [], model.policy
        model.policy = lambda *args, given=given, tables=tables, policy=policy, **chosen: (
            given.append(chosen) or tables.append(policy(*args, **chosen)) or tables[-1])
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
    config = small(output=tmp_path, rows=("poh",), tolerance=0.02, tensorboard=shown)
    assert benchmark.run_benchmark(config) == 0
    tested = {n for training, n, tolerance in given if not training and tolerance == 0.02}
    # Test with its interventions, the first maze's routing; pictures.
    assert tested == {6, 1} | ({4} if shown else set())
    assert not any(tolerance for training, _, tolerance in given if training)
    assert all(tolerance == 0.02 for training, _, tolerance in given if not training)
    assert sum(n == 6 for training, n, _ in given if not training) == 1 + 3
