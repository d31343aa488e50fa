"""The reference, docs/api/: every public name is on a page, and the examples of what is on the pages run."""

import doctest
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import poh_ext
from poh_ext import models
from poh_ext.models import BaselinePlanner, PoHPlanner

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "api").glob("*.md"))
DESCRIBED = re.findall(r"^::: (\S+)$", "\n".join(page.read_text(encoding="utf-8") for page in PAGES), re.M)
# Their examples read a file of the reader's, call maze-dataset, or depend on the CPU: they are compiled.
NOT_RUN = [
    "poh_ext._backend.backend_info",
    *(f"poh_ext.io.read{of}" for of in ("", "_hrm", "_map", "_scenarios", "_micromouse")),
    *("poh_ext.io.from_lattice", "poh_ext.io.to_lattice", "poh_ext.io.from_pixels", "poh_ext.models.weights.load"),
]


def resolved(path: str):
    """What a dotted name of the pages is, by imports: a module may hide a function of its name."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


class WhatIsShown(doctest.OutputChecker):
    """An example that shows no output may have any."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.fixture(scope="module")
def given():
    """The names that examples take for granted."""
    torch.manual_seed(0)
    tasks = poh_ext.sample_tasks(4, 12, algorithm="obstacles", density=0.2)  # which every format holds
    table = torch.randn(4, 144, 4)
    shape = {"d_model": 8, "n_heads": 2, "d_ff": 8, "depth": 1}
    return {name: getattr(poh_ext, name) for name in poh_ext.__all__} | {
        "poh_ext": poh_ext,
        "torch": torch,
        "BaselinePlanner": BaselinePlanner,
        "PoHPlanner": PoHPlanner,
        "tasks": tasks,
        "train": tasks,
        "test": poh_ext.sample_tasks(4, 12, exclude=tasks.keys()),
        "table": table,
        "logits": table,
        "model": PoHPlanner(12, R=2, T=2, head="moves", **shape).eval(),
        "criterion": torch.Tensor.sum,
    }


def test_every_public_name_is_on_a_page():
    assert len(DESCRIBED) == len(set(DESCRIBED))
    on_pages = [resolved(path) for path in DESCRIBED]
    for package in (poh_ext, poh_ext.io, models):
        for name in package.__all__:
            it = getattr(package, name)
            assert it is poh_ext.io or any(it is other for other in on_pages), f"{package.__name__}.{name}"


@pytest.mark.parametrize("path", [path for path in DESCRIBED if not isinstance(resolved(path), dict)])
def test_the_examples_run(path, given, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    what = resolved(path)
    names = vars(sys.modules[what.__module__]) | given
    said: list[str] = []
    for test in doctest.DocTestFinder(recurse=isinstance(what, type)).find(what, path, globs=names):
        if path in NOT_RUN:
            for example in test.examples:
                compile(example.source, path, "exec")
        else:
            doctest.DocTestRunner(WhatIsShown()).run(test, out=said.append)
    assert not said, "".join(said)


def test_what_is_not_run_has_an_example():
    assert all(">>>" in resolved(path).__doc__ for path in NOT_RUN)


@pytest.mark.parametrize("path", DESCRIBED)
def test_what_is_returned_is_not_cut_at_a_colon(path):
    """The site takes what stands before a colon in the first line for a type."""
    what = resolved(path)
    members = vars(what).values() if isinstance(what, type) else ()
    for each in (what, *members):
        first = re.search(r"^ *Returns:\n(.*)", getattr(each, "__doc__", None) or "", re.M)
        assert first is None or ":" not in first[1], first[1]
