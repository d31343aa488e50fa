"""A report as one static page. It opens from disk, loads only the pictures beside it, and needs no script."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from html import escape
from pathlib import Path

from poh_ext.report.document import Block, Bullets, Code, Grid, Heading, Pairs, Paragraph, Picture, Text, pieces

__all__ = ["page"]

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin-top: 1.8rem; }
p, li { max-width: 50rem; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; overflow-wrap: normal; }
li { margin: .35rem 0; }
nav li { margin: 0; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; font-size: .92rem; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
thead th { white-space: normal; vertical-align: bottom; }
.number { text-align: right; }
figure { margin: 1.8rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: white; }
figcaption { max-width: 50rem; margin-top: .4rem; }
summary { cursor: pointer; margin: .5rem 0; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .15rem 1rem; margin: 0; }
dd { margin: 0; }
@media print { a { color: inherit; } figure, table { break-inside: avoid; } }
""".strip()


def page(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The blocks as an HTML document; the size of each picture is read from its file in `folder`.

    A picture with small details is a link to itself in full size.
    """
    headings = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = "\n".join(f'<li><a href="#{_anchor(h.text)}">{escape(h.text)}</a></li>' for h in headings)
    start, rest = list(blocks[:1]), blocks[1:]
    body = "\n".join([*(_block(b, folder) for b in start), f'<nav aria-label="Sections"><ul>\n{links}\n</ul></nav>',
                      *(_block(b, folder) for b in rest)])  # fmt: skip
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # else a server is asked for /favicon.ico
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _block(block: Block, folder: Path) -> str:
    match block:
        case Heading():
            return f'<h{block.level} id="{_anchor(block.text)}">{escape(block.text)}</h{block.level}>'
        case Paragraph():
            return f"<p>{_inline(block.text)}</p>"
        case Code():
            return f'<pre tabindex="0"><code>{escape(block.text)}</code></pre>'
        case Bullets():
            return "<ul>\n" + "\n".join(f"<li>{_inline(item)}</li>" for item in block.items) + "\n</ul>"
        case Grid():
            return _table(block)
        case Picture():
            return _figure(block, folder)
        case Pairs():
            items = "\n".join(f"<dt><code>{escape(n)}</code></dt><dd>{escape(v)}</dd>" for n, v in block.values)
            inner = f"<dl>\n{items}\n</dl>" if items else "<p>none recorded</p>"
            return f"<details>\n<summary>{escape(block.title)}</summary>\n{inner}\n</details>"
    raise TypeError(f"{type(block).__name__} is no block of a report")


def _table(grid: Grid) -> str:
    def cell(tag, j, text, scope=""):
        kind = "" if j < grid.left else ' class="number"'
        return f"<{tag}{scope}{kind}>{escape(text)}</{tag}>"

    head = "".join(cell("th", j, _few_breaks(text), ' scope="col"') for j, text in enumerate(grid.header))
    # The first column names the row, to a screen reader too.
    lines = [
        cell("th", 0, row[0], ' scope="row"') + "".join(cell("td", j, text) for j, text in enumerate(row) if j)
        for row in grid.rows
    ]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    caption = f"<caption>{escape(grid.caption)}</caption>\n" if grid.caption else ""
    name = escape(grid.caption or "table", quote=True)
    return (  # focusable, so that it scrolls by keyboard on a narrow screen
        f'<div class="scroll" role="region" aria-label="{name}" tabindex="0">\n<table>\n{caption}'
        f"<thead>\n<tr>{head}</tr>\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _few_breaks(heading: str) -> str:
    """Put no-break spaces into units and intervals, so that a heading breaks only between its parts."""
    heading = re.sub(r"\[[^]]*\]", lambda found: found[0].replace(" ", "\u00a0"), heading)
    return re.sub(r" (?=\S{1,2}$|% )", "\u00a0", heading)


def _figure(picture: Picture, folder: Path) -> str:
    file, alt = escape(picture.file, quote=True), escape(picture.alt, quote=True)
    width, height = _png_size(folder / picture.file)
    image = f'<img src="{file}" alt="{alt}" width="{width}" height="{height}">'
    return f'<figure>\n<a href="{file}">{image}</a>\n<figcaption>{_inline(picture.caption)}</figcaption>\n</figure>'


def _png_size(path: Path) -> tuple[int, int]:
    """The size in pixels, from the header of the PNG. With it the page does not move while its pictures load."""
    header = path.read_bytes()[:24]
    if len(header) < 24 or header[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path} is not a PNG")
    return struct.unpack(">II", header[16:24])


def _inline(text: Text) -> str:
    def show(form, part):
        part = escape(part, quote=True)
        return {
            "": part, "strong": f"<strong>{part}</strong>", "code": f"<code>{part}</code>",
            "link": f'<a href="{part}">{part}</a>',
        }[form]  # fmt: skip

    return "".join(show(form, part) for form, part in pieces(text))


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
