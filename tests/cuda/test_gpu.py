"""The CUDA kernels on a GPU: what only hardware shows. Skipped where torch sees none.

Their results are tested by the operators' own tests: see tests/cases/device.py.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import poh_ext
from poh_ext import models
from poh_ext.mazes import DENSITY
from tests.cases import device as on_device

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or on_device.DEVICE.type != "cpu",
    reason="needs a GPU, and the CPU beside it to compare with",
)
GPU = torch.device("cuda")


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(GPU, dtype)


def a_path_problem(batch=4, size=8, width=24, dtype=torch.float32):
    tasks = poh_ext.sample_tasks(batch, size, min_path=10, device=GPU)
    cells = size * size
    return {
        "logits": randn(batch, cells, cells, dtype=dtype).requires_grad_(),
        "hidden": randn(batch, cells, width, dtype=dtype).requires_grad_(),
        "weight": (randn(cells, width, seed=1) * width**-0.5).to(dtype).requires_grad_(),
        "targets": tasks.path,
        "candidates": tasks.mazes.neighbors(),
        "tasks": tasks,
    }


def calls(p):
    """name -> a call that returns (result, leaves or none)."""
    rows = {"rows": p["targets"], "ignore_index": -1}
    near = {"candidates": p["candidates"], "label_smoothing": 0.1}
    linear = poh_ext.multi_horizon_linear_cross_entropy
    flat = p["logits"].detach().flatten(0, 1).requires_grad_()
    labels = torch.arange(len(flat)).to(GPU) % 64
    q, k, v = (randn(len(p["hidden"]), 3, 64, 8, seed=i).requires_grad_() for i in range(3))
    scores = randn(999, 6).requires_grad_()
    return {
        "dense": lambda: (poh_ext.multi_horizon_cross_entropy(p["logits"], p["targets"], horizons=3, **rows),
                          [p["logits"]]),
        "dense, candidates": lambda: (poh_ext.multi_horizon_cross_entropy(p["logits"], p["targets"], **near, **rows),
                                      [p["logits"]]),
        "linear": lambda: (linear(p["hidden"], p["weight"], p["targets"], horizons=2, **rows),
                           [p["hidden"], p["weight"]]),
        "linear, candidates": lambda: (linear(p["hidden"], p["weight"], p["targets"], **near, **rows),
                                       [p["hidden"], p["weight"]]),
        "cross_entropy": lambda: (poh_ext.cross_entropy(flat, labels, label_smoothing=0.1), [flat]),
        "packed": lambda: (poh_ext.multi_horizon_cross_entropy(p["logits"], labels.view(-1, 64), horizons=[0, 2],
                                                               segments=labels.view(-1, 64) // 9), [p["logits"]]),
        "attention": lambda: (poh_ext.neighbor_attention(q, k, v, p["candidates"]).square().sum(), [q, k, v]),
        "route": lambda: (torch.stack([x.square().sum() for x in poh_ext.route(scores)]).sum(), [scores]),
        "routing_entropy": lambda: (poh_ext.routing_entropy(scores), [scores]),
    }  # fmt: skip


CALLS = list(calls(a_path_problem())) if torch.cuda.is_available() else []


def run(call):
    result, leaves = call()
    return (result.detach(), *torch.autograd.grad(result, leaves))


@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_for_the_device(name):
    call = calls(a_path_problem())[name]
    run(call)  # what a first call loads may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(call)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_each_time(name):
    call = calls(a_path_problem(batch=32))[name]
    first = run(call)
    for _ in range(5):
        for a, b in zip(first, run(call), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", CALLS)
def test_a_graph_of_them_replays(name):
    problem = a_path_problem()
    call = calls(problem)[name]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(call)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(call)
    leaf = call()[1][0]
    with torch.no_grad():
        leaf.mul_(0.5)
    graph.replay()
    for a, b in zip(captured, run(call), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CALLS)
def test_they_compile_whole(name):
    call = calls(a_path_problem())[name]
    leaves = call()[1]
    for a, b in zip(torch.autograd.grad(torch.compile(lambda: call()[0], fullgraph=True)(), leaves), run(call)[1:],
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("planner", ["BaselinePlanner", "PoHPlanner"])
@pytest.mark.parametrize("levers", [{}, {"valid_heads": 2, "norm": "post", "head": "moves", "positions": "none"}])
@pytest.mark.parametrize("compiled", [False, True])
def test_planners_agree_with_the_cpu_and_wait_for_nothing(planner, levers, compiled):
    torch.manual_seed(0)
    passes = {"R": 2} if planner == "PoHPlanner" else {}  # each takes the compiler its time
    model = getattr(models, planner)(8, d_model=32, n_heads=4, d_ff=64, depth=1, dropout=0.0, **passes, **levers)
    tasks = poh_ext.sample_tasks(6, 8, min_path=10)
    there = poh_ext.sample_tasks(6, 8, min_path=10, device=GPU)
    want = model(tasks.mazes, tasks.start, tasks.goal)
    model.to(GPU)
    call = torch.compile(model, fullgraph=True) if compiled else model
    call(there.mazes, there.start, there.goal)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = call(there.mazes, there.start, there.goal)
        found.square().mean().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), want, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", CALLS)
def test_they_wait_for_the_stream_they_are_called_in(name):
    """Inputs that are written late in a side stream: a kernel in any other would read what was there before."""
    problem = a_path_problem()
    call = calls(problem)[name]
    leaf = call()[1][0]
    with torch.no_grad():
        final = leaf * 2 + 1
    before = run(call)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
        torch.cuda._sleep(200_000_000)  # a tenth of a second
        leaf.copy_(final)
        with torch.enable_grad():
            late = run(call)
    torch.cuda.synchronize()
    after = run(call)
    assert not torch.equal(before[0], after[0])
    for a, b in zip(late, after, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("algorithm", poh_ext.GENERATORS)
@pytest.mark.parametrize("size", [1, (2, 9), 12, 16, 30, 70])
def test_the_mazes_of_the_cpu(algorithm, size):
    n = 64
    made = {d: poh_ext.generate_mazes(n, size, algorithm=algorithm, seed=3, start_index=5, device=d)
            for d in ("cpu", GPU)}  # fmt: skip
    height, width = (size, size) if isinstance(size, int) else size
    ends = torch.randint(height * width, (2, n), generator=torch.Generator().manual_seed(0))
    for form in ("passages", "neighbors", "valid_mask", "raster"):
        if form == "valid_mask" and height * width > 1000:
            continue
        a, b = (getattr(m, form) if form == "passages" else getattr(m, form)() for m in made.values())
        assert b.is_cuda and torch.equal(a, b.cpu()), form
    assert torch.equal(made["cpu"].free(), made[GPU].free().cpu())
    if algorithm not in DENSITY:
        assert torch.equal(made["cpu"].shortest_paths(*ends), made[GPU].shortest_paths(*ends.to(GPU)).cpu())
    assert torch.equal(made["cpu"].distances(ends[0]), made[GPU].distances(ends[0].to(GPU)).cpu())


def test_the_tasks_and_rollouts_of_the_cpu():
    tasks = {d: poh_ext.sample_tasks(500, 12, min_path=20, seed=4, device=d) for d in ("cpu", GPU)}
    scores = torch.randn(500, 144, 4, generator=torch.Generator().manual_seed(0))
    for name in ("start", "goal", "path", "length"):
        assert torch.equal(getattr(tasks["cpu"], name), getattr(tasks[GPU], name).cpu()), name
    walked = [poh_ext.greedy_rollout(scores.to(d), t) for d, t in tasks.items()]
    for name in ("reached", "optimal", "path", "steps"):
        assert torch.equal(getattr(walked[0], name), getattr(walked[1], name).cpu()), name


def test_more_logits_than_32_bits_can_count():
    """2.2e9 logits. The last row is read, its loss and gradient are those of torch on that row alone."""
    rows, classes = 33_600, 65_536
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("needs 12 GB of GPU memory")
    logits = torch.zeros(1, rows, classes, dtype=torch.bfloat16, device=GPU)
    logits[0, -1] = randn(classes, dtype=torch.bfloat16)
    logits.requires_grad_()
    targets = torch.tensor([[0, classes - 1]], device=GPU)
    read = torch.tensor([[rows - 1, -1]], device=GPU)
    loss = poh_ext.multi_horizon_cross_entropy(logits, targets, rows=read)
    (found,) = torch.autograd.grad(loss, logits)
    last = logits[0, -1].detach().double().requires_grad_()
    want = F.cross_entropy(last[None], targets[0, 1:])
    (exact,) = torch.autograd.grad(want, last)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0, -1].double(), exact, rtol=8e-3, atol=1e-6)
    assert not found[0, :-1].any()


BAD = """
import sys, torch, poh_ext
z, t = torch.zeros(1, 4, 5, device="cuda"), torch.tensor([[0, 1, 7]], device="cuda")
try:
    loss = poh_ext.multi_horizon_cross_entropy(z, t)
    torch.cuda.synchronize()
except Exception as error:
    print(type(error).__name__, error)
else:
    print("nothing was raised", loss)
"""


def outcome(**env):
    done = subprocess.run([sys.executable, "-c", BAD], capture_output=True, text=True, env={**os.environ, **env})
    return done.stdout, done.stderr


def test_an_index_out_of_range_stops_the_kernel():
    said, device = outcome(POH_EXT_CHECKS="0")
    assert "device-side assert" in said, said
    assert "targets: a class is out of range" in device, device


def test_an_index_out_of_range_is_named_where_checks_are_wanted():
    assert outcome(POH_EXT_CHECKS="1")[0].startswith("IndexError target"), outcome(POH_EXT_CHECKS="1")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_than_the_current_device():
    x = randn(4, 9, 9).to("cuda:1").requires_grad_()
    t = torch.randint(9, (4, 5), generator=torch.Generator().manual_seed(0)).to("cuda:1")
    loss = poh_ext.multi_horizon_cross_entropy(x, t)
    torch.testing.assert_close(loss, F.cross_entropy(x[:, :4].flatten(0, 1), t[:, 1:].flatten()))
    loss.backward()
    assert torch.cuda.current_device() == 0 and x.grad.device == x.device
