"""--tensorboard: what is written is what was trained, read back with TensorBoard's own reader."""

import functools
import json
import sys

import pytest
import torch

from poh_ext.results import Results
from poh_ext.training import benchmark, loop, trial
from poh_ext.training.config import ConfigError
from poh_ext.training.progress import Interrupted
from tests.cases.training import tiny

pytestmark = pytest.mark.usefixtures("one_thread", "blank_pictures")
short = functools.partial(tiny, epochs=3, rows=("poh",))


def read(folder):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def test_scalars_pictures_and_hyperparameters_are_those_of_the_run(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    config = short(output=tmp_path, tensorboard=True, route_ent_weight=0.01, validate_every=1, validation=5)

    def stop_after_three(*args, check, **kwargs):
        calls = iter(range(100))

        def stopping():
            if next(calls) == 3:
                raise Interrupted("SIGTERM")

        return loop.train_planner(*args, check=stopping, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(trial, "train_planner", stop_after_three)
        assert benchmark.run_benchmark(config) == 130
    assert benchmark.run_benchmark(config) == 0  # goes on in a second file of events
    events = read(tmp_path / "tensorboard" / "poh-seed42")
    log = [json.loads(line) for line in (tmp_path / "logs" / "poh-seed42.jsonl").read_text().splitlines()]
    points, log = [line for line in log if "validation" in line], [line for line in log if "loss" in line]
    for name in ("loss", "cross_entropy", "routing_entropy", "lr", "gradient_norm"):
        shown = [(event.step, event.value) for event in events.Scalars(f"training/{name}")]
        assert shown == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in log] and len(shown) == 6
    (row,) = Results.load(tmp_path / "results.json").rows
    assert [(p["step"], p["epoch"], p["seconds"], p["validation"]) for p in points] == [
        (p["step"], p["epoch"], p["seconds"], {name: p[name] for name in ("mazes", "reached", "optimal", "exact")})
        for p in row.validation
    ] and [p["step"] for p in points] == [2, 4, 6]
    for measure in ("reached", "optimal", "exact"):
        shown = [(event.step, event.value) for event in events.Scalars(f"validation/{measure} %")]
        assert shown == [(p["step"], pytest.approx(100 * p[measure], rel=1e-6)) for p in row.validation]
    seconds = [event.value for event in events.Scalars("validation/training seconds")]
    assert seconds == pytest.approx([p["seconds"] for p in row.validation], rel=1e-6)
    assert events.Scalars("test/reached %")[0].value == pytest.approx(100 * sum(row.reached) / 6)
    assert events.Scalars("test/exact %")[0].value == pytest.approx(100 * sum(row.exact) / 6)
    pictures = events.Images("rollouts on test mazes")
    assert [picture.step for picture in pictures] == [2, 4, 6]
    assert all(picture.encoded_image_string.startswith(b"\x89PNG") and picture.width > 200 for picture in pictures)
    kinds = events.summary_metadata
    assert "_hparams_/session_start_info" in kinds
    plugin = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    content = plugin.HParamsPluginData.FromString(kinds["_hparams_/session_start_info"].plugin_data.content)
    shown = content.session_start_info.hparams
    assert shown["lr"].number_value == config.lr and shown["d_model"].number_value == row.config["d_model"]


def test_watching_changes_nothing(tmp_path):
    pytest.importorskip("tensorboard")
    curves = []
    for watched in (False, True):
        config = short(output=tmp_path / str(watched), tensorboard=watched)
        assert benchmark.run_benchmark(config) == 0
        assert (config.output / "tensorboard").exists() == watched
        curves.append(Results.load(config.output / "results.json").rows[0].curve)
    assert curves[0] == curves[1]


def test_overwrite_removes_the_events_of_an_earlier_run(tmp_path):
    pytest.importorskip("tensorboard")
    assert benchmark.run_benchmark(short(output=tmp_path, tensorboard=True, epochs=1)) == 0
    assert benchmark.run_benchmark(short(output=tmp_path, overwrite=True, epochs=1)) == 0
    assert not (tmp_path / "tensorboard").exists()


def test_without_tensorboard_the_flag_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--tensorboard: tensorboard is not installed; pip install 'poh_ext\[tens"):
        benchmark.run_benchmark(short(output=tmp_path / "run", tensorboard=True))
    assert not (tmp_path / "run").exists()
    assert benchmark.run_benchmark(short(output=tmp_path / "run", epochs=1)) == 0  # not needed without the flag
    assert torch.is_grad_enabled()
