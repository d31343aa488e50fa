"""Write report.md, the page index.html and their pictures from Results."""

from __future__ import annotations

import os
from pathlib import Path

from poh_ext._figures import save_png
from poh_ext._files import write_atomically
from poh_ext._optional import require
from poh_ext.maze_drawing import MazeSample, maze_sheet
from poh_ext.report.contents import contents, title_of
from poh_ext.report.document import markdown
from poh_ext.report.html import page
from poh_ext.report.pictures import MAZES_PNG, PICTURES
from poh_ext.results import Results

__all__ = ["FILES", "write_report"]

REPORT_MD = "report.md"
INDEX_HTML = "index.html"
FILES = {
    INDEX_HTML: "this report as a page with its pictures, for a browser",
    REPORT_MD: "this report as text",
    "results.json": "configuration, environment and the raw outcome of every test maze",
    **{name: kind.about for name, kind in PICTURES.items()},
}


def write_report(results: Results, folder: str | os.PathLike, mazes: MazeSample | None = None) -> list[Path]:
    """Write report.md, index.html and the PNGs that the run has data for into `folder`; works for partial runs, too.

    The page opens from disk, without a network. `results.json` is not written here (`results.save` does that); it is
    listed if it exists. Files are replaced atomically, so a report can be written again after each finished row.

    Args:
        results: a whole or interrupted run.
        folder: folder of the report; it is made if it is missing.
        mazes: test mazes to draw, with the models' paths.

    Returns:
        Paths of the files written, index.html first.

    Raises:
        ValueError: `results` contradicts itself. ImportError: scipy or matplotlib is missing. Nothing is written then.

    Example:
        >>> write_report(Results.load("run/results.json"), "run")
        [PosixPath('run/index.html'), PosixPath('run/report.md'), PosixPath('run/outcomes.png'), ...]
    """
    results.validate()
    require("scipy.stats")
    require("matplotlib.figure")
    folder = Path(folder)
    figures = {name: kind.draw(results) for name, kind in PICTURES.items() if kind.draw}
    figures[MAZES_PNG] = maze_sheet(mazes) if mazes is not None else None
    drawn = [name for name in PICTURES if figures[name] is not None]
    pictures = [save_png(figures[name], folder / name) for name in drawn]
    # A picture of an earlier call with more data would contradict this one: it is neither shown nor listed.
    files = {
        name: about
        for name, about in FILES.items()
        if name in drawn or name in (REPORT_MD, INDEX_HTML) or (name not in PICTURES and (folder / name).is_file())
    }
    blocks = contents(results, drawn, files)
    index = write_atomically(folder / INDEX_HTML, page(title_of(results), blocks, folder).encode())
    return [index, write_atomically(folder / REPORT_MD, markdown(blocks).encode()), *pictures]
