"""Does a planner fit the machine? What training it takes, counted without allocating it, against what is free."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from poh_ext.models import PlannerConfig
from poh_ext.models.parity import OnlyShapes
from poh_ext.models.planners import build
from poh_ext.training.device import autocast

__all__ = ["available_memory", "describe_bytes", "misfit", "training_memory"]

FIXED = 256 << 20  # mazes of a batch, chunks of the loss, the allocator's slack
FRAGMENTED = 1.25  # measured: see training_memory
SPARE = 0.9  # of what is free: the rest is left to others
_CGROUPS = Path("/sys/fs/cgroup")


def training_memory(planner: PlannerConfig, size: int, batch: int, *, device: torch.device, precision: str,
                    passes: int | None = None) -> int:
    """Bytes that a training step needs at its peak, on so many mazes, with gradients through so many passes (None: the
    planner's own number).

    16 bytes per parameter (float32 weight, gradient, AdamW's two moments); what autograd keeps of the forward pass,
    and a quarter more, which the allocator leaves unused between tensors; as much as the five largest kept tensors for
    the backward pass's own. Within a fifth of the measured growth of the process for tiny to medium planners on a
    CPU. Run on fake tensors: no arithmetic, no memory.
    """
    place = device if device.type in ("cpu", "cuda") else torch.device("cpu")
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with FakeTensorMode(), torch.device(place):
        model = build(planner, size).train()
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        cells = torch.zeros(batch, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast(place, precision):
            out = model.unchecked_states(OnlyShapes(batch, size, size, place), cells, cells, (passes or planner.R,))
        sizes = sorted((s.nbytes() for key, s in kept.items() if key not in weights), reverse=True)
        del out
    parameters = sum(p.numel() for p in model.parameters())
    return 16 * parameters + int(FRAGMENTED * sum(sizes)) + sum(sizes[:5]) + FIXED


def available_memory(device: torch.device, *, meminfo: Path = Path("/proc/meminfo"), cgroups: Path = _CGROUPS) -> int:
    """Bytes free on the device; on the CPU what the kernel could give and the container may take, the smaller."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used in (("memory.max", "memory.current"),
                        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):  # cgroups v2, v1
        try:
            free = min(free, int((cgroups / limit).read_text()) - int((cgroups / used).read_text()))
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return max(free, 0)


def misfit(needed: int, available: int) -> str | None:
    """Why a training step that needs so many bytes cannot run where so many are free; None if it can."""
    if needed <= SPARE * available:
        return None
    return f"training needs about {describe_bytes(needed)}, but only {describe_bytes(available)} are free"


def describe_bytes(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
