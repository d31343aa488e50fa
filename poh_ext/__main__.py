"""Print which kernels were built, which are used, and why others are not.

`python -m poh_ext solve --help` shows how to solve mazes, `python -m poh_ext.bench --help` how to time the kernels.
"""

import sys

import poh_ext
from poh_ext._program import Parser, run


def main() -> int:
    if sys.argv[1:2] == ["solve"]:
        from poh_ext.solve.cli import main as solve

        return solve(sys.argv[2:])
    return run(_describe)


def _describe() -> int:
    parser = Parser(prog="python -m poh_ext", description=__doc__)
    parser.add_argument("--brief", action="store_true", help="print one line: the backend that serves CPU tensors")
    info = poh_ext.backend_info()
    if parser.parse_args().brief:
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


if __name__ == "__main__":
    raise SystemExit(main())
