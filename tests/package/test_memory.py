"""Memory is flat over many calls of each operator, and each can be called from many threads at once."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from poh_ext._backend import has_kernel
from tests.cases.calls import calls

MEMORY = Path(__file__).with_name("memory.py")
THREADS = 8
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory in use in /proc")


def memory(*options: str) -> None:
    """Run memory.py, in a process of its own: what other tests freed would hide what is kept here."""
    done = subprocess.run([sys.executable, MEMORY, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_proc
def test_memory_is_flat():
    memory("--calls", "200", "--slow-calls", "25")


@needs_proc
@pytest.mark.skipif(not has_kernel(torch.device("cpu")), reason="the reference gets no strings from torch")
def test_the_name_of_a_generator_is_freed():
    """Of 48 bytes a call that torch's own conversion keeps, only many calls tell."""
    memory("--calls", "40000", "--only", "generate_mazes percolation")


@needs_proc
def test_what_is_kept_is_seen():
    kept = "kept = []; print(growth(lambda: kept.append(torch.ones(1 << 16)), 100) - MOST)"
    code = f"import torch; from tests.package.memory import MOST, growth; {kept}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=MEMORY.parents[2])
    assert int(done.stdout) > 0, done.stderr


def test_eight_threads_at_once_get_what_one_gets():
    """Bit for bit: each thread makes every call, each starting with another one."""
    operators = calls()
    names = list(operators)
    expected = {name: operators[name]() for name in names}
    start, wrong = threading.Barrier(THREADS), []

    def work(number: int) -> None:
        try:
            start.wait(60)
            shift = number * len(names) // THREADS
            for name in 3 * (names[shift:] + names[:shift]):
                found = operators[name]()
                wrong.extend(name for a, b in zip(found, expected[name], strict=True) if not torch.equal(a, b))
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    assert wrong == []
