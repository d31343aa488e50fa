"""The operators' tests on another device than the CPU: `POH_EXT_TEST_DEVICE=cuda python -m pytest ...`.

What a test makes is then made there: tensors of torch's factories, mazes and tasks. Random numbers still come from the
CPU's generators, so that a test has the same inputs on every device.
"""

import os

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

import poh_ext

DEVICE = torch.device(os.environ.get("POH_EXT_TEST_DEVICE") or "cpu")


class OnDevice(TorchFunctionMode):
    """torch.set_default_device, but generators of the CPU are accepted."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        generator = kwargs.get("generator")
        if func in _device_constructors() and kwargs.get("device") is None:
            if generator is not None:
                leaf = kwargs.pop("requires_grad", False)
                return func(*args, **kwargs).to(DEVICE).requires_grad_(leaf)
            kwargs["device"] = DEVICE
        elif generator is not None and any(isinstance(x, torch.Tensor) and not x.is_cpu
                                           for x in (*args, *kwargs.values())):  # fmt: skip
            kwargs["generator"] = torch.Generator(DEVICE).manual_seed(generator.initial_seed())
        return func(*args, **kwargs)


def start() -> None:
    """Make everything on DEVICE from here on. Does nothing if that is the CPU."""
    if DEVICE.type == "cpu":
        return
    for made in (poh_ext.generate_mazes, poh_ext.sample_tasks, poh_ext.MazeBatch.open.__func__):
        made.__kwdefaults__["device"] = DEVICE
    OnDevice().__enter__()
