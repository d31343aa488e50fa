"""The backend choice in fresh interpreters: what is used, what is refused, and the reason given."""

import json
import os
import shutil
import subprocess
import sys
import warnings
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


LEVELS = ["DEFAULT", "AVX2", "AVX512"]


@built
@pytest.mark.parametrize("capability", LEVELS)
def test_module_follows_torch_capability(capability):
    can_run = poh_ext.backend_info()["cpu_level"]
    if LEVELS.index(capability) > LEVELS.index(can_run):
        pytest.skip(f"this CPU runs no more than {can_run}; the choice is tested below")
    found = info(ATEN_CPU_CAPABILITY=capability.lower(), POH_EXT_BACKEND="cpu")
    assert found["torch_cpu_capability"] == found["build"]["cpu_capability"] == capability
    assert found["cpu_level"] == can_run and found["notes"] == []


@pytest.mark.parametrize(
    "wanted, can_run, expected",
    [
        ("AVX512", "AVX512", ["AVX512", "AVX2", "DEFAULT"]),
        ("AVX512", "AVX2", ["AVX2", "DEFAULT"]),
        ("AVX512", "DEFAULT", ["DEFAULT"]),
        ("AVX2", "AVX512", ["AVX2", "DEFAULT"]),
        ("AVX2", "DEFAULT", ["DEFAULT"]),
        ("DEFAULT", "AVX512", ["DEFAULT"]),
        ("SVE256", "DEFAULT", ["DEFAULT"]),
    ],
)
def test_no_level_is_tried_that_the_cpu_cannot_run(wanted, can_run, expected):
    levels, note = _backend._levels(wanted, can_run)
    assert levels == expected
    if levels[0] != wanted and wanted in LEVELS:
        assert f"told to use {wanted}" in note and f"uses its {levels[0]} kernels" in note
    else:
        assert note == ""


ANOTHER_CPU = """
import json, sys, types
from importlib.machinery import ModuleSpec
stand_in = types.ModuleType("poh_ext._cpu_level")
stand_in.build_info = lambda: {{"level": "{level}"}}
sys.modules["poh_ext._cpu_level"] = stand_in
import poh_ext
print(json.dumps(poh_ext.backend_info()))
"""


@built
@pytest.mark.parametrize("level", ["DEFAULT", "AVX2"])
def test_a_cpu_that_cannot_run_what_torch_was_told_gets_its_own_best_and_hears_it_once(level):
    """A stand-in for the flags of the CPU. On such a CPU the module asked for would end the process."""
    if level not in LEVELS[: LEVELS.index(poh_ext.backend_info()["cpu_level"]) + 1]:
        pytest.skip("this CPU runs less than that")
    done = run(ANOTHER_CPU.format(level=level), ATEN_CPU_CAPABILITY="avx512", POH_EXT_BACKEND="auto")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["build"]["cpu_capability"] == level and found["cpu_level"] == level
    assert done.stderr.count("which this CPU cannot run") == 1 and len(found["notes"]) == 1


@built
def test_the_level_of_this_cpu_is_what_the_system_says():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        pytest.skip("no /proc/cpuinfo here")
    flags = next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())
    expected = "DEFAULT"
    if {"avx2", "fma", "f16c", "bmi1", "bmi2"} <= flags:
        wide = {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags
        expected = "AVX512" if wide else "AVX2"
    assert poh_ext.backend_info()["cpu_level"] == ("not asked" if os.environ.get("POH_EXT_BACKEND") == "reference"
                                                   else expected)  # fmt: skip


@built
def test_a_module_that_cannot_be_loaded_is_replaced_by_the_next_and_named(tmp_path):
    if poh_ext.backend_info()["cpu_level"] == "DEFAULT":
        pytest.skip("this CPU has one level only")
    shutil.copytree(PACKAGE, tmp_path / "poh_ext", ignore=shutil.ignore_patterns("__pycache__"))
    next((tmp_path / "poh_ext").glob("_C_avx2.*")).write_bytes(b"not a shared library")
    done = run(root=tmp_path, ATEN_CPU_CAPABILITY="avx2", POH_EXT_BACKEND="auto")
    assert json.loads(done.stdout)["build"]["cpu_capability"] == "DEFAULT"
    assert done.stderr.count("_C serves, because a faster module cannot be loaded: _C_avx2: ") == 1


@built
def test_a_missing_question_to_the_cpu_is_named_and_not_blamed_on_torch(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "_cpu_level*")
    shutil.copytree(PACKAGE, tmp_path / "poh_ext", ignore=ignored)
    several = any((tmp_path / "poh_ext").glob("_C_avx2*"))
    done = run(root=tmp_path, POH_EXT_BACKEND="auto")
    found = json.loads(done.stdout)
    assert found["build"]["cpu_capability"] == "DEFAULT" and found["cpu_level"] == "unknown"
    assert done.stderr.count("the module _cpu_level, which asks the CPU") == several
    assert "ATEN_CPU_CAPABILITY" not in done.stderr


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
    asked = "; cuda = torch.device('cuda'); print([poh_ext._backend.has_kernel(cuda) for _ in range(3)])"
    told = run(code + asked, root=tmp_path, POH_EXT_BACKEND="auto")
    assert told.stderr.count("the PyTorch reference serves CUDA tensors, slower: not built") == 1, told.stderr
    assert "[False, False, False]" in told.stdout
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
    for name in ("_cpu_level", "_C", "_C_avx2", "_C_avx512"):
        (unbuilt / "poh_ext" / f"{name}{suffix}").write_bytes(b"not a shared library")
    done = run(root=unbuilt, POH_EXT_BACKEND="cpu")
    assert done.returncode != 0 and "_C: " in done.stderr and "unavailable" in done.stderr


def _suffixes():
    import importlib.machinery

    return importlib.machinery.EXTENSION_SUFFIXES


def test_has_kernel_is_by_device_type():
    assert not _backend.has_kernel(torch.device("meta"))
    assert not _backend.has_kernel(torch.device("mps"))


@pytest.mark.parametrize(
    "capability, architectures, runs",
    [
        ((8, 0), "8.0 9.0+PTX", True),
        ((8, 9), "8.0 9.0+PTX", True),  # the same major version
        ((12, 0), "8.0 9.0+PTX", True),  # by its PTX
        ((7, 5), "8.0 9.0+PTX", False),
        ((10, 0), "8.0 9.0", False),
        ((8, 0), "8.6", False),
        ((9, 0), "9.0a", True),
        ((10, 0), "9.0a+PTX", False),  # "a" is of that GPU alone
        ((7, 5), "7.5 8.0", True),
    ],
)
def test_kernels_run_on_gpus_that_they_were_built_for(capability, architectures, runs):
    why = _backend._why_not_on(capability, architectures)
    assert (why == "") == runs
    if why:
        here = ".".join(map(str, capability))
        assert why.endswith(f"this GPU is a {here}; build again with TORCH_CUDA_ARCH_LIST={here}")


def test_a_gpu_that_the_kernels_were_not_built_for_gets_the_reference_and_one_warning(monkeypatch):
    cuda = torch.device("cuda", 0)
    for name, value in (("_kernels", {"cuda": frozenset(["route"])}), ("_gpus", {}), ("_silent_about_cuda", False),
                        ("_build", {"cuda": {"architectures": "8.0 9.0+PTX"}}), ("_requested", "auto")):  # fmt: skip
        monkeypatch.setattr(_backend, name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    with pytest.warns(
        RuntimeWarning, match="serves CUDA tensors, slower: .* built for 8.0 9.0.PTX, and this GPU is a 7.5"
    ):
        assert not _backend.has_kernel(cuda, "route")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _backend.has_kernel(cuda, "route")
    monkeypatch.setattr(_backend, "_requested", "cuda")
    with pytest.raises(RuntimeError, match="POH_EXT_BACKEND=cuda was asked for, but the CUDA kernels were built for"):
        _backend.has_kernel(cuda)
    monkeypatch.setattr(_backend, "_gpus", {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert _backend.has_kernel(cuda, "route") and not _backend.has_kernel(cuda, "x")


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
    root = Path(__file__).parents[2]  # the package under test may be an installed one
    shutil.copytree(PACKAGE, tmp_path / "poh_ext", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "csrc").mkdir()
    same = (root / "csrc" / "ops.cpp").read_bytes()
    (tmp_path / "csrc" / "ops.cpp").write_bytes(same)
    assert run(root=tmp_path, POH_EXT_BACKEND="cpu").returncode == 0
    (tmp_path / "csrc" / "ops.cpp").write_bytes(same + b"// changed")
    done = run(root=tmp_path, POH_EXT_BACKEND="cpu")
    assert done.returncode != 0 and "was built from another csrc/ops.cpp" in done.stderr
