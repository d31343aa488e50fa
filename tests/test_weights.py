"""Files of planners: what is loaded is what was saved, and what is damaged or foreign is refused."""

import pytest
import torch

from poh_ext import sample_tasks
from poh_ext.models import BaselinePlanner, PoHPlanner
from poh_ext.models.weights import load, save

SHAPE = {"d_model": 16, "n_heads": 2, "d_ff": 24, "depth": 2}
OPTIONS = {
    "published": (BaselinePlanner, SHAPE),
    "token": (PoHPlanner, {**SHAPE, "R": 3, "routing": "token", "maze_enc": True}),
    "moves": (PoHPlanner, {**SHAPE, "R": 2, "valid_heads": 1, "head": "moves", "positions": "none", "norm": "post",
                           "reinject": True, "residual": "none", "route_scale": 2.0, "cell_features": 6}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_planner_survives_its_file(name, tmp_path):
    planner, options = OPTIONS[name]
    model = planner((4, 4), **options)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    notes = {"seed": 3, "config": {"lr": 1e-3, "sizes": [5, 12], "growth": None}}
    path = save(tmp_path / "deep" / "w.pt", model, size=(4, 4), options=options, notes=notes)
    again, found = load(path)
    assert type(again) is planner and not again.training and found == notes
    assert all(p.requires_grad and p.device.type == "cpu" for p in again.parameters())
    tasks = sample_tasks(3, 4, seed=1)
    given = tasks.mazes, tasks.start, tasks.goal
    assert torch.equal(again(*given), model.eval()(*given))
    assert torch.load(path, weights_only=True)["format"] == "poh_ext planner weights"


def test_what_is_no_planner_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model must be a BaselinePlanner or PoHPlanner, got Linear"):
        save(tmp_path / "w.pt", torch.nn.Linear(2, 2), size=4, options={}, notes={})
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file"):
        load(tmp_path / "none.pt")
    (tmp_path / "a.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.pt is damaged or no checkpoint"):
        load(tmp_path / "a.pt")


@pytest.mark.parametrize("change, words", [
    ({"planner": "Planner"}, "is of another planner: 'Planner'"),
    ({"options": {**SHAPE, "depth": 1}}, "is of another planner: Error"),
    ({"options": {**SHAPE, "wings": 1}}, "is of another planner: .*wings"),
    ({"options": {**SHAPE, "n_heads": 3}}, "d_model must be divisible by n_heads"),
    ({"version": 1}, "has version 1; this poh_ext reads 2"),
    ({"format": "another"}, "is not a poh_ext planner weights"),
])
def test_files_of_something_else_are_refused(change, words, tmp_path):
    path = save(tmp_path / "w.pt", BaselinePlanner(4, **SHAPE), size=4, options=SHAPE, notes={})
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    with pytest.raises(ValueError, match=words):
        load(path)
