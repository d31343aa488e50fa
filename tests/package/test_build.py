"""setup.py where the kernels are not wanted, and where they cannot be built."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from tools.check_release import declared

ROOT = Path(__file__).resolve().parents[2]


def copy_sources(tmp_path) -> Path:
    # Also what `make lint` and `make sdist` write, which may run beside the tests.
    names = (".git", ".venv*", "build", "dist", "*.so", "_build*", "results", "*.egg-info", "__pycache__", ".*_cache",
             "poh_ext-*")  # fmt: skip
    unwanted = shutil.ignore_patterns(*names)
    return shutil.copytree(ROOT, tmp_path / "source", ignore=unwanted)


def wheel(tmp_path, **env):
    """Build a wheel of a copy of the sources, in place of an isolated build (same code, no download)."""
    source = copy_sources(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", source],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
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


@pytest.mark.parametrize("switch", ["POH_EXT_REQUIRE_BUILD", "POH_EXT_CUDA"])
def test_failed_compiler_is_an_error_on_request(tmp_path, switch):
    done, built = wheel(tmp_path, CXX="/bin/false", CUDACXX=sys.executable, **{switch: "1"})
    assert done.returncode != 0 and built is None
    assert "poh_ext: the C++ build failed: " in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr and "fallback" not in done.stdout + done.stderr


def setup_build(source, **env):
    """What pip has setup.py do, without pip, in a copy of the sources -> what it said, and the package it built."""
    done = subprocess.run(
        [sys.executable, "setup.py", "build", "--build-lib", source.parent / "lib"],
        cwd=source, env={**os.environ, **env}, capture_output=True, text=True,
    )  # fmt: skip
    return done, source.parent / "lib" / "poh_ext"


FAKE_CMAKE = """#!{python}
import os, pathlib, sys
given = " ".join(sys.argv[1:])
modules = next((a.split("=")[1] for a in sys.argv if a.startswith("-DPOH_EXT_OUTPUT=")), None)
cuda = "-DPOH_EXT_CUDA=ON" in given
if os.environ.get("FAILS") == ("cuda" if cuda else "cpu") and modules:
    sys.exit("nvcc fatal: no license for a Tuesday" if cuda else "error: no such language")
if modules:
    folder = pathlib.Path(sys.argv[sys.argv.index("-B") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "configured.txt", "a") as file:
        file.write("once ")
    pathlib.Path(modules).mkdir(parents=True, exist_ok=True)
    for name in ["_C_cuda"] if cuda else ["_cpu_level", "_C", "_C_avx2", "_C_avx512"]:
        pathlib.Path(modules, name + ".abi3.so").write_text(os.environ.get("CONTENT", "made"))
"""


@pytest.fixture
def fake(tmp_path):
    """A copy of the sources, and an environment whose cmake is a stand-in and where no nvcc is on PATH."""
    if sys.implementation.name != "cpython" or not hasattr(sys, "abiflags") or "t" in sys.abiflags:
        pytest.skip("the stand-in makes modules of the limited API")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "cmake").write_text(FAKE_CMAKE.format(python=sys.executable))
    (tools / "cmake").chmod(0o755)
    clean = [p for p in os.environ["PATH"].split(os.pathsep) if not Path(p, "nvcc").exists()]
    env = {"PATH": os.pathsep.join([str(tools), *clean]), "CUDACXX": "", "CUDA_HOME": "", "CUDA_PATH": ""}
    return copy_sources(tmp_path), env


def fake_nvcc(folder: Path) -> Path:
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    return nvcc


NO_CUDA = "the torch that poh_ext was built with has no CUDA, and POH_EXT_CUDA=1 was not set"
NO_NVCC = not Path("/usr/local/cuda/bin/nvcc").exists()


@pytest.mark.parametrize(
    "nvcc, fails, asked, expected",  # expected: a pattern of the reason why there are none
    [
        ("CUDACXX", "", "1", ""),
        ("CUDA_HOME", "", "1", ""),
        ("CUDACXX", "", "0", "POH_EXT_CUDA=0 when poh_ext was built"),
        ("CUDACXX", "", "", "" if torch.version.cuda else NO_CUDA),
        ("", "", "", "no nvcc was found when poh_ext was built" if NO_NVCC else "(?s).*"),
        ("CUDACXX", "cuda", "", "(?s)the CUDA build failed: .*a Tuesday.*" if torch.version.cuda else NO_CUDA),
    ],
    ids=["asked", "asked, by CUDA_HOME", "not wanted", "default", "no nvcc", "failed"],
)
def test_cuda_kernels_are_built_where_they_are_of_use_and_never_break_the_rest(fake, nvcc, fails, asked, expected):
    """What setup.py makes of CMake's answers; the answers themselves come from a stand-in."""
    source, env = fake
    home = source.parent / "cuda"
    found = fake_nvcc(home)
    env |= {nvcc: str(home if nvcc == "CUDA_HOME" else found)} if nvcc else {}
    done, package = setup_build(source, **env, FAILS=fails, POH_EXT_CUDA=asked)
    assert done.returncode == 0, done.stdout + done.stderr
    status = json.loads((package / "_build_status.json").read_text())
    assert (status["built"], status["cuda"]) == (True, not status["cuda_reason"])
    assert re.fullmatch(expected, status["cuda_reason"])
    modules = {module.name.split(".")[0] for module in package.glob("*.so")}
    assert ("_C_cuda" in modules) == status["cuda"] and {"_C", "_cpu_level"} <= modules


@pytest.mark.parametrize(
    "env, line",
    [
        ({"POH_EXT_CUDA": "yes"}, "poh_ext: POH_EXT_CUDA='yes' is unknown; accepted: 0, 1"),
        ({"POH_EXT_SKIP_BUILD": "true"}, "poh_ext: POH_EXT_SKIP_BUILD='true' is unknown; accepted: 0, 1"),
        ({"POH_EXT_CAPABILITIES": "AVX2,AVX1024"}, "poh_ext: POH_EXT_CAPABILITIES: 'AVX1024' is unknown; accepted: "),
        ({"POH_EXT_SKIP_BUILD": "1", "POH_EXT_CUDA": "1"}, "poh_ext: POH_EXT_SKIP_BUILD=1 contradicts "),
        ({"POH_EXT_CUDA": "1", "CUDACXX": "/nowhere/nvcc"},
         "poh_ext: POH_EXT_CUDA=1 asks for the CUDA kernels, but no nvcc was found"),
        ({"POH_EXT_CUDA": "1", "CUDACXX": sys.executable, "FAILS": "cuda"},
         "poh_ext: the CUDA build failed: nvcc fatal: no license for a Tuesday"),
        ({"POH_EXT_CUDA": "1", "CUDACXX": sys.executable, "FAILS": "cpu"},
         "poh_ext: the C++ build failed: error: no such language"),
        ({"POH_EXT_REQUIRE_BUILD": "1", "FAILS": "cpu"}, "poh_ext: the C++ build failed: error: no such language"),
    ],
)  # fmt: skip
def test_what_was_asked_for_and_cannot_be_had_is_one_line(fake, env, line):
    source, tools = fake
    done, package = setup_build(source, **(tools | env))
    said = done.stdout + done.stderr
    assert done.returncode != 0 and line in said
    assert "Traceback" not in said and "fallback" not in said and not list(package.glob("*.so"))
    if "nvcc was found" in line:
        assert not (source / "build").exists() or not list((source / "build").glob("**/configured.txt"))


def test_a_build_packs_what_its_own_sources_gave_or_nothing(fake):
    """A second build in the same folder: no module and no Python file of the first may be left in it."""
    source, env = fake
    extra = source / "poh_ext" / "removed_later.py"
    extra.write_text("")
    done, package = setup_build(source, **env, CONTENT="first")
    assert (package / "_C.abi3.so").read_text() == "first" and (package / "removed_later.py").exists()
    extra.unlink()
    done, package = setup_build(source, **env, CONTENT="second")
    assert (package / "_C.abi3.so").read_text() == "second" and not (package / "removed_later.py").exists()
    done, package = setup_build(source, **env, FAILS="cpu")
    assert done.returncode == 0 and not list(package.glob("*.so"))
    assert json.loads((package / "_build_status.json").read_text())["built"] is False


def test_the_cpu_levels_that_were_asked_for_are_built(fake):
    source, env = fake
    _, package = setup_build(source, **env, POH_EXT_CAPABILITIES="DEFAULT")
    assert {module.name.split(".")[0] for module in package.glob("*.so")} == {"_C", "_cpu_level"}


def test_the_build_folder_is_kept_for_the_same_tools_only(fake):
    """CMake's cache names the ninja and the torch of the build environment, which an isolated build removes."""
    source, env = fake
    setup_build(source, **env)
    setup_build(source, **env)
    (log,) = source.glob("build/temp*/cpu/configured.txt")
    assert log.read_text() == "once once "
    setup_build(source, **env, PYTHONPATH=str(source.parent / "another_environment"))
    assert log.read_text() == "once "


def test_the_sdist_has_what_a_build_and_its_tests_need(tmp_path):
    source = copy_sources(tmp_path)
    done = subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path], cwd=source, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("poh_ext-*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.split("/", 1)[1] for name in packed.getnames() if "/" in name}
    for folder in ("csrc", "tests", "tools", "bench", "experiments", "poh_ext", "docs"):
        files = {str(p.relative_to(source)) for p in (source / folder).rglob("*") if p.is_file()}
        unwanted = {f for f in files if f.endswith((".pyc", ".so", ".json")) and "figures" not in f}
        assert files - unwanted <= names, files - unwanted - names
    named = {"CMakeLists.txt", "Makefile", "constraints.txt", "LICENSE", "NOTICE", "pyproject.toml", "setup.py"}
    assert named | {"CHANGELOG.md", "CITATION.cff"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_metadata_is_complete(tmp_path):
    _, built = wheel(tmp_path, POH_EXT_SKIP_BUILD="1")
    (name,) = [n for n in built.namelist() if n.endswith("/METADATA")]
    metadata = email.message_from_bytes(built.read(name))
    assert metadata["Version"] == declared(ROOT)["pyproject.toml"][0] and "poh_ext/py.typed" in built.namelist()
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Author"] == "poh_ext contributors"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"] and len(metadata.get_all("Classifier")) > 5
    text = metadata.get_payload()
    assert "## Install" in text and not re.search(r"\]\((?!https?:)", text)


@pytest.mark.parametrize("path", ["setup.py", "pyproject.toml", "CMakeLists.txt"])
def test_build_files_name_one_torch_abi(path):
    """The oldest torch the kernels run on stands in CMakeLists.txt and pyproject.toml: keep them equal."""
    text = (ROOT / path).read_text()
    if path == "CMakeLists.txt":
        assert "TORCH_TARGET_VERSION=0x020a000000000000" in text
    if path == "pyproject.toml":
        assert '"torch>=2.10"' in text
    assert "fast-math" not in text.replace("No -ffast-math", "")
