"""`python -m poh_ext.bench.growth` measures how time grows: it sweeps one size at a time and fits a slope on log axes.

A slope of 1 means that time is proportional to the size. A slope below 1 shows a fixed cost. The slope of a sweep over
threads should be -1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

import poh_ext
from poh_ext._figures import new_figure, save_png
from poh_ext._files import write_atomically
from poh_ext._optional import MissingPackage, require
from poh_ext._program import Parser, number, run
from poh_ext.bench import machine
from poh_ext.bench.case import with_gradients
from poh_ext.bench.timing import Spread, interleave

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CPU = torch.device("cpu")
START = {"B": 16, "N": 1024, "V": 1024, "K": 2}
SWEEPS = {
    "B": (2, 4, 8, 16, 32, 64),
    "N": (256, 512, 1024, 2048, 4096),
    "V": (128, 256, 512, 1024, 2048, 4096),
    "K": (1, 2, 4, 8, 16, 32),
}
READ = 256  # positions that read a row, whatever N is
SIDES = (8, 12, 16, 24, 32, 48)


def loss_step(B: int, N: int, V: int, K: int) -> Callable[[], tuple]:
    """Forward and backward of the dense loss at these sizes; READ of the N rows are read."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, N, V, generator=generator).requires_grad_()
    rows = torch.stack([torch.randperm(N, generator=generator)[:READ] for _ in range(B)])
    targets = torch.randint(V, rows.shape, generator=generator)

    def loss(x, t):
        return poh_ext.multi_horizon_cross_entropy(x, t, rows=rows, horizons=K, label_smoothing=0.1)

    return with_gradients(loss, (logits, targets))


def slope(sizes, seconds) -> float:
    """Least-squares slope of log seconds over log size, in the upper half of the sizes (the fixed cost is left out)."""
    half = min(len(sizes) // 2, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


def _digits(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _record(title: str, label: str, sizes, spreads: list[Spread], unit: str) -> dict:
    """One sweep as plain values; `unit` is what the seconds are counted per."""
    return {
        "title": title,
        "size": label,
        "sizes": list(sizes),
        "seconds": [vars(s) for s in spreads],
        "unit": unit,
        "slope": slope(sizes, [s.p50 for s in spreads]),
    }


def sweep(seconds: float) -> Iterator[dict]:
    """Yield each sweep when it is done; `seconds` is the time for each point."""

    def time(call) -> Spread:
        return Spread.of(interleave({"x": call}, CPU, seconds=seconds)["x"])

    for name, sizes in SWEEPS.items():
        points = [time(loss_step(**{**START, name: size})) for size in sizes]
        rest = ", ".join(f"{k} {v}" for k, v in START.items() if k != name)
        yield _record(f"loss ({rest}, {READ} rows read)", name, sizes, points, "a step")
    count = 512
    points = [time(lambda side=side: poh_ext.generate_mazes(count, side)) for side in SIDES]
    points = [Spread(*(value / count for value in vars(p).values())) for p in points]
    yield _record("dfs mazes", "cells", [s * s for s in SIDES], points, "a maze")
    most = torch.get_num_threads()
    if most > 1:
        counts = sorted({1, *(2**i for i in range(1, most.bit_length())), most} & set(range(1, most + 1)))
        tasks = {"loss": loss_step(**START), "dfs mazes 16x16": lambda: poh_ext.generate_mazes(4096, 16)}
        for name, call in tasks.items():
            points = []
            for threads in counts:
                torch.set_num_threads(threads)
                points.append(time(call))
            torch.set_num_threads(most)
            yield _record(name, "threads", counts, points, "a call")


def draw(facts: dict, sweeps: list[dict]) -> Figure:
    """A log-log panel for each sweep, with p20 to p80 and the slope."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    columns = 4
    figure = new_figure(13, 3.1 * -(-len(sweeps) // columns) + 0.5)
    axes = figure.subplots(-(-len(sweeps) // columns), columns, squeeze=False).ravel()
    for axis, record in zip(axes, sweeps, strict=False):
        middle = np.array([s["p50"] for s in record["seconds"]]) * 1e6
        low, high = (np.array([s[q] for s in record["seconds"]]) * 1e6 for q in ("p20", "p80"))
        axis.errorbar(record["sizes"], middle, yerr=[middle - low, high - middle], marker="o", color="black", capsize=3)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(record["sizes"], [f"{s}" for s in record["sizes"]], fontsize=7)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_ylim(min(low) / 1.6, max(high) * 1.6)
        axis.set_xlabel(record["size"])
        axis.set_ylabel(f"microseconds {record['unit']}")
        axis.set_title(f"{record['title']}\nslope {record['slope']:.2f}", fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[len(sweeps) :]:
        axis.set_visible(False)
    figure.suptitle(
        f"poh_ext {facts['poh_ext']}, torch {facts['torch']}, {facts['cpu']}, {facts['threads']} threads, "
        "median with 20th to 80th percentile",
        fontsize=9,
    )
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m poh_ext.bench.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=number("seconds"), default=0.5, help="seconds to spend on each point (default: 0.5)"
    )
    parser.add_output("--json", help="write the sweeps and the machine to FILE")
    parser.add_output("--plot", suffix=".png", help="draw the sweeps in a PNG (needs matplotlib)")
    options = parser.parse_args(arguments)
    if options.plot:
        try:
            require("matplotlib.figure")
        except MissingPackage as error:
            parser.error(str(error))
    facts, sweeps = machine.describe(CPU), []
    print(
        f"timing: {len(SWEEPS)} sizes of the loss, mazes, threads; a line for each as it is done",
        file=sys.stderr,
        flush=True,
    )
    for record in sweep(options.seconds):
        sweeps.append(record)
        times = "  ".join(
            f"{size}: {_digits(s['p50'] * 1e6)}" for size, s in zip(record["sizes"], record["seconds"], strict=True)
        )
        print(
            f"{record['title']}, microseconds {record['unit']} by {record['size']}, slope {record['slope']:.2f}\n"
            f"  {times}"
        )
    if options.json:
        write_atomically(options.json, json.dumps({"machine": facts, "sweeps": sweeps}, indent=1).encode())
    if options.plot:
        save_png(draw(facts, sweeps), options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
