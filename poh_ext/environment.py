"""Where a run was made (versions, hardware, backends, precision), so that a reader can judge its numbers."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from poh_ext._backend import backend_info

__all__ = ["cpu_name", "describe_environment"]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    """What /proc/cpuinfo calls the CPU, or less where there is no such file."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_environment(device: str | torch.device = "cpu", precision: str = "float32") -> dict:
    """Versions, hardware, backends and precision of this process, as plain values.

    Args:
        device: device of the models; for a CUDA device its name and memory are added.
        precision: arithmetic of the models, e.g. "float32" or "bfloat16 autocast".
    """
    device = torch.device(device)
    hardware = {
        "device": str(device),
        "cpu": cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware["gpu"] = properties.name
        hardware["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
    names = ("poh_ext", "torch", "numpy", "scipy", "matplotlib")
    versions = {"python": platform.python_version(), **{name: _version(name) for name in names}}
    info = backend_info()
    return {"versions": versions, "hardware": hardware, "backend_info": info, "precision": precision}
