"""Files of planners: what is loaded is what was saved, and what is damaged or foreign is refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from poh_ext import sample_tasks
from poh_ext.models import BaselinePlanner, PoHPlanner
from poh_ext.models.weights import load, save

SHAPE = {"d_model": 16, "n_heads": 2, "d_ff": 24, "depth": 2}
OPTIONS = {
    "published": (BaselinePlanner, SHAPE),
    "token": (PoHPlanner, {**SHAPE, "R": 3, "routing": "token", "maze_enc": True}),
    "moves": (
        PoHPlanner,
        {
            **SHAPE,
            "R": 2,
            "valid_heads": 1,
            "head": "moves",
            "positions": "none",
            "norm": "post",
            "reinject": True,
            "residual": "none",
            "route_scale": 2.0,
            "cell_features": 6,
        },
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_planner_survives_its_file(name, tmp_path):
    planner, options = OPTIONS[name]
    model = planner((4, 4), **options)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    notes = {"seed": 3, "config": {"lr": 1e-3, "sizes": [5, 12], "growth": None}}
    path = save(tmp_path / "deep" / "w.safetensors", model, notes=notes)
    again, found = load(path)
    assert type(again) is planner and not again.training and found == notes
    assert all(p.requires_grad and p.device.type == "cpu" for p in again.parameters())
    tasks = sample_tasks(3, 4, seed=1)
    given = tasks.mazes, tasks.start, tasks.goal
    assert torch.equal(again(*given), model.eval()(*given))
    stored = load_file(path)  # as any reader of safetensors sees it
    assert set(stored) == set(model.state_dict())
    assert all(torch.equal(stored[key], value) for key, value in model.state_dict().items())
    assert save(tmp_path / "again.safetensors", again, notes=notes).read_bytes() == path.read_bytes()


def test_a_planner_does_not_change_with_its_file(tmp_path):
    path = save(tmp_path / "w.safetensors", BaselinePlanner(4, **SHAPE), notes={})
    model, _ = load(path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with open(path, "r+b") as file:  # in place, as cp does
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_no_planner_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model must be a BaselinePlanner or PoHPlanner, got Linear"):
        save(tmp_path / "w.safetensors", torch.nn.Linear(2, 2), notes={})
    with pytest.raises(FileNotFoundError, match=r"it is a folder, not a file"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file"):
        load(tmp_path / "none.pt")
    (tmp_path / "a.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.pt is damaged or no safetensors file"):
        load(tmp_path / "a.pt")


def test_a_damaged_file_is_refused(tmp_path):
    path = save(tmp_path / "w.safetensors", BaselinePlanner(4, **SHAPE), notes={})
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        load(path)
    path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])  # a bit of the last weight
    with pytest.raises(ValueError, match="is damaged: the checksum of its weights is wrong"):
        load(path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"planner": "Planner"}, "is of another planner: 'Planner'"),
        ({"options": {**SHAPE, "depth": 1}}, "is of another planner: Error"),
        ({"options": {**SHAPE, "wings": 1}}, "is of another planner: .*wings"),
        ({"options": {**SHAPE, "n_heads": 3}}, "d_model must be divisible by n_heads"),
        ({"version": 1}, "has version 1; this poh_ext reads 3"),
        (None, "holds no planner: its metadata has no 'poh_ext'"),
    ],
)
def test_files_of_something_else_are_refused(change, words, tmp_path):
    path = save(tmp_path / "w.safetensors", BaselinePlanner(4, **SHAPE), notes={})
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["poh_ext"])
    save_file(load_file(path), path, None if change is None else {"poh_ext": json.dumps({**record, **change})})
    with pytest.raises(ValueError, match=words):
        load(path)
