"""The CUDA kernels without a GPU: compiled for the host, run thread by thread, under the sanitizers too.

See tests/cuda/cuda_emulation.h for what that finds. First the means are tested on kernels with planted faults,
then the operators' own tests are run on the CUDA kernels, in a copy of the package where these serve the CPU.
"""

import os
import re

import pytest

from tests.cuda import build

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(build.unavailable()), reason=build.unavailable())]

CORRECT = ("rotate_block", "rotate_warp", "count_blocks", "past_the_end", "past_shared", "half_a_barrier",
           "outside_the_mask", "assertion")  # fmt: skip
PLANTED = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for which in sys.argv[3:]:
    x = torch.arange(6 * 64)
    try:
        torch.ops.poh_planted.run(x, which, sys.argv[2] == "correct")
        print(which, "ran", x[:2].tolist(), x[63].item(), flush=True)
    except Exception as error:
        print(which, type(error).__name__, str(error).splitlines()[0], flush=True)
"""


def planted(variant, form, *which, **env):
    library = build.module(variant, [build.HERE / "planted.cu"], "planted")
    return build.run_python(variant, ["-c", PLANTED, str(library), form, *which], build.ROOT, **env)


@pytest.mark.parametrize("variant", build.SANITIZERS)
def test_correct_kernels_pass_every_sanitizer(variant):
    done = planted(variant, "correct", *CORRECT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "rotate_block ran [1, 2] 0",
        "rotate_warp ran [1, 2] 32",
        "count_blocks ran [6, 1] 63",
        "past_the_end ran [1, 2] 64",
        "past_shared ran [63, 1] 63",
        "half_a_barrier ran [1, 2] 64",
        "outside_the_mask ran [3, 3] 63",
        "assertion ran [0, 1] 63",
    ]


def test_misuse_is_named():
    done = planted("plain", "faulty", "half_a_barrier", "outside_the_mask", "assertion", "rotate_block")
    assert done.returncode == 0, done.stderr
    barrier, mask, assertion, garbage = done.stdout.splitlines()
    assert "half_a_barrier RuntimeError CUDA emulation: block 0 is stuck: thread 0 waits at __syncthreads" in barrier
    assert "32 threads wait at __syncthreads" in barrier and "32 have ended" in barrier
    assert "shuffles from a lane that is not in the mask (mask 0000ffff)" in mask
    assert assertion == "assertion IndexError x[0] must be negative"
    assert garbage.startswith("rotate_block ran [-6510615555426900571")  # 0xA5...: shared memory nobody wrote yet


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_planted_races_are_found(order):
    """Between threads of a block, lanes of a warp (a shuffle is no barrier) and blocks."""
    races = ("rotate_block", "rotate_warp", "count_blocks")
    options = "halt_on_error=0:exitcode=66:ignore_noninstrumented_modules=1"
    done = planted("thread", "faulty", *races, TSAN_OPTIONS=options, POH_EMULATION_ORDER=order)
    assert done.returncode == 66
    for kernel in races:
        assert re.search(rf"ThreadSanitizer: data race tests/cuda/planted.cu:\d+ in {kernel}<false>", done.stderr)


@pytest.mark.parametrize("kernel", ["past_the_end", "past_shared"])
def test_planted_out_of_bounds_accesses_are_found(kernel):
    done = planted("address", "faulty", kernel)
    assert done.returncode == 66
    assert re.search(rf"AddressSanitizer: heap-buffer-overflow tests/cuda/planted.cu:\d+ in {kernel}<false>",
                     done.stderr)  # fmt: skip


# The tests of the operators that say nothing of kernels (compile, opcheck) or check the text of an index error: on
# CUDA, looking at the indices would cost a synchronisation, so there a device assertion names the argument only.
INDICES = "(bad_arguments and (target or row or candidate or class)) or (bad_input and IndexError) "
INDICES += "or cells_out_of_range or candidates_out_of_range"
SKIPPED = f"not compile and not opcheck and not out_of_range and not threads and not ({INDICES})"
NAMES = ("kernels/test_cross_entropy", "kernels/test_losses", "kernels/test_losses_forms",
         "kernels/test_losses_extremes", "kernels/test_losses_arguments", "kernels/test_linear_losses",
         "kernels/test_routing", "kernels/test_attention", "mazes/test_mazes", "mazes/test_tasks",
         "mazes/test_rollout")  # fmt: skip
OPERATORS = [f"tests/{name}.py" for name in NAMES]
COUNT = """
import ctypes, os, sys, pytest
from poh_ext import _C

class Sample:  # the strides are coprime to the number of values of every parameter
    def pytest_collection_modifyitems(self, items):
        items[:] = items[:: int(sys.argv[1])]

code = pytest.main(sys.argv[2:], plugins=[Sample()])
counts = (ctypes.c_int64 * 3)()
ctypes.CDLL(_C.__file__).poh_emulation_counts(counts)
print("executed: %d launches, %d CUDA threads, %d barriers and exchanges" % tuple(counts))
sys.exit(code)
"""


def run_operators(variant, folder, note, every, selection, **env):
    """Run one in `every` of the operators' tests on the CUDA kernels (POH_EXT_TEST_ALL=1: each) -> how many passed."""
    build.package(variant, folder)
    every = "1" if os.environ.get("POH_EXT_TEST_ALL") == "1" else str(every)
    options = [every, "-q", "-x", "-p", "no:cacheprovider", "-k", selection, *OPERATORS]
    done = build.run_python(variant, ["-c", COUNT, *options], folder, **env)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "failed" not in done.stdout and "runtime error" not in done.stderr
    executed = re.search(r"executed: (\d+) launches, (\d+) CUDA threads.*", done.stdout)
    note(f"CUDA kernels on the host, {variant} sanitizer: {done.stdout.splitlines()[-2]}; {executed[0]}")
    assert int(executed[1]) > 0 and int(executed[2]) > 0
    return int(re.search(r"(\d+) passed", done.stdout)[1])


def test_operators_under_address_sanitizer(tmp_path, note):
    """Results, gradients, bad arguments, and mazes to the bit, with every index watched."""
    assert run_operators("address", tmp_path, note, 17, SKIPPED) > 60


@pytest.mark.release
def test_operators_under_thread_sanitizer(tmp_path, note):
    """The same kernels, watched for races; threads in reverse order, on which nothing may depend."""
    selection = f"({SKIPPED}) and not gradcheck"
    assert run_operators("thread", tmp_path, note, 17, selection, POH_EMULATION_ORDER="reverse") > 50


def test_indices_are_named_where_checks_are_wanted(tmp_path, note):
    """With POH_EXT_CHECKS=1 a CUDA call waits for the device and raises what a CPU call does."""
    assert run_operators("address", tmp_path, note, 1, INDICES, POH_EXT_CHECKS="1") > 10


BAD_INDICES = """
import torch, poh_ext
logits, targets = torch.zeros(1, 4, 5), torch.tensor([[0, 1, 2]])
calls = {
    "targets: a class is out of range": lambda: poh_ext.multi_horizon_cross_entropy(logits, targets + 3),
    "rows: a row is out of range": lambda: poh_ext.multi_horizon_cross_entropy(logits, targets, rows=targets + 2),
    "candidates: a class is out of range": lambda: poh_ext.multi_horizon_cross_entropy(
        logits, targets, candidates=torch.full((1, 4, 2), 5)),
    "candidates: a cell is out of range": lambda: poh_ext.neighbor_attention(
        *logits.new_zeros(3, 1, 2, 4, 3), torch.full((1, 4, 2), 4)),
    "a goal is out of range for the cells of the maze": lambda: poh_ext.generate_mazes(1, 3).distances(
        torch.tensor([9])),
}
hidden, weight, pairs = torch.zeros(1, 4, 6), torch.zeros(5, 6), torch.full((1, 4, 2), -2)
linear = poh_ext.multi_horizon_linear_cross_entropy
for text, call in [
    *calls.items(),
    ("targets: a class is out of range", lambda: linear(hidden, weight, targets + 3)),
    ("rows: a row is out of range", lambda: linear(hidden, weight, targets, rows=targets + 2)),
    ("rows: a row is out of range", lambda: linear(hidden[:, :2], weight, targets, rows=targets + 2)),
    ("candidates: a class is out of range", lambda: linear(hidden, weight, targets, candidates=pairs)),
    ("candidates: a class is out of range", lambda: linear(hidden, weight, targets, candidates=pairs, horizons=2)),
]:
    try:
        call()
    except IndexError as error:
        assert str(error) == text, error
    else:
        raise AssertionError(text)
poh_ext.generate_mazes(3, 70).distances(torch.tensor([0, 5, 4899]))   # goes on after an error; needs a workspace
print("all raised")
"""


def test_indices_out_of_range_stop_the_kernel(tmp_path):
    done = build.run_python("address", ["-c", BAD_INDICES], build.package("address", tmp_path))
    assert done.returncode == 0 and done.stdout == "all raised\n", done.stdout + done.stderr
