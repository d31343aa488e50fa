"""The data model of results.json and the written report."""

import importlib
import json
import os
import re

import numpy as np
import pytest
import torch

from poh_ext.environment import describe_environment
from poh_ext.maze_drawing import MazeSample
from poh_ext.report import FILES, results_table, verdicts, write_report
from poh_ext.results import Results
from tests.cases.reports import carve, make_results, make_row, make_run, make_scaling, markdown, pad, walk


class TestResults:
    def test_round_trip(self, tmp_path):
        results = make_results([make_row(), make_row("random", False, 7)], warnings=["warm-up never ends"])
        path = results.save(tmp_path / "deep" / "results.json")
        assert Results.load(path) == results
        assert [p.name for p in path.parent.iterdir()] == ["results.json"]

    def test_outcomes_stand_on_one_line_and_no_string_is_changed(self, tmp_path):
        odd = ["[ 1,  2 ]", "{\n  'a': [\n 3 ]}", "\\n  ]", 'quote " [\n  4\n  ]', "}  {"]
        results = make_results(config={"odd": odd, **{key: {"x": [[1], [], {}]} for key in odd}}, command=odd[3])
        path = results.save(tmp_path / "r.json")
        assert Results.load(path) == results
        assert '"reached": [ true, true, false, true ],' in path.read_text()

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
            ({"rows": [make_row(params=float("nan"))]}, "params is nan"),
            ({"rows": [make_row(params="many")]}, "params is 'many'"),
            ({"rows": [make_row(steps=1.5)]}, "steps is 1.5"),
            ({"rows": [make_row(scale=None)]}, "scale is None"),
            ({"rows": [make_row(train_seconds=-5)]}, "train_seconds is -5"),
            ({"rows": [make_row(trained="false")]}, "trained is 'false'"),
            ({"rows": [make_row(optimal=(1, 1, 1, 1))]}, "optimal that it did not reach"),
            ({"rows": [make_row(exact=[True, False])]}, "2 exact outcomes for 4 test mazes"),
            ({"rows": [make_row(exact=[False, False, True, False])]}, "exact that is not optimal"),
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
            (lambda text: text.replace('"moves_total": 400', '"moves_total": "many"'), "moves_total is 'many'"),
            (lambda text: json.dumps({**json.loads(text), "rows": [4]}), "row is a int, not an object"),
            (lambda text: json.dumps({**json.loads(text), "config": None}), "config is None, not a dict"),
            (lambda text: json.dumps({**json.loads(text), "environment": []}), r"environment is \[\], not a dict"),
            (lambda text: json.dumps({**json.loads(text), "command": 7}), "command is 7, not a str"),
            (lambda text: json.dumps({**json.loads(text), "warnings": [7]}), "warnings must be sentences"),
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


class TestWriteReport:
    def sample(self):
        passages = carve(2, 5, 6, seed=1)
        truth = [walk(p, 0, 29) for p in passages]
        lost = [walk(p, 0, 29, np.random.default_rng(4)) for p in passages]
        return MazeSample(passages, [0, 0], np.full(2, 29), pad(truth), {"PoH": pad(lost)})

    def test_a_whole_run(self, tmp_path):
        results = make_run(seeds=(0, 1), looped=True, warnings=["warm-up never\nends"])
        for row in results.rows:
            row.gflop_per_maze = {"poh": 2.6, "random": None}.get(row.model, 1.0)
        results.save(tmp_path / "results.json")
        written = write_report(results, tmp_path, mazes=self.sample())
        files = set(FILES) - {
            "scaling.png",
            "routing_weights.png",
            "routing_heads.png",  # one size, no routing
            "accuracy_over_training.png",
        }  # nor validation
        assert {p.name for p in tmp_path.iterdir()} == files
        assert written[0] == tmp_path / "index.html" and len(written) == len(files) - 1
        text = written[1].read_text()
        for part in (
            results.command,
            markdown(results_table(results)),
            "- warm-up never ends\n",
            "`epochs`: 30",
            "`versions.torch`",
            "`precision`: float32",
            "seed 1: 306 training mazes, 57 test mazes",
            "**Compute is unequal:** PoH takes 2.6 times",
            "the looped baseline is the control",
        ):
            assert part in text, part
        assert all(line in text.replace("**", "") for line in verdicts(results))
        assert "**Not resolved:**" in text
        assert text.count("| reached: PoH - baseline |") == 3  # two seeds and the pooled row
        for target in re.findall(r"\]\(([^)]+)\)", text):
            assert (tmp_path / target).is_file(), target
        assert "as-published protocol with care" not in text and "Interrupted" not in text

    @pytest.mark.usefixtures("blank_pictures")
    def test_every_comparison_of_every_size_is_in_the_verdict(self, tmp_path):
        results = make_scaling(("tiny", "small"), n=40, ablation=True)
        text = write_report(results, tmp_path)[1].read_text()
        summary = text[text.index("## Verdict") :].split("\n\n")[1].splitlines()
        assert len(summary) == 2 + 2 * 4
        assert summary[2].startswith("| tiny PoH - tiny baseline | +20.0 [") and summary[2].endswith("| yes |")
        assert summary[-1].startswith("| small PoH - small PoH per token | +12.5 [")
        lines = verdicts(results)
        assert sum(line.startswith("depth > width? ") for line in lines) == 4
        assert any(re.match("equal passes: reached: tiny PoH - tiny looped baseline = [+]0.0", line) for line in lines)

    @pytest.mark.usefixtures("blank_pictures")
    def test_as_published_stands_beside_its_caveat(self, tmp_path):
        text = write_report(make_run(protocol="as-published"), tmp_path)[1].read_text()
        for number in ("1.75", "70.9 +/- 6.1", "38.1 +/- 6.6", "46.4 +/- 12.2", "34.2 +/- 7.7", "5.27"):
            assert number in text[text.index("## Results") : text.index("## Verdict")]
        assert "| baseline | 57.89 [45.0-69.8] | 52.63 [" in text and "| PoH, depth 4 | 63.16 [" in text
        assert "one maze is 1.75 points" in text
        assert "reached on a grid without walls, by a path of at most 1.05 times the cells of the shortest one" in text
        assert "longer than the shortest" not in text and "1.05 times the shortest in the maze with its walls" in text

    @pytest.mark.parametrize("keep", [0, 1, 2])
    def test_an_interrupted_run(self, tmp_path, keep):
        rows = [make_row("random", False, reached=(0, 0, 0, 0)), make_row("baseline", reached=(1, 1, 1, 1))][:keep]
        results = make_results(rows, status="interrupted")
        text = write_report(results, tmp_path)[1].read_text()
        assert "**Interrupted:**" in text and "there is nothing to compare" in text
        pictures = {p.name for p in tmp_path.iterdir()} - {"report.md", "index.html"}
        shares = {"outcomes.png", "accuracy_by_path_length.png"}
        assert pictures == [set(), shares, shares | {"learning_curves.png"}][keep]

    @pytest.mark.usefixtures("blank_pictures")
    def test_a_path_that_is_no_utf_8_is_shown_with_its_bytes(self, tmp_path):
        for path in write_report(make_results(command="python run.py --output caf\udce9"), tmp_path)[:2]:
            assert r"python run.py --output caf\udce9" in path.read_text(encoding="utf-8")

    @pytest.mark.usefixtures("blank_pictures")
    def test_written_again_it_shows_only_its_own_pictures(self, tmp_path):
        write_report(make_run(), tmp_path)
        text = write_report(make_results([], status="interrupted"), tmp_path)[1].read_text()
        assert ".png" not in text

    def test_a_model_no_better_than_chance_is_said_so(self):
        rows = [make_row("baseline", reached=(1, 0, 0, 0)), make_row("random", False, reached=(1, 1, 0, 0))]
        assert any(
            "baseline, trained, is not shown to be better than the random" in v for v in verdicts(make_results(rows))
        )
        rows = [make_row("baseline", reached=[0] * 60), make_row("random", False, reached=[1] * 60)]
        worse = verdicts(make_results(rows, lengths=[50] * 60))
        assert any("baseline, trained, is worse than the random policy" in v for v in worse)
        n = 60
        rows = [make_row("baseline", reached=[1] * n), make_row("random", False, reached=[0] * n)]
        assert not any("not shown to be" in v for v in verdicts(make_results(rows, lengths=[50] * n)))

    def test_contradictions_and_missing_packages_write_nothing(self, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match="occurs twice"):
            write_report(make_results([make_row(), make_row()]), tmp_path / "a")
        real = importlib.import_module

        def without_matplotlib(name, *args):
            if name.startswith("matplotlib"):
                raise ImportError("No module named 'matplotlib'")
            return real(name, *args)

        monkeypatch.setattr(importlib, "import_module", without_matplotlib)
        with pytest.raises(ImportError, match=r"needs matplotlib.*poh_ext\[experiments\]"):
            write_report(make_run(), tmp_path / "a")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, command",
    [
        (["/usr/bin/poh-ext", "benchmark", "--quick"], "poh-ext benchmark --quick"),
        (["/lib/poh_ext/__main__.py", "benchmark"], "python -m poh_ext benchmark"),
        (["/lib/ipykernel_launcher.py", "-f", "kernel.json"], "(in a notebook)"),
        (["experiments/run.py", "--output", "a b"], "python experiments/run.py --output 'a b'"),
    ],
)
def test_results_hold_the_command_as_it_was_typed(words, command, monkeypatch):
    monkeypatch.setattr("sys.argv", words)
    assert Results("12x12", "default").command == command


def test_results_hold_the_command_of_torchrun(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["experiments/run.py", "--quick"])
    assert Results("12x12", "default").command == "torchrun --nproc-per-node 4 experiments/run.py --quick"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("sys.argv", ["/lib/poh_ext/__main__.py", "benchmark"])
    command = "torchrun --nnodes 2 --nproc-per-node 2 -m poh_ext benchmark"
    assert Results("12x12", "default").command == command
