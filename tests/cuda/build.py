"""Builds csrc/*/*.cu for the host against cuda_emulation.h, as the `_C` module of a copy of the package.

In that copy the CUDA kernels serve CPU tensors, so the tests of the operators run on them as they are. Objects are
kept in build/cuda_host by the hash of what they are made from, and made once: other processes wait for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "cuda"
SANITIZERS = {
    "plain": [],
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address,alignment,shift", "-fno-sanitize-recover=all"],
}
_MACRO = {"plain": [], "thread": ["-DPOH_TSAN"], "address": ["-DPOH_ASAN"]}
_RUNTIME = {"plain": (), "thread": ("libtsan.so",), "address": ("libasan.so", "libstdc++.so")}
_CXX = shlex.split(os.environ.get("CXX", "g++"))
# Compiled without sanitizers: the emulator's own state is no subject of the test, and the schemas compute nothing.
_BARE = {"cuda_emulation.cpp": [], "ops.cpp": ["-O0"]}


def unavailable() -> str:
    """Why the emulation can't be built here, or ''."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "the CUDA emulation is written for x86-64 Linux"
    if shutil.which(_CXX[0]) is None:
        return f"no C++ compiler: {_CXX[0]}"
    return ""


def _flags() -> list[str]:
    # -O0, because compiling takes longer than the tests, which are hardly slower by it.
    return [
        *("-std=c++20", "-O0", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
        *("-Wno-unknown-pragmas", "-fno-math-errno", "-fno-trapping-math", f"-ffile-prefix-map={ROOT}=."),
        *("-DPOH_CUDA_EMULATION", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPOH_MODULE=_C"),
        *('-DPOH_CAPABILITY="CUDA emulation"', f'-DPOH_TORCH_BUILT="{torch.__version__}"'),
        f'-DPOH_SCHEMAS="{hashlib.sha256((ROOT / "csrc" / "ops.cpp").read_bytes()).hexdigest()}"',
        *(f"-I{ROOT / 'csrc'}", f"-I{HERE}", f"-isystem{Path(torch.__file__).parent / 'include'}"),
        f"-isystem{sysconfig.get_paths()['include']}",
    ]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def _making(out: Path):
    """Gives the path to write, or None if another process has made `out`; what was written there then becomes `out`."""
    import fcntl  # of Unix alone, as the emulation is

    if out.exists():
        yield None
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if out.exists():
            yield None
            return
        partial = out.with_suffix(f".{os.getpid()}{out.suffix}")
        yield partial
        partial.replace(out)


def _object(source: Path, variant: str, headers: str) -> Path:
    if source.name == "ops.cpp":
        variant = "plain"  # one for all
    flags = [*_MACRO[variant], *_BARE.get(source.name, SANITIZERS[variant])]
    command = [*_CXX, *_flags(), *flags, "-x", "c++", "-c", str(source)]
    key = hashlib.sha256((headers + source.read_text() + " ".join(command)).encode()).hexdigest()[:16]
    out = ROOT / "build" / "cuda_host" / variant / f"{source.stem}-{key}.o"
    with _making(out) as partial:
        if partial:
            _run([*command, "-o", str(partial)])
    return out


def _jobs() -> int:
    """Compilers at once: a share of the cores for each process that runs tests."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    return int(os.environ.get("MAX_JOBS") or max(1, len(os.sched_getaffinity(0)) // workers))


def module(variant: str, sources: list[Path], name: str) -> Path:
    """The shared library of `sources` and the emulator, built if anything it is made from has changed."""
    parts = [*ROOT.glob("csrc/**/*.h"), *HERE.glob("*.h")]
    headers = "".join(part.read_text() for part in sorted(parts))
    # The bare ones last: of an inline function that several have, the first form is linked.
    sources = sorted([*sources, HERE / "cuda_emulation.cpp"], key=lambda source: source.name in _BARE)
    with ThreadPoolExecutor(_jobs()) as pool:
        objects = list(pool.map(lambda s: _object(s, variant, headers), sources))
    key = hashlib.sha256(" ".join(o.name for o in objects).encode()).hexdigest()[:16]
    out = ROOT / "build" / "cuda_host" / variant / f"{name}-{key}.so"
    with _making(out) as partial:
        if partial:
            libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]
            _run([*_CXX, "-shared", *SANITIZERS[variant], *map(str, objects), *libraries, "-o", str(partial)])
    return out


def package(variant: str, folder: Path) -> Path:
    """A copy of the package and its tests in `folder`, with the emulated CUDA kernels as its compiled module."""
    built = module(variant, [ROOT / "csrc" / "ops.cpp", *sorted(ROOT.glob("csrc/*/*.cu"))], "_C")
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "_build*", "cuda_host")
    for name in ("poh_ext", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(built, folder / "poh_ext" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}")
    return folder


def run_python(variant: str, arguments: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess:
    """Python with the sanitizer's runtime loaded first; exit status 66 if it found something."""
    runtime = [
        subprocess.run([*_CXX, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in _RUNTIME[variant]
    ]
    options = "exitcode=66:halt_on_error=1"
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "POH_EXT_BACKEND": "cpu",
        "LD_PRELOAD": " ".join(runtime),
        "TSAN_OPTIONS": f"{options}:ignore_noninstrumented_modules=1:report_thread_leaks=0",
        "ASAN_OPTIONS": f"{options}:detect_leaks=0",
        "UBSAN_OPTIONS": f"{options}:print_stacktrace=1",
        **env,
    }
    # ThreadSanitizer needs addresses that are not randomised.
    fixed = ["setarch", "-R"] if variant == "thread" and shutil.which("setarch") else []
    command = [*fixed, sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
