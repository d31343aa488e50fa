"""Dtypes and backends shared by the tests."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from poh_ext import _backend
from poh_ext._backend import has_kernel
from tests.cases.device import DEVICE

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

KERNELS = has_kernel(DEVICE)
needs_kernels = pytest.mark.skipif(not KERNELS, reason="the C++ kernels are not used (POH_EXT_BACKEND or build)")


@contextlib.contextmanager
def reference() -> Iterator[None]:
    """In here the PyTorch reference serves, as with POH_EXT_BACKEND=reference."""
    kernels = _backend._kernels.pop(DEVICE.type, None)
    try:
        yield
    finally:
        if kernels is not None:
            _backend._kernels[DEVICE.type] = kernels


def tolerance(dtype: torch.dtype, *, grad: bool = False) -> dict:
    """For results accumulated in float32 (float64); grad=True: then rounded to dtype."""
    if dtype == torch.float64:
        return {"rtol": 1e-11, "atol": 1e-11}
    if grad and dtype == torch.bfloat16:
        return {"rtol": 8e-3, "atol": 1e-4}
    if grad and dtype == torch.float16:
        return {"rtol": 1e-3, "atol": 1e-5}
    return {"rtol": 2e-5, "atol": 2e-6}
