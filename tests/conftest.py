"""What the tests share: pytest's header and closing notes, one compile cache a run, and tests that run side by side.

Side by side (pytest-xdist, as `make test` does), each worker has one thread, files with slow tests start first, and the
tests of a file stay with one worker, which makes a module's fixtures once.
"""

import atexit
import os
import shutil
import tempfile

# Before torch: threads of several workers that wait for each other's cores would be all the time spent.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: they would wait for the other tests to end
# The compile cache is keyed by an operator's name, not by its fake: an earlier version's entry would be used.
# The workers get the controller's.
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="poh_ext_inductor_")
    atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)

import pytest
import torch

import poh_ext
from tests.cases import device as on_device


def pytest_configure(config) -> None:
    on_device.start()
    config.addinivalue_line("markers", "slow: takes seconds; started first where tests run side by side")
    config.addinivalue_line("markers", "release: takes half a minute; `make test-all` runs it, `make test` does not")


def pytest_report_header() -> str:
    info = poh_ext.backend_info()
    cpu = info["cpu"].splitlines()[0]
    return f"poh_ext: cpu = {cpu}; requested = {info['requested']}; tested on {on_device.DEVICE}"


def pytest_collection_modifyitems(config, items) -> None:
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)  # otherwise in the order of the files


@pytest.fixture
def note(record_property):
    """note(line): say it at the end of the run, whichever process ran the test."""
    return lambda line: record_property("note", line)


def pytest_terminal_summary(terminalreporter) -> None:
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "note":
                terminalreporter.write_line(value)


@pytest.fixture
def one_thread():
    """For tiny models: on a busy machine, threads that wait for each other would be all the time spent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def blank_pictures(monkeypatch):
    """For runs whose pictures no test looks at: they are composed and written, but one pixel of them is rendered.

    Rendering them is most of the time of a run on tiny mazes.
    """
    try:
        from matplotlib.figure import Figure
        from PIL import Image
    except ImportError:
        return  # a run says so itself
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: Image.new("RGB", (1, 1)).save(file, format="png"))
