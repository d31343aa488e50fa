"""setup.py where the kernels are not wanted, and where they cannot be built."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def wheel(tmp_path, **env):
    """Build a wheel of a copy of the sources, in place of an isolated build (same code, no download)."""
    source = tmp_path / "source"
    unwanted = shutil.ignore_patterns(".git", ".venv", "build", "*.so", "_build*", "results", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=unwanted)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", source],
        env={**os.environ, **env}, capture_output=True, text=True,
    )
    wheels = list((tmp_path / "dist").glob("*.whl"))
    return done, zipfile.ZipFile(wheels[0]) if wheels else None


def test_skip_build_makes_a_pure_wheel(tmp_path):
    done, built = wheel(tmp_path, POH_EXT_SKIP_BUILD="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert built.filename.endswith("-py3-none-any.whl")
    names = built.namelist()
    assert "poh_ext/_backend.py" in names and not [n for n in names if n.endswith((".so", ".cpp"))]


def test_failed_compiler_installs_the_fallback_and_keeps_the_reason(tmp_path):
    done, built = wheel(tmp_path, CXX="/bin/false")
    assert done.returncode == 0, done.stdout + done.stderr
    status = json.loads(built.read("poh_ext/_build_status.json"))
    assert status["built"] is False and "C++ build failed" in status["reason"]


def test_failed_compiler_is_an_error_on_request(tmp_path):
    done, built = wheel(tmp_path, CXX="/bin/false", POH_EXT_REQUIRE_BUILD="1")
    assert done.returncode != 0 and built is None


@pytest.mark.parametrize("path", ["setup.py", "pyproject.toml", "CMakeLists.txt"])
def test_build_files_name_one_torch_abi(path):
    """The oldest torch the kernels run on stands in CMakeLists.txt and pyproject.toml: keep them equal."""
    text = (ROOT / path).read_text()
    if path == "CMakeLists.txt":
        assert "TORCH_TARGET_VERSION=0x020a000000000000" in text
    if path == "pyproject.toml":
        assert '"torch>=2.10"' in text
    assert "fast-math" not in text.replace("No -ffast-math", "")
