"""What all figures share: an empty figure, its saving, a style for each model, axes that fit, a legend beside the data.

Report, solve and bench draw with it. Figures are made without pyplot, whose global state would affect a caller's own
plots. Models differ in line style, marker and hatch as well as in colour, so figures can be read in black and white.
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from poh_ext._files import write_atomically
from poh_ext._optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = [
    "Style",
    "legend",
    "log_axis",
    "new_figure",
    "panels",
    "percent_axis",
    "percent_top",
    "save_png",
    "style_by_turn",
    "style_of",
    "whiskers",
]

DPI = 130


class Style(NamedTuple):
    color: str
    linestyle: str | tuple
    marker: str
    hatch: str

    def line(self) -> dict[str, Any]:
        """Keyword arguments of a line."""
        return {"color": self.color, "linestyle": self.linestyle, "marker": self.marker}


# Okabe and Ito's colours, which also differ under colour blindness.
STYLES = {
    "baseline": Style("#0072b2", "-", "o", ""),
    "looped_baseline": Style("#009e73", "--", "s", "//"),
    "poh": Style("#d55e00", "-.", "^", "xx"),
    "poh_shallow": Style("#cc79a7", (0, (3, 1, 1, 1)), "v", "++"),
    "random": Style("#666666", ":", "x", ".."),
    "random_table": Style("#888888", ":", "+", "..."),
    "beeline": Style("#aaaaaa", ":", "1", "...."),
}
_MORE_STYLES = (
    Style("#e69f00", (0, (5, 1)), "D", "\\\\"),
    Style("#56b4e9", (0, (1, 1)), "P", "oo"),
    Style("#000000", (0, (7, 2, 1, 2)), "*", "--"),
    Style("#8c6d31", (0, (4, 2, 4, 1)), "h", "||"),
)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, with a layout that keeps legends off the data."""
    figure = require("matplotlib.figure").Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches
    return figure


def panels(n: int, columns: int, width: float, height: float) -> tuple[Figure, list]:
    """A figure of n panels of that size in inches, at most `columns` in a line, and its n axes in reading order."""
    columns = min(n, columns)
    rows = math.ceil(n / columns)
    figure = new_figure(width * columns, height * rows + 0.5)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[n:]:
        axis.set_axis_off()
    return figure, axes[:n]


def save_png(drawn: Figure | Image, path: str | os.PathLike) -> Path:
    """Write a figure, in the size that it was made with, or a Pillow image. The file is whole or not there."""
    buffer = io.BytesIO()
    if hasattr(drawn, "savefig"):
        drawn.savefig(buffer, format="png", dpi=DPI)
    else:
        drawn.save(buffer, format="PNG", optimize=True)
    return write_atomically(path, buffer.getvalue())


def style_of(model: str, models=()) -> Style:
    """The style of a model. Models without a fixed style take turns.

    A changed model ("poh/without warm-up") has the style of the unchanged one.
    """
    model, models = model.partition("/")[0], [m.partition("/")[0] for m in models]
    if model in STYLES:
        return STYLES[model]
    others = sorted({m for m in models if m not in STYLES} | {model})
    return _MORE_STYLES[others.index(model) % len(_MORE_STYLES)]


def style_by_turn(turn: int) -> Style:
    """The same for lines that are not models, such as runs that are compared."""
    styles = (*STYLES.values(), *_MORE_STYLES)
    return styles[turn % len(styles)]


def percent_top(highest: float) -> int:
    """The upper end of an axis of percentages from 0. Shares of a few percent would be flat on an axis to 100."""
    return next((top for top in (10, 20, 40, 60, 80) if highest <= top), 100)


def percent_axis(axis, highest: float, margin: float = 0.04) -> None:
    """A y axis of percentages up to `highest`, shared or not, with a margin at both ends."""
    top = percent_top(highest)
    axis.set_ylim(-margin * top, (1 + margin) * top)


def log_axis(axis, unit: float = 1.0) -> None:
    """Make the x axis logarithmic, with plain numbers that count the `unit`."""
    ticker = require("matplotlib.ticker")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value / unit:g}"))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())


def whiskers(values, intervals) -> list[list[float]]:
    """[down, up]: the lengths of error bars from values to the ends of their intervals."""
    both = list(zip(values, intervals, strict=True))
    return [[max(0.0, value - low) for value, (low, _) in both], [max(0.0, high - value) for value, (_, high) in both]]


def legend(figure: Figure, handles: dict[str, Any], columns: int = 4) -> None:
    """A legend of name -> artist below the axes."""
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=min(columns, len(handles)),
                  frameon=False)  # fmt: skip
