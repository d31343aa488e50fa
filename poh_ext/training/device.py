"""Where a run computes and in which precision."""

from __future__ import annotations

import contextlib

import torch

from poh_ext.training.config import BenchmarkConfig, ConfigError

__all__ = ["autocast", "choose_device", "choose_precision", "cpu_has_bfloat16"]


def choose_device(config: BenchmarkConfig) -> torch.device:
    """CUDA, then MPS, then the CPU, unless the options name one; ConfigError if that one isn't there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    wanted = "cpu" if config.cpu else config.device
    if wanted == "auto":
        wanted = next(name for name, there in available.items() if there)
    if not available[wanted]:
        there = ", ".join(name for name, there in available.items() if there)
        raise ConfigError(f"--device {wanted}: torch {torch.__version__} sees no such device; here: {there}")
    return torch.device(wanted)


def cpu_has_bfloat16() -> bool:
    """True if this CPU multiplies bfloat16 natively (AVX-512 BF16 or AMX), usually at several times float32's speed,
    and oneDNN, whose products torch uses, may do so (ONEDNN_MAX_CPU_ISA can forbid it).

    Elsewhere bfloat16 is emulated and slower than float32.
    """
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if not any(getattr(torch.cpu, name, lambda: False)() for name in probes):
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_precision(config: BenchmarkConfig, device: torch.device) -> str:
    """'float32' or 'bfloat16'; 'auto' takes bfloat16 where the hardware has it."""
    if config.precision != "auto":
        return config.precision
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device.type == "cuda"
        else (device.type == "cpu" and cpu_has_bfloat16())
    )
    return "bfloat16" if native else "float32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast for the model's forward pass; nothing in float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
