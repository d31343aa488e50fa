"""The states of torch's default generators: what dropout draws next."""

from __future__ import annotations

import torch

__all__ = ["random_state", "restore_random_state"]


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the random generators of the CPU and of the device, as CPU tensors."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
