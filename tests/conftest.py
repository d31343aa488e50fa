"""Say which backend the run tests, in pytest's header."""

import poh_ext


def pytest_report_header() -> str:
    info = poh_ext.backend_info()
    return f"poh_ext: cpu = {info['cpu'].splitlines()[0]}; requested = {info['requested']}"
