"""Plain transformer against Pointer-over-Heads, about 7 million parameters each, on 12x12 mazes.

    python experiments/run_12x12_8m_benchmark.py --quick    # a few minutes on 2 CPU cores
    python experiments/run_12x12_8m_benchmark.py --help     # every flag, its default and effect

The work is in poh_ext.training; this is only its command line.
"""

from _start import start

if __name__ == "__main__":
    start(__file__)
