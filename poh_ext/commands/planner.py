"""The options that say which trained planner runs, and how: of `solve` and `evaluate`."""

from __future__ import annotations

import argparse

import torch

from poh_ext._program import Parser, number
from poh_ext.bench.machine import why_not_usable
from poh_ext.models.inference import SETTLED
from poh_ext.solve.pretrained import NAMES, Recipe

__all__ = ["add_planner", "device_of", "planner_name"]


def add_planner(parser: Parser) -> None:
    parser.add_argument(
        "--weights",
        default="baseline",
        metavar="baseline|poh|FILE",
        help="the planner: one of the package, or a file written by --save-weights of a benchmark (default: baseline)",
    )
    parser.add_argument(
        "--tolerance",
        type=number("units of the state", least=0),
        default=SETTLED,
        metavar="T",
        help="largest change of a state that counts as none; a cell that changes by no more rests "
        "until a neighbour changes, which saves time in large mazes. 0: compute every cell in every "
        f"pass (default: {SETTLED:g}); at least the planner's own rest",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="torch device of the planner: cpu, cuda, cuda:1, mps; cells at rest save time on the CPU only (default: "
        "cpu)",
    )


def device_of(parser: Parser, options: argparse.Namespace) -> torch.device:
    try:
        device = torch.device(options.device)
    except RuntimeError:
        parser.error(f"argument --device: must be a torch device (cpu, cuda, cuda:1, mps), got {options.device!r}")
    if reason := why_not_usable(device, torch.float32):
        parser.error(f"argument --device: torch cannot compute on {options.device} ({reason})")
    return device


def planner_name(weights: str, recipe: Recipe) -> str:
    """What --weights calls the planner; of a file the row that it was trained as."""
    return weights if weights in NAMES else f"{weights} ({recipe.planner})"
