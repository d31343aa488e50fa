"""Devices without kernels (MPS, XPU, ...): the fallback stays wholly on the device of its arguments.

None of them is at hand here, so `meta` tensors stand in, which refuse to give up a value, and every operator of PyTorch
that runs is watched for tensors that are elsewhere. (FakeTensors that claim to be on CUDA or MPS cannot be sliced or
differentiated by a PyTorch built without these.)
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import poh_ext
from poh_ext.reference import maze_generate


class Watch(TorchDispatchMode):
    """Notes the operators whose results are on another device; single numbers may be anywhere."""

    def __init__(self, device):
        super().__init__()
        self.device, self.calls, self.elsewhere = device, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls += 1
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.dim() > 0 and t.device.type != self.device:
                self.elsewhere.append(f"{function} -> {list(t.shape)} on {t.device}")
        return out


def floats(*shape, device, dtype=torch.float32):
    return torch.empty(shape, device=device, dtype=dtype, requires_grad=device == "meta")


def cells(*shape, device):
    return torch.zeros(shape, dtype=torch.int64, device=device)


def mazes(device):
    return poh_ext.MazeBatch(torch.zeros(2, 3, 4, dtype=torch.uint8, device=device), check=False)


def dense(device, **options):
    path = cells(2, 5, device=device)
    options = {name: value(device) for name, value in options.items()}
    return poh_ext.multi_horizon_cross_entropy(
        floats(2, 9, 9, device=device), path, rows=path, horizons=2, label_smoothing=0.1, **options
    )


def linear(device):
    path, hidden, weight = cells(2, 5, device=device), floats(2, 9, 8, device=device), floats(9, 8, device=device)
    candidates = cells(2, 9, 4, device=device)
    return poh_ext.multi_horizon_linear_cross_entropy(hidden, weight, path, rows=path, candidates=candidates)


def neighbor_attention(device):
    q, k, v = (floats(2, 3, 9, 4, device=device) for _ in range(3))
    tables = {"bias": floats(3, 5, device=device), "key_offset": floats(3, 5, 4, device=device)}
    return poh_ext.neighbor_attention(q, k, v, cells(2, 9, 4, device=device), **tables).sum()


WORK = {
    "loss": dense,
    "loss, valid": lambda d: dense(d, valid=lambda d: torch.ones(2, 9, 9, dtype=torch.bool, device=d)),
    "loss, candidates": lambda d: dense(d, candidates=lambda d: cells(2, 9, 4, device=d)),
    "loss, all": lambda d: dense(
        d,
        weight=lambda d: torch.ones(9, device=d),
        z_loss=lambda _: 1e-4,
        softcap=lambda _: 30.0,
        horizon_weights=lambda d: torch.ones(2, device=d),
        reduction=lambda _: "position_mean",
    ),
    "linear loss": linear,
    "route": lambda d: sum(t.sum() for t in poh_ext.route(floats(3, 4, device=d), temperature=2.0)),
    "route, half": lambda d: sum(t.sum() for t in poh_ext.route(floats(3, 4, device=d, dtype=torch.float16))),
    "routing_entropy": lambda d: poh_ext.routing_entropy(floats(3, 4, device=d)),
    "neighbor_attention": neighbor_attention,
    "neighbors": lambda d: mazes(d).neighbors(),
    "valid_mask": lambda d: mazes(d).valid_mask(),
    "raster": lambda d: mazes(d).raster(),
    "percolation": lambda d: maze_generate.generate_mazes(torch.arange(2, device=d), 0, 3, 4, "percolation"),
    "dfs": lambda d: maze_generate.generate_mazes(torch.arange(2, device=d), 0, 3, 4, "dfs"),
    "prim": lambda d: maze_generate.generate_mazes(torch.arange(2, device=d), 0, 3, 4, "prim"),
    "kruskal": lambda d: maze_generate.generate_mazes(torch.arange(2, device=d), 0, 3, 4, "kruskal"),
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_no_value_leaves_the_device(work):
    """On meta, forward and backward: nothing asks for a value, nothing is made elsewhere."""
    with Watch("meta") as watch:
        out = work("meta")
        if out.requires_grad:
            out.backward()
    assert out.device.type == "meta" and watch.calls > 0
    assert not watch.elsewhere


def test_the_watch_sees_what_it_should():
    with Watch("meta") as watch:
        torch.zeros(3, device="meta") + torch.ones(3, device="meta")
        torch.arange(3)
    assert len(watch.elsewhere) == 1 and "arange" in watch.elsewhere[0]


def test_dtypes_without_a_fallback_are_named():
    with pytest.raises(TypeError, match="logits must be float32 or float64 or bfloat16 or float16, got float8_e4m3fn"):
        poh_ext.multi_horizon_cross_entropy(
            torch.empty(1, 2, 3, device="meta", dtype=torch.float8_e4m3fn), cells(1, 2, device="meta")
        )
    with pytest.raises(TypeError, match=r"logits must be float32.* got torch.complex64"):
        poh_ext.route(torch.empty(3, device="meta", dtype=torch.complex64))
