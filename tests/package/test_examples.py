"""The scripts of examples/, each in a process of its own: they compare their losses themselves."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NEEDS = {"hf_trainer": ("transformers", "accelerate"), "lightning_module": ("lightning",)}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example(path, tmp_path):
    for package in NEEDS.get(path.stem, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'poh_ext[examples]'")
    processes = "torchrun" in path.read_text()
    if processes and not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("torch has no gloo")
    done = subprocess.run(
        [sys.executable, *(TORCHRUN if processes else ()), str(path)],
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
             "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"loss (\S+) -> (\S+) with F.cross_entropy.*?, (\S+) with poh_ext", done.stdout)
    assert len(lines) == 1 + processes, done.stdout
    for first, plain, fused in lines:
        assert float(plain) < 0.9 * float(first) and abs(float(fused) - float(plain)) < 1e-3
    assert not list(tmp_path.iterdir())


def test_each_example_has_its_line():
    listed = re.findall(r"^\| \[(\S+)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))
