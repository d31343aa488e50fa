"""Options that several commands of `python -m poh_ext solve` share."""

from __future__ import annotations

import argparse
import math

from poh_ext.models.without_graph import SETTLED

__all__ = ["at_least", "tolerance", "weights"]


def tolerance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tolerance", type=_not_negative, default=SETTLED, metavar="T",
                        help="a cell that a pass moves by no more rests until a neighbour moves, which takes the time "
                        f"out of large mazes; 0: every cell in every pass ({SETTLED:g})")


def _not_negative(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 0 and finite, got {text}")
    return value


def weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default="baseline", metavar="baseline|poh|FILE",
                        help="the planner: one that comes with the package, or a file that --save-weights of a "
                        "benchmark wrote (baseline)")


def at_least(least: int):
    def integer(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value
    return integer
