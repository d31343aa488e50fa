"""Plain transformer against Pointer-over-Heads, about 7 million parameters each, on 12x12 mazes.

    python experiments/run_12x12_8m_benchmark.py --quick    # a few minutes on 2 CPU cores
    python experiments/run_12x12_8m_benchmark.py --help     # every flag, its default and effect

The work is in poh_ext.training; this is only its command line.
"""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("poh_ext") is None:  # not installed: use the checkout this file lies in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from poh_ext.training.cli import main
    from poh_ext.training.config import Benchmark12x12Config
except ImportError as error:  # torch is missing, or POH_EXT_BACKEND asks for what there is not
    if __name__ != "__main__":
        raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main(Benchmark12x12Config, program="run_12x12_8m_benchmark.py"))
