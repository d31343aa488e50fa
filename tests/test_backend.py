"""The backend choice in fresh interpreters: what is used, what is refused, and the reason given."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import poh_ext
from poh_ext import _backend

PACKAGE = Path(poh_ext.__file__).parent
built = pytest.mark.skipif(
    not any(PACKAGE.glob("_C*")), reason=f"C++ kernels are not built: {poh_ext.backend_info()['cpu']}"
)


def run(code="import poh_ext, json; print(json.dumps(poh_ext.backend_info()))", root=PACKAGE.parent, **env):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, **env}, capture_output=True, text=True
    )


def info(**env) -> dict:
    done = run(**env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def unbuilt(tmp_path):
    """A copy of the package without its compiled modules, as an install without a compiler leaves it."""
    shutil.copytree(
        PACKAGE, tmp_path / "poh_ext", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "_build*")
    )
    return tmp_path


def test_info_is_plain_data():
    assert json.loads(json.dumps(poh_ext.backend_info())) == poh_ext.backend_info()


def test_reference_never_loads_a_module():
    found = info(POH_EXT_BACKEND="reference")
    assert found["build"] == {} and "POH_EXT_BACKEND=reference" in found["cpu"]


@built
@pytest.mark.parametrize("capability, expected", [("default", "DEFAULT"), ("avx2", "AVX2"), ("avx512", "AVX512")])
def test_module_follows_torch_capability(capability, expected):
    found = info(ATEN_CPU_CAPABILITY=capability, POH_EXT_BACKEND="cpu")
    if found["torch_cpu_capability"] != expected:
        pytest.skip(f"torch itself runs {found['torch_cpu_capability']} on this CPU")
    assert found["build"]["cpu_capability"] == expected


@built
def test_cpu_backend_is_granted():
    assert info(POH_EXT_BACKEND="cpu")["cpu"].startswith("C++ kernels")


def test_unknown_backend_is_named():
    done = run(POH_EXT_BACKEND="gpu")
    assert done.returncode != 0
    assert "POH_EXT_BACKEND='gpu' is unknown; accepted: auto, reference, cpu, cuda" in done.stderr


def test_cuda_backend_is_refused_with_the_reason():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    done = run(POH_EXT_BACKEND="cuda")
    assert done.returncode != 0
    assert "POH_EXT_BACKEND=cuda was asked for, but" in done.stderr


def test_cuda_kernels_need_a_torch_with_cuda():
    if torch.version.cuda:
        pytest.skip("this torch has CUDA")
    found = info(POH_EXT_BACKEND="auto")
    expected = "this torch is built without CUDA" if found["build"] else "they need the C++ module"
    assert found["cuda"].startswith(f"PyTorch reference: {expected}")
    assert "cuda" not in found["build"]


@built
def test_missing_cuda_kernels_repeat_the_recorded_reason(tmp_path):
    """Where torch has CUDA but the kernels were not built."""
    ignored = shutil.ignore_patterns("_C_cuda*", "__pycache__", "_build*")
    shutil.copytree(PACKAGE, tmp_path / "poh_ext", ignore=ignored)
    code = "import torch; torch.version.cuda = '13.0'; import poh_ext; print(poh_ext.backend_info()['cuda'])"
    assert "POH_EXT_CUDA=0, or no nvcc" in run(code, root=tmp_path, POH_EXT_BACKEND="auto").stdout
    status = {"built": True, "reason": "", "cuda": False, "cuda_reason": "the CUDA build failed: no space left"}
    (tmp_path / "poh_ext" / "_build_status.json").write_text(json.dumps(status))
    assert "the CUDA build failed: no space left" in run(code, root=tmp_path, POH_EXT_BACKEND="auto").stdout
    refused = run(code, root=tmp_path, POH_EXT_BACKEND="cuda")
    assert refused.returncode != 0 and "no space left" in refused.stderr


def test_cpu_backend_is_refused_with_the_recorded_reason(unbuilt):
    (unbuilt / "poh_ext" / "_build_status.json").write_text('{"built": false, "reason": "no C++ compiler found"}')
    done = run(root=unbuilt, POH_EXT_BACKEND="cpu")
    assert done.returncode != 0 and "no C++ compiler found" in done.stderr


def test_auto_falls_back_and_says_so_once(unbuilt):
    done = run("import poh_ext, importlib; print(poh_ext.backend_info()['cpu'])", root=unbuilt, POH_EXT_BACKEND="auto")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PyTorch reference: no compiled module is installed")
    assert done.stderr.count("using the PyTorch reference") == 1


def test_a_damaged_module_is_named(unbuilt):
    suffix = next(iter(_suffixes()))
    for name in ("_C", "_C_avx2", "_C_avx512"):
        (unbuilt / "poh_ext" / f"{name}{suffix}").write_bytes(b"not a shared library")
    done = run(root=unbuilt, POH_EXT_BACKEND="cpu")
    assert done.returncode != 0 and "_C: " in done.stderr and "unavailable" in done.stderr


def _suffixes():
    import importlib.machinery

    return importlib.machinery.EXTENSION_SUFFIXES


def test_has_kernel_is_by_device_type():
    assert not _backend.has_kernel(torch.device("meta"))
    assert not _backend.has_kernel(torch.device("mps"))


@built
def test_has_kernel_knows_the_ops():
    if poh_ext.backend_info()["build"]:
        assert _backend.has_kernel(torch.device("cpu"), "route")
    assert not _backend.has_kernel(torch.device("cpu"), "no_such_op")


def test_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "poh_ext", "--brief"], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("poh_ext ")


@built
def test_a_module_older_than_its_schemas_is_not_used(tmp_path):
    root = Path(poh_ext.__file__).parents[1]
    shutil.copytree(PACKAGE, tmp_path / "poh_ext", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "csrc").mkdir()
    same = (root / "csrc" / "ops.cpp").read_bytes()
    (tmp_path / "csrc" / "ops.cpp").write_bytes(same)
    assert run(root=tmp_path, POH_EXT_BACKEND="cpu").returncode == 0
    (tmp_path / "csrc" / "ops.cpp").write_bytes(same + b"// changed")
    done = run(root=tmp_path, POH_EXT_BACKEND="cpu")
    assert done.returncode != 0 and "was built from another csrc/ops.cpp" in done.stderr
