"""Build poh_ext: drive CMake for the C++ kernels, or install without them and remember why.

Environment (see "Build switches" in README.md): POH_EXT_SKIP_BUILD, POH_EXT_REQUIRE_BUILD, MAX_JOBS.
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
X86 = platform.machine().lower() in ("x86_64", "amd64") and os.name == "posix"
MODULES = ["_C", "_C_avx2", "_C_avx512"] if X86 else ["_C"]


class CMakeBuild(build_ext):
    """Run CMake once for all modules; on failure install the pure PyTorch fallback and say why."""

    def run(self):
        package = ROOT / "poh_ext" if self.inplace or self.editable_mode else Path(self.build_lib) / "poh_ext"
        package.mkdir(parents=True, exist_ok=True)
        status = package / "_build_status.json"
        try:
            self.build_modules(Path(self.build_temp).resolve())
        except (OSError, subprocess.CalledProcessError) as error:
            reason = f"the C++ build failed: {error}"
            if isinstance(error, subprocess.CalledProcessError):
                reason += "\n" + "\n".join((error.output or "").strip().splitlines()[-15:])
            status.write_text(json.dumps({"built": False, "reason": reason}))
            if REQUIRE:
                raise
            print(f"\npoh_ext: {reason}\npoh_ext: installing the pure PyTorch fallback.\n", file=sys.stderr)
            self.extensions = []
            return
        status.write_text(json.dumps({"built": True, "reason": ""}))
        super().run()

    def build_modules(self, build: Path):
        self.modules = build / "modules"
        cmake = shutil.which("cmake") or "cmake"
        generator = ["-GNinja"] if shutil.which("ninja") else []
        self.call(cmake, "-S", ROOT, "-B", build, *generator, f"-DPython_EXECUTABLE={sys.executable}",
                  "-DCMAKE_BUILD_TYPE=Release", f"-DPOH_EXT_OUTPUT={self.modules}")
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


extensions = [] if SKIP else [Extension(f"poh_ext.{name}", []) for name in MODULES]
setup(ext_modules=extensions, cmdclass={"build_ext": CMakeBuild})
