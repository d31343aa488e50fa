"""Print which kernels were built, which are used, and why others are not.

`poh-ext --help` lists the other commands, `poh-ext solve --help` shows how to solve mazes.
"""

from __future__ import annotations

from collections.abc import Sequence

import poh_ext
from poh_ext._program import Parser, run

__all__ = ["main"]


def main(arguments: Sequence[str], *, program: str = "poh-ext info") -> int:
    return run(_main, arguments, program)


def _main(arguments: Sequence[str], program: str) -> int:
    parser = Parser(prog=program, description=__doc__)
    parser.add_argument("--brief", action="store_true", help="print one line: the backend that serves CPU tensors")
    info = poh_ext.backend_info()
    if parser.parse_args(arguments).brief:
        print(f"poh_ext {poh_ext.__version__}: {info['cpu'].splitlines()[0]}")
        return 0
    for key, value in info.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, item in value.items():
                print(f"  {name}: {item}")
        else:
            print(f"{key}: {value}")
    return 0
