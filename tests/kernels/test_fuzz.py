"""A short run of fuzz.py, in a child process: a crash is a failed test that names the call."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
pytestmark = pytest.mark.slow
FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.parametrize("kinds", ["loss,linear loss", "cross_entropy,linear_cross_entropy,routing,attention",
                                   "generation,graph,rollout"])  # fmt: skip
def test_kernels_and_reference_agree_on_random_calls(kinds, tmp_path, note):
    log = tmp_path / "call"
    path = os.pathsep.join(filter(None, [str(FUZZ.parents[2]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, FUZZ, "--calls", "400", "--only", kinds, "--log", log], text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": path})  # fmt: skip
    call = log.read_text() if log.exists() else "before the first call"
    assert done.returncode == 0, f"exit status {done.returncode} in {call}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    note(f"fuzzing {kinds}: {done.stdout.strip()}")
