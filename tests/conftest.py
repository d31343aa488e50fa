"""Say which backend the run tests, in pytest's header; compile with a cache of this run alone."""

import atexit
import os
import shutil
import tempfile

# The compile cache is keyed by an operator's name, not by its fake: an earlier version's entry would be used.
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="poh_ext_inductor_")
    atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)

import pytest
import torch

import poh_ext


def pytest_report_header() -> str:
    info = poh_ext.backend_info()
    return f"poh_ext: cpu = {info['cpu'].splitlines()[0]}; requested = {info['requested']}"


@pytest.fixture
def one_thread():
    """For tiny models: on a busy machine, threads that wait for each other would be all the time spent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
