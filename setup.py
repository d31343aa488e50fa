"""Build poh_ext: drive CMake for the C++ kernels, or install without them and remember why.

Environment (see "Build switches" in README.md): POH_EXT_SKIP_BUILD, POH_EXT_REQUIRE_BUILD, POH_EXT_CUDA, MAX_JOBS,
and what CMake itself reads (CXX, CUDACXX, TORCH_CUDA_ARCH_LIST).
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SKIP = os.environ.get("POH_EXT_SKIP_BUILD", "0") == "1"
REQUIRE = os.environ.get("POH_EXT_REQUIRE_BUILD", "0") == "1"
CUDA = os.environ.get("POH_EXT_CUDA", "")  # "": where nvcc is found
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
X86 = platform.machine().lower() in ("x86_64", "amd64") and os.name == "posix"
MODULES = ["_C", "_C_avx2", "_C_avx512"] if X86 else ["_C"]
if CUDA not in ("", "0", "1"):
    sys.exit(f"POH_EXT_CUDA={CUDA!r} is unknown; accepted: 0, 1")


def explain(what: str, error: Exception | str) -> str:
    lines = ((getattr(error, "output", None) or "").strip().splitlines())[-15:]
    if isinstance(error, subprocess.CalledProcessError):
        error = f"{Path(error.cmd[0]).name} ended with status {error.returncode}"
    return "\n".join([f"the {what} build failed: {error}", *lines])


class CMakeBuild(build_ext):
    """Run CMake; where it fails, install what there is without it and say why.

    The CUDA kernels have a build folder of their own, so that a failing nvcc leaves the C++ kernels as they are.
    """

    def run(self):
        package = ROOT / "poh_ext" if self.inplace or self.editable_mode else Path(self.build_lib) / "poh_ext"
        package.mkdir(parents=True, exist_ok=True)
        build = Path(self.build_temp).resolve()
        self.modules = build / "modules"
        reason = self.attempt("C++", build, REQUIRE, "installing the pure PyTorch fallback")
        if CUDA == "0" or not (NVCC or CUDA):
            cuda_reason = f"{'POH_EXT_CUDA=0' if CUDA else 'no nvcc was found'} when poh_ext was built"
        elif reason:
            cuda_reason = reason
        else:
            flags = ["-DPOH_EXT_CUDA=ON", "-DPOH_EXT_CAPABILITIES="]
            cuda_reason = self.attempt("CUDA", build / "cuda", CUDA == "1", "CUDA tensors get the fallback", *flags)
        status = {"built": not reason, "reason": reason, "cuda": not cuda_reason, "cuda_reason": cuda_reason}
        (package / "_build_status.json").write_text(json.dumps(status))
        built = [] if reason else [*MODULES, *([] if cuda_reason else ["_C_cuda"])]
        self.extensions = [e for e in self.extensions if e.name.split(".")[-1] in built]
        if self.extensions:
            super().run()

    def attempt(self, what: str, build: Path, required: bool, instead: str, *flags: str) -> str:
        """Why the build failed, '' if it did not; raises if it is required."""
        try:
            self.build_modules(build, *flags)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = explain(what, error)
            print(f"\npoh_ext: {reason}\npoh_ext: {instead}.\n", file=sys.stderr)
            if required:
                raise
            return reason
        return ""

    def build_modules(self, build: Path, *flags: str):
        cmake = shutil.which("cmake") or "cmake"
        generator = ["-GNinja"] if shutil.which("ninja") else []
        self.call(cmake, "-S", ROOT, "-B", build, *generator, f"-DPython_EXECUTABLE={sys.executable}",
                  "-DCMAKE_BUILD_TYPE=Release", f"-DPOH_EXT_OUTPUT={self.modules}", *flags)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        self.call(cmake, "--build", build, "--config", "Release", "--parallel", jobs)

    @staticmethod
    def call(*command):
        done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(done.stdout)
        done.check_returncode()

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        built = self.modules / target.name
        self.copy_file(str(built), str(target))


extensions = [] if SKIP else [Extension(f"poh_ext.{name}", []) for name in [*MODULES, "_C_cuda"]]
setup(ext_modules=extensions, cmdclass={"build_ext": CMakeBuild})
