"""The CUDA kernels without a GPU: compiled for the host, run thread by thread, under the sanitizers too.

See tests/cuda_host/cuda_emulation.h for what that finds. First the means are tested on kernels with planted faults,
then the operators' own tests are run on the CUDA kernels, in a copy of the package where these serve the CPU.
"""

import re

import pytest

from tests.cuda_host import build

pytestmark = pytest.mark.skipif(bool(build.unavailable()), reason=build.unavailable())

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
        assert re.search(rf"ThreadSanitizer: data race tests/cuda_host/planted.cu:\d+ in {kernel}<false>", done.stderr)


@pytest.mark.parametrize("kernel", ["past_the_end", "past_shared"])
def test_planted_out_of_bounds_accesses_are_found(kernel):
    done = planted("address", "faulty", kernel)
    assert done.returncode == 66
    assert re.search(rf"AddressSanitizer: heap-buffer-overflow tests/cuda_host/planted.cu:\d+ in {kernel}<false>",
                     done.stderr)  # fmt: skip
