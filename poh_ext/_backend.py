"""Load the C++ kernels, choose a backend, and explain why one is unavailable.

The choice is made once, at import: `POH_EXT_BACKEND=auto` (default) uses kernels where they exist and the
PyTorch reference elsewhere; `reference` never loads them; `cpu` and `cuda` insist and raise with the reason.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import torch

__all__ = ["backend_info", "has_kernel"]

_CHOICES = ("auto", "reference", "cpu", "cuda")
_MODULES = {"DEFAULT": "_C", "AVX2": "_C_avx2", "AVX512": "_C_avx512"}  # each CPU level runs those before it, too


def _build_status(key: str) -> str:
    """Why a module was not built, as setup.py recorded it under `key`; '' when nothing was recorded."""
    path = Path(__file__).with_name("_build_status.json")
    try:
        return json.loads(path.read_text()).get(key, "")
    except (OSError, ValueError):
        return ""


def _import_own(name: str):
    """Import the compiled module `name` that lies beside this file; ModuleNotFoundError if none does.

    An editable install puts a finder on sys.meta_path that would also offer another copy's.
    """
    if not any(Path(__file__).parent.glob(f"{name}.*")):
        raise ModuleNotFoundError(name)
    return importlib.import_module(f"poh_ext.{name}")


def _is_stale(module) -> bool:
    """True if the schemas (csrc/ops.cpp, beside the package in a source tree) changed after `module` was built."""
    source = Path(__file__).parents[1] / "csrc" / "ops.cpp"
    return source.exists() and hashlib.sha256(source.read_bytes()).hexdigest() != module.build_info()["schemas"]


def _cpu_level() -> str | None:
    """The best of _MODULES that this CPU and its operating system can run, whatever torch was told; None if the module
    that asks the CPU cannot be loaded."""
    try:
        return _import_own("_cpu_level").build_info()["level"]
    except ImportError:
        return None


def _levels(wanted: str, can_run: str) -> tuple[list[str], str]:
    """The levels to try, best first, and what to tell the user if that is less than torch was told to use.

    torch takes ATEN_CPU_CAPABILITY at its word; loading code that the CPU cannot run would end the process (SIGILL).
    """
    order = list(_MODULES)
    wanted = wanted if wanted in order else "DEFAULT"  # another architecture's levels: one module serves them all
    best = min(order.index(wanted), order.index(can_run))
    note = ""
    if order[best] != wanted:
        note = (
            f"torch was told to use {wanted} (ATEN_CPU_CAPABILITY), which this CPU cannot run; poh_ext uses its "
            f"{order[best]} kernels, and torch itself may end with an illegal instruction"
        )
    return order[best::-1], note


def _load():
    """Import the best module this CPU runs; return (module or None, reason it is None, notes for the user)."""
    reasons = []
    level = _cpu_level()
    if level is not None:
        levels, note = _levels(torch.backends.cpu.get_cpu_capability(), level)
    else:
        levels, note = ["DEFAULT"], ""
        if any(Path(__file__).parent.glob("_C_avx*")):
            note = (
                "the module _cpu_level, which asks the CPU what it can run, cannot be loaded; the DEFAULT kernels "
                "serve, the slowest: install again"
            )
    notes = [note] if note else []
    for name in map(_MODULES.get, levels):
        try:
            module = _import_own(name)
        except ModuleNotFoundError:
            continue  # this level was not built
        except ImportError as error:
            reasons.append(f"{name}: {error}")
            continue
        if _is_stale(module):
            return None, f"{name} was built from another csrc/ops.cpp: build again (make install)", notes
        if reasons:
            notes.append(f"{name} serves, because a faster module cannot be loaded: {'; '.join(reasons)}")
        return module, "", notes
    built = _build_status("reason") or "no compiled module is installed (POH_EXT_SKIP_BUILD=1, or run from source)"
    return None, "; ".join(reasons) or built, notes


def _load_cuda():
    """Import the CUDA kernels where torch has CUDA; return (module or None, reason it is None).

    No device is needed for it, and none is looked for: asking the driver now would break a later fork.
    """
    if _module is None:
        return None, f"they need the C++ module: {_reason}"
    if torch.version.cuda is None:
        return None, "this torch is built without CUDA"
    try:
        return _import_own("_C_cuda"), ""
    except ModuleNotFoundError:
        return None, _build_status("cuda_reason") or "not built (POH_EXT_CUDA=0, or no nvcc when poh_ext was built)"
    except ImportError as error:
        _notes.append(
            f"the CUDA kernels were built, but cannot be loaded; the PyTorch reference serves CUDA tensors, "
            f"slower: {error}"
        )
        return None, f"_C_cuda: {error}"


def _registered(key: str) -> frozenset:
    """Names of the ops of poh_ext that have a kernel for a dispatch key."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return frozenset(n.removeprefix("poh_ext::") for n in names if n.startswith("poh_ext::"))


_requested = os.environ.get("POH_EXT_BACKEND") or "auto"
if _requested not in _CHOICES:
    raise ImportError(f"POH_EXT_BACKEND={_requested!r} is unknown; accepted: {', '.join(_CHOICES)}")

_module, _reason, _notes = (None, "POH_EXT_BACKEND=reference", []) if _requested == "reference" else _load()
_build = _module.build_info() if _module is not None else {}
_cuda_module, _cuda_reason = _load_cuda()
_kernels = {"cpu": _registered("CPU")} if _module is not None else {}
if _cuda_module is not None:
    _kernels["cuda"] = _registered("CUDA")
    _build["cuda"] = _cuda_module.build_info()

if _requested == "cpu" and _module is None:
    raise ImportError(f"POH_EXT_BACKEND=cpu was asked for, but the C++ kernels are unavailable: {_reason}")
if _requested == "cuda":
    if _cuda_module is None:
        raise ImportError(f"POH_EXT_BACKEND=cuda was asked for, but the CUDA kernels are unavailable: {_cuda_reason}")
    if not torch.cuda.is_available():
        raise ImportError("POH_EXT_BACKEND=cuda was asked for, but torch sees no CUDA device")
if _requested == "auto" and _module is None:
    warnings.warn(
        f"poh_ext: C++ kernels unavailable ({_reason.splitlines()[0]}); using the PyTorch reference, same results, "
        "slower. `python -m poh_ext` tells more; POH_EXT_BACKEND=reference silences this.",
        RuntimeWarning,
        stacklevel=2,
    )
for _note in _notes:
    warnings.warn(f"poh_ext: {_note}", RuntimeWarning, stacklevel=2)
_silent_about_cuda = _requested == "reference" or bool(_notes)
_gpus: dict[int, str] = {}  # of each GPU that was asked: why the kernels cannot run on it, or ""


def _why_not_on(capability: tuple[int, int], architectures: str) -> str:
    """Why kernels built for `architectures` ("8.0 9.0+PTX") cannot run on a GPU of this compute capability, or ''.

    Code of a version runs on GPUs of the same major and at least the same minor version; PTX on all from its own on.
    """
    for each in architectures.split():
        number, _, ptx = each.partition("+")
        built = tuple(int(part) for part in number.rstrip("af").split("."))
        if capability[0] == built[0] and capability[1] >= built[1]:
            return ""
        if ptx and capability >= built and number[-1] not in "af":
            return ""
    here = ".".join(map(str, capability))
    return (
        f"the CUDA kernels were built for {architectures}, and this GPU is a {here}; build again with "
        f"TORCH_CUDA_ARCH_LIST={here}"
    )


def _why_not_on_gpu(device: torch.device) -> str:
    """The same of a GPU; '' where there is none to ask, and in a compilation, which must not ask."""
    if device.index in _gpus:  # of every tensor but the first of its GPU: this is asked at every call
        return _gpus[device.index]
    if torch.compiler.is_compiling() or not torch.cuda.is_available():
        return ""
    index = torch.cuda.current_device() if device.index is None else device.index
    why = _why_not_on(torch.cuda.get_device_capability(index), _build["cuda"]["architectures"])
    return _gpus.setdefault(index, why)


def has_kernel(device: torch.device, op: str | None = None) -> bool:
    """True if compiled kernels serve tensors on `device`; the PyTorch reference serves all others.

    A warning is given once, at the first CUDA tensor that the reference serves.
    op: the name of an op of poh_ext that not every compiled backend has.
    """
    global _silent_about_cuda
    why = _cuda_reason or "off"
    if device.type in _kernels:
        why = _why_not_on_gpu(device) if device.type == "cuda" else ""
        if not why:
            return op is None or op in _kernels[device.type]
        if _requested == "cuda":
            raise RuntimeError(f"POH_EXT_BACKEND=cuda was asked for, but {why}")
    if device.type == "cuda" and not _silent_about_cuda and not torch.compiler.is_compiling():
        _silent_about_cuda = True
        text = f"poh_ext: the PyTorch reference serves CUDA tensors, slower: {why.splitlines()[0]}"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
    return False


def backend_info() -> dict[str, Any]:
    """What was built, what is used, and why not more.

    Returns:
        Plain values, which JSON can hold. They are the requested and the used backend per device, the loaded module and
        its build (compiler, CPU capability, torch it was built against), and the reason where a part is missing.

    Examples:
        >>> poh_ext.backend_info()["cpu"]
        'C++ kernels (AVX512)'
    """
    if _module is not None:
        cpu = f"C++ kernels ({_build['cpu_capability']})"
    else:
        cpu = f"PyTorch reference: {_reason}"
    if "cuda" in _kernels and torch.cuda.is_available():
        why = _why_not_on_gpu(torch.device("cuda"))
        cuda = f"PyTorch reference: {why}" if why else "CUDA kernels"
    elif "cuda" in _kernels:
        cuda = "CUDA kernels built, but torch sees no CUDA device"
    else:
        cuda = f"PyTorch reference: {_cuda_reason}"
    return {
        "requested": _requested,
        "cpu": cpu,
        "cuda": cuda,
        "mps": "PyTorch reference" + ("" if torch.backends.mps.is_available() else " (no MPS device here)"),
        "build": dict(_build),
        "unavailable_because": _reason,
        "notes": list(_notes),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_level": "not asked" if _requested == "reference" else _cpu_level() or "unknown",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
