"""Plain transformer against Pointer-over-Heads on 16x16 mazes at five sizes, from 0.5 to 100 million parameters.

    python experiments/parameter_scaling_benchmark.py --quick      # a few minutes on 2 CPU cores
    python experiments/parameter_scaling_benchmark.py --dry-run    # models, memory and estimated time, nothing else
    python experiments/parameter_scaling_benchmark.py --help       # every flag, its default and effect

The work is in poh_ext.training; this is only its command line.
"""

from _start import start

if __name__ == "__main__":
    start(__file__)
