"""setup.py where the kernels are not wanted, and where they cannot be built."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def copy_sources(tmp_path) -> Path:
    unwanted = shutil.ignore_patterns(".git", ".venv", "build", "*.so", "_build*", "results", "*.egg-info")
    return shutil.copytree(ROOT, tmp_path / "source", ignore=unwanted)


def wheel(tmp_path, **env):
    """Build a wheel of a copy of the sources, in place of an isolated build (same code, no download)."""
    source = copy_sources(tmp_path)
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


def setup_build(tmp_path, **env):
    """What pip has setup.py do, without pip."""
    return subprocess.run(
        [sys.executable, "setup.py", "build", "--build-lib", tmp_path / "lib"],
        cwd=copy_sources(tmp_path), env={**os.environ, **env}, capture_output=True, text=True,
    )


FAKE_CMAKE = """#!{python}
import pathlib, sys, sysconfig
given = " ".join(sys.argv[1:])
modules = next((a.split("=")[1] for a in sys.argv if a.startswith("-DPOH_EXT_OUTPUT=")), None)
if "-DPOH_EXT_CUDA=ON" in given and {cuda_fails}:
    sys.exit("nvcc fatal: no license for a Tuesday")
if modules:
    names = ["_C_cuda"] if "-DPOH_EXT_CUDA=ON" in given else ["_C", "_C_avx2", "_C_avx512"]
    pathlib.Path(modules).mkdir(parents=True, exist_ok=True)
    for name in names:
        pathlib.Path(modules, name + sysconfig.get_config_var("EXT_SUFFIX")).write_text(given)
"""


@pytest.mark.parametrize(
    "nvcc, cuda_fails, asked, expected",
    [
        (True, False, None, (True, "")),
        (True, True, None, (False, "the CUDA build failed: .*no license for a Tuesday")),
        (True, False, "0", (False, "POH_EXT_CUDA=0 when poh_ext was built")),
        (False, False, None, (False, "no nvcc was found when poh_ext was built")),
        (True, True, "1", None),
    ],
    ids=["built", "failed", "not wanted", "no nvcc", "failed but required"],
)
def test_cuda_kernels_are_built_where_nvcc_is_and_never_break_the_rest(tmp_path, nvcc, cuda_fails, asked, expected):
    """What setup.py makes of CMake's answers; the answers themselves come from a stand-in."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "cmake").write_text(FAKE_CMAKE.format(python=sys.executable, cuda_fails=cuda_fails))
    (tools / "cmake").chmod(0o755)
    clean = [p for p in os.environ["PATH"].split(os.pathsep) if not Path(p, "nvcc").exists()]
    env = {"PATH": os.pathsep.join([str(tools), *clean]), "CUDACXX": "/opt/nvcc" if nvcc else ""}
    env |= {"POH_EXT_CUDA": asked} if asked else {}
    done = setup_build(tmp_path, **env)
    if expected is None:
        assert done.returncode != 0 and "no license for a Tuesday" in done.stdout + done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    package = tmp_path / "lib" / "poh_ext"
    status = json.loads((package / "_build_status.json").read_text())
    assert (status["built"], status["cuda"]) == (True, expected[0])
    assert re.fullmatch(expected[1], status["cuda_reason"], re.DOTALL)
    modules = {module.name.split(".")[0] for module in package.glob("*.so")}
    assert ("_C_cuda" in modules) == expected[0] and "_C" in modules


def test_unknown_cuda_switch_is_named(tmp_path):
    done = setup_build(tmp_path, POH_EXT_CUDA="yes")
    assert done.returncode != 0
    assert "POH_EXT_CUDA='yes' is unknown; accepted: 0, 1" in done.stdout + done.stderr


@pytest.mark.parametrize("path", ["setup.py", "pyproject.toml", "CMakeLists.txt"])
def test_build_files_name_one_torch_abi(path):
    """The oldest torch the kernels run on stands in CMakeLists.txt and pyproject.toml: keep them equal."""
    text = (ROOT / path).read_text()
    if path == "CMakeLists.txt":
        assert "TORCH_TARGET_VERSION=0x020a000000000000" in text
    if path == "pyproject.toml":
        assert '"torch>=2.10"' in text
    assert "fast-math" not in text.replace("No -ffast-math", "")
