"""docs/formats.md describes every format, and the docstrings' examples of text hold."""

import doctest
import re
from pathlib import Path

import pytest
import torch

import poh_ext
from poh_ext.io import _source, drawing

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text()


def test_each_format_is_described():
    assert set(poh_ext.io.FORMATS) == set(re.findall(r"^\| `(\w+)` \|", TEXT, re.M))


@pytest.mark.parametrize("what", [_source.FormatError, drawing.parse, drawing.text])
def test_examples(what):
    names = {name: getattr(poh_ext, name) for name in poh_ext.__all__} | {"poh_ext": poh_ext, "torch": torch}
    tests = doctest.DocTestFinder(recurse=False).find(what, globs=names)
    runner = doctest.DocTestRunner()
    assert sum(runner.run(test).attempted for test in tests) > 0
    assert runner.summarize().failed == 0
