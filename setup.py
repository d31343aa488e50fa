"""Build poh_ext: drive CMake for the C++ kernels, or install without them and remember why.

Environment: "Build switches" in docs/install.md. What was asked for and cannot be had is one line on standard error and
a failed build. What was not asked for is left out; poh_ext/_build_status.json keeps the reason for the first import.

setuptools and not a backend made for CMake, because a build may succeed in part: the C++ kernels without the CUDA
ones, or Python alone.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
X86 = platform.machine().lower() in ("x86_64", "amd64") and os.name == "posix"
LEVELS = {"DEFAULT": "_C", "AVX2": "_C_avx2", "AVX512": "_C_avx512"} if X86 else {"DEFAULT": "_C"}
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")  # as in CMakeLists.txt


def switch(name: str, *, default: bool | None = False) -> bool | None:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"poh_ext: {name}={value!r} is unknown; accepted: 0, 1")
    return default if value == "" else value == "1"


def levels() -> list[str]:
    asked = re.findall(r"[^\s,;]+", os.environ.get("POH_EXT_CAPABILITIES", ""))
    if unknown := [level for level in asked if level not in LEVELS]:
        sys.exit(f"poh_ext: POH_EXT_CAPABILITIES: {unknown[0]!r} is unknown; accepted: {', '.join(LEVELS)}")
    return [level for level in LEVELS if level in asked or not asked]


CAPABILITIES = levels()
MODULES = ["_cpu_level", *(LEVELS[level] for level in CAPABILITIES)]
SKIP, REQUIRE = switch("POH_EXT_SKIP_BUILD"), switch("POH_EXT_REQUIRE_BUILD")
CUDA = switch("POH_EXT_CUDA", default=None)
if SKIP and (REQUIRE or CUDA):
    sys.exit("poh_ext: POH_EXT_SKIP_BUILD=1 contradicts POH_EXT_REQUIRE_BUILD=1 and POH_EXT_CUDA=1: set one of them")


def find_nvcc() -> str | None:
    """nvcc as CMake would find it: CUDACXX, PATH, CUDA_HOME or CUDA_PATH, the usual folder."""
    if os.environ.get("CUDACXX"):
        return shutil.which(os.environ["CUDACXX"].split()[0])
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(str(Path(home, "bin")) for home in homes if home)]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def explain(what: str, error: Exception) -> str:
    """Why a build failed: the line that says it, then the last lines of the output."""
    lines = (getattr(error, "output", None) or "").strip().splitlines()
    if isinstance(error, subprocess.CalledProcessError):
        said = (line.strip() for line in lines if re.search(r"\b(error|fatal|No such file|not found)\b", line, re.I))
        error = next(said, f"{Path(error.cmd[0]).name} ended with status {error.returncode}")
    return "\n".join([f"the {what} build failed: {error}", *lines[-15:]])


def call(*command, env: dict | None = None):
    done = subprocess.run([str(c) for c in command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace")  # fmt: skip
    print(done.stdout, flush=True)
    done.check_returncode()


class CleanBuild(build):
    """A wheel has only what this build made; setuptools would pack whatever lies in build/lib from earlier ones."""

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Run CMake; where it fails and nobody insists, install what there is without it and say why.

    The CUDA kernels have a build folder of their own, so that a failing nvcc leaves the C++ kernels as they are.
    """

    def run(self):
        nvcc, cuda_reason = find_nvcc(), ""
        if CUDA and nvcc is None:
            sys.exit("poh_ext: POH_EXT_CUDA=1 asks for the CUDA kernels, but no nvcc was found; set CUDACXX to it, or "
                     "put it on PATH or under CUDA_HOME")  # fmt: skip
        package = ROOT / "poh_ext" if self.inplace or self.editable_mode else Path(self.build_lib) / "poh_ext"
        package.mkdir(parents=True, exist_ok=True)
        for old in [*package.glob("_C*.so"), *package.glob("_cpu_level*.so"), *package.glob("*.pyd")]:
            old.unlink()  # of earlier sources
        # setuptools gives an editable build a temporary folder; this one lasts, so only what changed is compiled.
        folder = ROOT / "build" / "editable" if self.editable_mode else Path(self.build_temp).resolve()
        self.modules = folder / "modules"
        shutil.rmtree(self.modules, ignore_errors=True)
        flags = [f"-DPOH_EXT_CAPABILITIES={';'.join(CAPABILITIES)}"]
        reason = self.attempt("C++", folder / "cpu", REQUIRE or CUDA, "the pure PyTorch fallback is installed", *flags)
        if CUDA is False:
            cuda_reason = "POH_EXT_CUDA=0 when poh_ext was built"
        elif nvcc is None:
            cuda_reason = "no nvcc was found when poh_ext was built"
        elif not CUDA and not self.torch_has_cuda():
            cuda_reason = "the torch that poh_ext was built with has no CUDA, and POH_EXT_CUDA=1 was not set"
        elif reason:
            cuda_reason = reason
        else:
            flags = ["-DPOH_EXT_CUDA=ON", "-DPOH_EXT_CAPABILITIES="]
            # CMake reads CUDACXX itself.
            flags += [] if os.environ.get("CUDACXX") else [f"-DCMAKE_CUDA_COMPILER={nvcc}"]
            cuda_reason = self.attempt("CUDA", folder / "cuda", CUDA, "CUDA tensors get the fallback", *flags)
        status = {"built": not reason, "reason": reason, "cuda": not cuda_reason, "cuda_reason": cuda_reason}
        (package / "_build_status.json").write_text(json.dumps(status))
        built = [] if reason else [*MODULES, *([] if cuda_reason else ["_C_cuda"])]
        self.extensions = [e for e in self.extensions if e.name.split(".")[-1] in built]
        if self.extensions:
            super().run()

    @staticmethod
    def torch_has_cuda() -> bool:
        try:
            import torch
        except ImportError:
            return False
        return torch.version.cuda is not None

    def attempt(self, what: str, folder: Path, required: bool | None, instead: str, *flags: str) -> str:
        """Why the build failed, '' if it did not; ends the program if the user insists on it."""
        try:
            self.build_modules(folder, *flags)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = explain(what, error)
            if required:
                sys.exit(f"poh_ext: {reason.splitlines()[0]}")
            print(f"\npoh_ext: {reason}\npoh_ext: {instead}.\n", file=sys.stderr)
            return reason
        return ""

    def build_modules(self, folder: Path, *flags: str):
        cmake, ninja = shutil.which("cmake") or "cmake", shutil.which("ninja")
        command = [cmake, "-S", ROOT, "-B", folder, *(["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
                   f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release",
                   f"-DPOH_EXT_OUTPUT={self.modules}", *flags]  # fmt: skip
        # CMake's cache holds paths into the environment of the build, which is gone when it was an isolated one: the
        # folder is kept only for the same tools, torch included.
        used = {name: os.environ.get(name, "") for name in ("CXX", "CUDACXX", "CXXFLAGS", "TORCH_CUDA_ARCH_LIST")}
        used |= {"command": list(map(str, command)), "path": sys.path}
        stamp, used = folder / "made_with.json", json.dumps(used, indent=1)
        if not stamp.exists() or stamp.read_text() != used:
            shutil.rmtree(folder, ignore_errors=True)
        call(*command)
        stamp.write_text(used)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        call(cmake, "--build", folder, "--config", "Release", "--parallel", jobs)

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(self.modules / target.name), str(target))


def readme_without_links() -> str:
    """README.md as a package index shows it: the project has no address there, so relative links become text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n+", "", text, flags=re.M)
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:)([^)#]*)[^)]*\)",
                  lambda m: m[1] if m[1] == m[2] else f"{m[1]} ({m[2]})", text)  # fmt: skip


names = [] if SKIP else [*MODULES, "_C_cuda"]
setup(
    ext_modules=[Extension(f"poh_ext.{name}", [], py_limited_api=LIMITED_API) for name in names],
    cmdclass={"build": CleanBuild, "build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED_API else {},
    long_description=readme_without_links(),
    long_description_content_type="text/markdown",
)
