"""The two templates of the report, and how text is shaped in them.

Text is plain everywhere and is never read as markup: the page escapes it, and markdown has it as it is.
"""

from __future__ import annotations

import functools
import html
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poh_ext._optional import require

if TYPE_CHECKING:
    import jinja2

__all__ = ["png_size", "render"]


def render(template: str, **context: Any) -> str:
    """The text of report.md.j2 or report.html.j2, given what report.py puts into it."""
    return _environment().get_template(template).render(context)


@functools.cache
def _environment() -> jinja2.Environment:
    jinja2, markup = require("jinja2"), require("markupsafe").Markup

    @jinja2.pass_eval_context
    def escape(context: jinja2.nodes.EvalContext, value: Any) -> Any:
        """As html.escape does it: Markup would write a quote in another way."""
        return markup(html.escape(str(value))) if context.autoescape and not hasattr(value, "__html__") else value

    made = jinja2.Environment(loader=jinja2.PackageLoader("poh_ext.report"), finalize=escape,
                              autoescape=lambda name: name.endswith(".html.j2"), undefined=jinja2.StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # fmt: skip
    made.filters |= {shape.__name__: shape for shape in (one_line, stressed, few_breaks, anchor)}
    return made


def one_line(text: str) -> str:
    """The text without line breaks, which would end a list item. A space at an end is kept, because it may separate
    this piece from the next."""
    return " ".join(text.split()) if not text[:1].isspace() and not text[-1:].isspace() else " ".join(text.splitlines())


def stressed(verdict: str) -> list[str]:
    """The verdict in pieces, each on one line: every other one, from the second, is to be stressed."""
    return list(map(one_line, re.split(r"\b(Resolved:|Not resolved:|Caution:|Compute is unequal:)", verdict)))


def few_breaks(heading: str) -> str:
    """With no-break spaces in units and intervals, so that a heading breaks only between its parts."""
    heading = re.sub(r"\[[^]]*\]", lambda found: found[0].replace(" ", "\u00a0"), heading)
    return re.sub(r" (?=\S{1,2}$|% )", "\u00a0", heading)


def anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"


def png_size(path: Path) -> tuple[int, int]:
    """The size in pixels, from the header of the PNG. With it the page does not move while its pictures load."""
    header = path.read_bytes()[:24]
    if len(header) < 24 or header[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path} is not a PNG")
    return struct.unpack(">II", header[16:24])
