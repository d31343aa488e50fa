"""What the tests share: pytest's header and closing notes, one compile cache a run, and tests that run side by side.

Side by side (pytest-xdist, as `make test` does), each worker has one thread, the slow tests start first, and tests
that share what is dear to make (@pytest.mark.xdist_group, or a fixture of a module) stay with one worker.
"""

import atexit
import os
import shutil
import tempfile

# Before torch: threads of several workers that wait for each other's cores would be all the time spent.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# The compile cache is keyed by an operator's name, not by its fake: an earlier version's entry would be used.
# The workers get the controller's.
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="poh_ext_inductor_")
    atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)

import pytest
import torch

import poh_ext


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "slow: takes seconds; started first where tests run side by side")
    config.addinivalue_line("markers", "xdist_group(name): tests of a name run in one process (pytest-xdist)")


def pytest_report_header() -> str:
    info = poh_ext.backend_info()
    return f"poh_ext: cpu = {info['cpu'].splitlines()[0]}; requested = {info['requested']}"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items) -> None:
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        if item.get_closest_marker("xdist_group") is None and shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # otherwise in the order of the files


def shares_a_fixture(item) -> bool:
    """True if the test has a fixture of these tests that is made once for a module or a class."""
    definitions = item._fixtureinfo.name2fixturedefs.values()
    return any(d.baseid and d.scope != "function" and not d.argname.startswith("_") for ds in definitions for d in ds)


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
