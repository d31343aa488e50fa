"""nvcc compiles every CUDA source against whatever torch is here, and the module loads where torch has CUDA.

In one unit, as most of the time goes to torch's headers, and for one architecture with PTX, or those of
TORCH_CUDA_ARCH_LIST: `make test-cuda-torch` compiles as what is shipped is.
What the kernels compute is tested in test_cuda_host.py.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
ARCHITECTURES = os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0+PTX")
TORCH_INCLUDE = Path(torch.__file__).parent / "include"

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc here: the CUDA sources were not compiled")


@pytest.fixture(scope="module")
def built():
    """The module _C_cuda, built by the CMake description that pip uses."""
    import fcntl  # of Unix alone

    build = ROOT / "build" / "cuda_compile"
    generator = ["-GNinja"] if shutil.which("ninja", path=path()) else []
    configure = ["cmake", "-S", ROOT, "-B", build, *generator, f"-DPython_EXECUTABLE={sys.executable}",
                 "-DCMAKE_BUILD_TYPE=Release", "-DPOH_EXT_CUDA=ON", "-DPOH_EXT_CAPABILITIES=",
                 "-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=0",
                 f"-DPOH_EXT_OUTPUT={build / 'tested'}"]  # fmt: skip
    # Less optimisation than is shipped, in a third less time: what is tested is that it compiles, links and loads.
    env = {
        **os.environ,
        "PATH": path(),
        "TORCH_CUDA_ARCH_LIST": ARCHITECTURES,
        "NVCC_APPEND_FLAGS": "-Xcicc -O1 -Xptxas -O1",
    }
    jobs = os.environ.get("MAX_JOBS") or "2"
    build.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests may build here
        for command in (configure, ["cmake", "--build", build, "--parallel", jobs]):
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        return next((build / "tested").glob("_C_cuda*"))


def path():
    """Beside the interpreter are the cmake and ninja of its environment."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def test_every_source_is_compiled_for_the_architectures(built):
    numbers = [each.removesuffix("+PTX").replace(".", "") for each in ARCHITECTURES.split(";")]
    commands = json.loads((built.parents[1] / "compile_commands.json").read_text())
    ((unit, command),) = [(Path(c["file"]), c["command"]) for c in commands if c["file"].endswith("cu.cu")]
    included = re.findall(r'#include "(.*\.cu)"', unit.read_text())
    assert {Path(path) for path in included} == set(ROOT.glob("csrc/*/*.cu"))
    for flag in (*(f"code=[sm_{n}]" for n in numbers), "code=[compute_90]", "-Werror=all-warnings"):
        assert flag in command
    code = built.read_bytes()
    assert all(f"sm_{n}".encode() in code for n in numbers)


def test_it_needs_torch_alone(built):
    """One build for torches of CUDA 12 and 13: the CUDA runtime is inside, only the stream is torch's.

    torch loads libtorch_cuda.so with RTLD_LOCAL: a module that does not name it as needed would not find the stream.
    """
    dynamic = subprocess.run(["readelf", "-d", built], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert {"libtorch_cpu.so", "libtorch_cuda.so"} <= needed
    assert not [name for name in needed if name.startswith(("libcuda", "libtorch_cuda_stub"))]
    assert "RUNPATH" not in dynamic and "RPATH" not in dynamic

    def symbols(library, which):
        done = subprocess.run(["nm", "-D", which, library], capture_output=True, text=True, check=True)
        return {line.split()[-1].split("@")[0] for line in done.stdout.splitlines()}

    provided = symbols(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so", "--defined-only")
    wanted = {s for s in symbols(built, "--undefined-only") if "cuda" in s.lower() or "torch" in s}
    assert wanted - provided <= {"aoti_torch_get_current_cuda_stream"}


LOAD = """
import ctypes, json, sys, torch
for library in sys.argv[1:]:
    ctypes.CDLL(library, mode=ctypes.RTLD_LOCAL)
torch.version.cuda = torch.version.cuda or "13.0"
import poh_ext
from poh_ext import _backend
cuda = torch.device("cuda")
print(json.dumps({"info": poh_ext.backend_info(), "kernels": sorted(_backend._kernels.get("cuda", ())),
                  "has": [_backend.has_kernel(cuda, op) for op in (None, "route", "x")]}))
"""


@pytest.fixture
def package(built, tmp_path):
    """A copy of the package with the CUDA module in it; needs the C++ module, which has the schemas."""
    modules = list((ROOT / "poh_ext").glob("_C*.so"))
    if not modules:
        pytest.skip("the C++ module is not built")
    shutil.copytree(ROOT / "poh_ext", tmp_path / "poh_ext", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(built, tmp_path / "poh_ext" / built.name)
    return tmp_path


def load(package, *libraries, **env):
    done = subprocess.run([sys.executable, "-c", LOAD, *map(str, libraries)], cwd=package, env={**os.environ, **env},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_it_registers_a_kernel_for_every_op_when_loaded(package, tmp_path):
    """Without a GPU and without a driver: a stand-in for libtorch_cuda.so, loaded as torch loads its own.

    tests/test_cuda_torch.py does it with a real one.
    """
    source, stand_in = tmp_path / "stream.c", tmp_path / "libtorch_cuda.so"
    source.write_text("int aoti_torch_get_current_cuda_stream(int d, void** s) { (void)d; *s = 0; return 0; }")
    command = [*shlex.split(os.environ.get("CC", "gcc")), "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so"]
    subprocess.run([*command, source, "-o", stand_in], check=True)
    found, said = load(package, *([] if torch.version.cuda else [stand_in]), POH_EXT_BACKEND="auto")
    assert found["has"] == [True, True, False] and "poh_ext" not in said
    registered = {line.split('"')[1] for source in ROOT.glob("csrc/*/*.cu")
                  for line in source.read_text().splitlines() if 'm.impl("' in line}  # fmt: skip
    assert set(found["kernels"]) == registered and "horizon_ce" in registered
    assert found["info"]["build"]["cuda"]["architectures"] == ARCHITECTURES.replace(";", " ")
    assert found["info"]["cuda"].startswith("CUDA kernels")


def test_kernels_that_cannot_be_loaded_are_said_once_at_import(package):
    if torch.version.cuda:
        pytest.skip("this torch has the library")
    found, said = load(package, POH_EXT_BACKEND="auto")
    assert found["has"] == [False, False, False]
    assert "_C_cuda: " in found["info"]["cuda"] and "libtorch_cuda.so" in found["info"]["cuda"]
    assert said.count("the CUDA kernels were built, but cannot be loaded") == 1 and "libtorch_cuda.so" in said
    assert found["info"]["notes"][0].startswith("the CUDA kernels were built, but cannot be loaded")


def test_test_kernels_are_valid_cuda_too(tmp_path):
    """The emulation accepts no more than nvcc does."""
    command = [
        *shlex.split(NVCC), "-std=c++20", "--expt-relaxed-constexpr", "-Werror=all-warnings", "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020a000000000000", "-I", ROOT / "csrc", "-isystem", TORCH_INCLUDE,
        "-Xcompiler", "-fPIC", "-arch=sm_90", "-c", ROOT / "tests" / "cuda" / "planted.cu",
        "-o", tmp_path / "planted.o",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
