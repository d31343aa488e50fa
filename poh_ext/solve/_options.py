"""Options that several commands of `python -m poh_ext solve` share."""

from __future__ import annotations

import argparse
import math

from poh_ext.models.without_graph import SETTLED

__all__ = ["at_least", "tolerance", "weights"]


def tolerance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tolerance", type=_not_negative, default=SETTLED, metavar="T",
                        help="largest change of a state that counts as none; a cell that changes by no more rests "
                        "until a neighbour changes, which saves time in large mazes. 0: compute every cell in every "
                        f"pass (default: {SETTLED:g})")


def _not_negative(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 0 and finite, got {text}")
    return value


def weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default="baseline", metavar="baseline|poh|FILE",
                        help="the planner: one of the package, or a file written by --save-weights of a benchmark "
                        "(default: baseline)")


def at_least(least: int):
    def integer(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value
    return integer
