"""The types of the public functions, as a type checker sees them in a user's program."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import poh_ext
from poh_ext import io

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "cases" / "typed_program.py"


def test_a_users_program_has_types_and_wrong_calls_are_flagged():
    """As `make lint` sets mypy up, so that the two share a cache: most of the time goes into reading torch."""
    pytest.importorskip("mypy")
    package = Path(poh_ext.__file__).parents[1]
    # mypy does not follow the finder of an editable install; what is installed for all it finds by py.typed.
    place = {} if package.name == "site-packages" else {"MYPYPATH": str(package)}
    done = subprocess.run([sys.executable, "-m", "mypy", PROGRAM], cwd=ROOT, env={**os.environ, **place},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_program_uses_every_public_name():
    text = PROGRAM.read_text()
    names = {name for name in poh_ext.__all__ if name != "io"} | {f"io.{name}" for name in io.__all__}
    assert not {name for name in names if not re.search(rf"\b{re.escape(name)}\b", text)}
