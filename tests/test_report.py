"""The data model of results.json and the written report."""

import json
import os

import numpy as np
import pytest
import torch
from report_cases import make_results, make_row

from poh_ext.report import Results, describe_environment


class TestResults:
    def test_round_trip(self, tmp_path):
        results = make_results([make_row(), make_row("random", False, 7)], warnings=["warm-up never ends"])
        path = results.save(tmp_path / "deep" / "results.json")
        assert Results.load(path) == results
        assert [p.name for p in path.parent.iterdir()] == ["results.json"]

    def test_odd_values_become_strict_json(self, tmp_path):
        row = make_row(curve=[{"step": 1, "loss": float("nan"), "lr": np.float32(0.5)}])
        config = {"out": tmp_path, "dtype": torch.bfloat16, "sizes": torch.tensor([1, 2])}
        path = make_results([row], config=config).save(tmp_path / "r.json")
        record = json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
        assert record["rows"][0]["curve"] == [{"step": 1, "loss": None, "lr": 0.5}]
        assert record["config"] == {"out": str(tmp_path), "dtype": "torch.bfloat16", "sizes": [1, 2]}

    @pytest.mark.parametrize("call", ["fsync", "replace"])
    def test_a_save_cut_short_leaves_the_old_file(self, tmp_path, monkeypatch, call):
        path = make_results(experiment="old").save(tmp_path / "r.json")

        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, call, stop)
        with pytest.raises(KeyboardInterrupt):
            make_results(experiment="new").save(path)
        monkeypatch.undo()
        assert Results.load(path).experiment == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["r.json"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"protocol": "mine"}, "protocol is 'mine'; accepted: default, as-published"),
            ({"status": "done"}, "status is 'done'; accepted: complete, interrupted"),
            (
                {"rows": [make_row(reached=(1, 1))]},
                r"row 'baseline' \(trained, seed 0\) has 2 reached and 2 optimal .* 4 mazes",
            ),
            ({"rows": [make_row(optimal=(1, 1, 0))]}, "4 reached and 3 optimal"),
            ({"rows": [make_row(optimal=(1, 1, 1, 1))]}, "optimal that it did not reach"),
            ({"rows": [make_row(moves_correct=401)]}, "moves_correct=401 of 400"),
            ({"rows": [make_row(), make_row()]}, "occurs twice"),
            ({"test_sets": {}}, "has no test set; test_sets has no seed"),
            ({"test_sets": {0: {"n": 4, "path_lengths": [50] * 4}}}, r"test_sets\[0\] lacks n_train"),
            ({"test_sets": {0: {"n": 4, "path_lengths": [50], "n_train": 9}}}, "1 path_lengths for n=4"),
        ],
    )
    def test_contradictions_are_named_and_nothing_is_written(self, tmp_path, change, message):
        with pytest.raises(ValueError, match=message):
            make_results(**change).save(tmp_path / "r.json")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda text: text[: len(text) // 2], "is damaged or not a results file"),
            (lambda text: "", "is damaged or not a results file"),
            (lambda text: "[]", "no schema_version"),
            (
                lambda text: text.replace('"schema_version": 1', '"schema_version": 99'),
                "schema_version 99; this poh_ext reads 1",
            ),
            (lambda text: text.replace('"params"', '"parms"'), "row has unknown fields parms"),
            (lambda text: text.replace('"status": "complete",', ""), "results lacks status"),
            (lambda text: text.replace('"protocol": "default"', '"protocol": 3'), "protocol is 3"),
            (lambda text: text.replace('"moves_total": 400', '"moves_total": "many"'), "is damaged"),
            (lambda text: json.dumps({**json.loads(text), "rows": [4]}), "row is a int, not an object"),
        ],
    )
    def test_a_damaged_file_is_named(self, tmp_path, damage, message):
        path = make_results().save(tmp_path / "r.json")
        path.write_text(damage(path.read_text()))
        with pytest.raises(ValueError, match=message) as caught:
            Results.load(path)
        assert str(path) in str(caught.value)

    def test_environment_is_plain_and_complete(self):
        environment = describe_environment(precision="bfloat16 autocast")
        assert json.loads(json.dumps(environment)) == environment
        assert torch.__version__.startswith(environment["versions"]["torch"])
        assert environment["precision"] == "bfloat16 autocast"
        assert environment["hardware"]["cpu_cores"] >= 1
        assert environment["backend_info"]["cpu"]
