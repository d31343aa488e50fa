"""The CUDA kernels in a real torch with CUDA; no GPU is needed. `make test-cuda-torch` sets up the environment.

Fake tensors on the device "cuda" go through the dispatcher as real ones would, as far as shapes and devices.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import poh_ext
from poh_ext import _backend

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="this torch has no CUDA: `make test-cuda-torch` runs these tests in one that has"
)

CUDA_OPS = {
    line.split('"')[1]
    for source in ROOT.glob("csrc/*/*.cu")
    for line in source.read_text().splitlines()
    if 'm.impl("' in line
}


def test_the_module_loads_and_every_op_has_its_kernel():
    assert _backend._cuda_module is not None, _backend._cuda_reason
    assert set(_backend._kernels["cuda"]) == CUDA_OPS and "horizon_ce" in CUDA_OPS
    for op in CUDA_OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"poh_ext::{op}", "CUDA"), op


def test_nothing_is_said_at_import_where_all_is_well():
    code = "import poh_ext, json; print(json.dumps(poh_ext.backend_info()))"
    done = subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], capture_output=True, text=True,
                          cwd=ROOT, env={**os.environ, "POH_EXT_BACKEND": "auto"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cuda"].startswith("CUDA kernels")


def cross_entropy(**options):
    logits = torch.empty(2, 9, 9, device="cuda", requires_grad=True)
    targets = torch.zeros(2, 5, dtype=torch.int64, device="cuda")
    return [(poh_ext.multi_horizon_cross_entropy(logits, targets, **options), ())]


def with_candidates():
    return cross_entropy(candidates=torch.zeros(2, 9, 4, dtype=torch.int64, device="cuda"), label_smoothing=0.1)


def linear_cross_entropy():
    hidden = torch.empty(2, 9, 8, device="cuda", requires_grad=True)
    weight = torch.empty(9, 8, device="cuda", requires_grad=True)
    targets = torch.zeros(2, 5, dtype=torch.int64, device="cuda")
    return [(poh_ext.multi_horizon_linear_cross_entropy(hidden, weight, targets, horizons=2), ())]


def routing():
    logits = torch.empty(7, 6, device="cuda", requires_grad=True)
    weights, entropy = poh_ext.route(logits)
    return [(weights, (7, 6)), (entropy, (7,)), (poh_ext.routing_entropy(logits), ())]


def attention():
    q, k, v = (torch.empty(2, 3, 9, 4, device="cuda", requires_grad=True) for _ in range(3))
    candidates = torch.zeros(2, 9, 4, dtype=torch.int64, device="cuda")
    return [(poh_ext.neighbor_attention(q, k, v, candidates), q.shape)]


def backward():
    """The autograd engine asks for a device, so the operators it would call are called by hand."""
    ops, none = torch.ops.poh_ext, (None, None, None)
    x, scalar = torch.empty(2, 9, 9, device="cuda"), torch.empty((), device="cuda")
    targets, lse = torch.zeros(2, 5, dtype=torch.int64, device="cuda"), torch.empty(2, 9, device="cuda")
    coefficients, weight = torch.empty(2, 5, 1, device="cuda"), torch.empty(7, 9, device="cuda")
    dense = ops.horizon_ce_backward(scalar, x, targets, *none, None, lse, coefficients, 0.0, -100, 0.0, 0.0)
    linear = ops.horizon_linear_ce_backward(scalar, x, weight, None, targets, *none, None, coefficients, 0.0, -100, 0.0,
                                            0.0, 3)  # fmt: skip
    q = torch.empty(2, 3, 9, 4, device="cuda")
    saved = ops.neighbor_attention(q, q, q, torch.zeros(2, 9, 4, dtype=torch.int64, device="cuda"), *none, True)
    near = ops.neighbor_attention_backward(saved[0], q, q, q, torch.zeros(2, 9, 4, dtype=torch.int64, device="cuda"),
                                           *none, saved[1])  # fmt: skip
    route = ops.route_backward(None, scalar, 1.0, weight, None, 1.0)
    return [(dense, x.shape), (linear[0], x.shape), (linear[1], weight.shape), (near[0], (2, 9, 3, 3, 4)),
            (route, weight.shape)]  # fmt: skip


def mazes():
    made = poh_ext.generate_mazes(2, 3, device="cuda")
    goal = torch.zeros(2, dtype=torch.int64, device="cuda")
    return [
        (made.passages, (2, 3, 3)),
        (made.neighbors(), (2, 9, 4)),
        (made.valid_mask(), (2, 9, 9)),
        (made.distances(goal), (2, 9)),
    ]


CALLS = [cross_entropy, with_candidates, linear_cross_entropy, routing, attention, backward, mazes]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_shapes_and_devices_of_fake_tensors(call):
    with FakeTensorMode():
        for tensor, shape in call():
            assert tensor.shape == torch.Size(shape) and tensor.device.type == "cuda"


def test_ops_whose_size_depends_on_values_have_a_fake_too():
    """Paths and endpoints are as long as the caller says; rollouts as max_steps says."""
    ops = torch.ops.poh_ext
    with FakeTensorMode():
        passages = torch.zeros(2, 3, 3, dtype=torch.uint8, device="cuda")
        cell = torch.zeros(2, dtype=torch.int64, device="cuda")
        path, length = ops.maze_shortest_paths(passages, cell, cell, 9)
        start, goal, cells = ops.maze_endpoints(passages, cell, 0, 2, 9)
        reached = ops.greedy_rollout(torch.zeros(2, 9, 9, device="cuda"), passages, cell, cell, 9, False)
        assert path.shape == (2, 9) and all(t.shape[0] == 2 for t in (length, start, goal, cells, *reached))
        assert {t.device.type for t in (path, length, start, goal, cells, *reached)} == {"cuda"}
