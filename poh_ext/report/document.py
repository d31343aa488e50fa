"""A report as a list of blocks. It is written once and rendered as markdown here and as a page in html.py.

Text is plain everywhere and is never read as markup. `Span` gives a piece of text another form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Block", "Bullets", "Code", "Grid", "Heading", "Pairs", "Paragraph", "Picture", "Span", "Text", "markdown"]


class Span(NamedTuple):
    """A piece of text in another form: "strong", "code" or "link" (to the file of that name beside the report)."""

    form: str
    text: str


Text = str | Sequence["str | Span"]


@dataclass
class Heading:
    text: str
    level: int = 2


@dataclass
class Paragraph:
    text: Text


@dataclass
class Code:
    text: str


@dataclass
class Bullets:
    items: list[Text]


@dataclass
class Grid:
    """A table; the first `left` columns are names, the others are numbers."""

    header: list[str]
    rows: list[list[str]]
    left: int
    caption: str = ""


@dataclass
class Picture:
    """A file beside the report: `alt` describes it for readers who cannot see it, `caption` explains it."""

    file: str
    alt: str
    caption: str


@dataclass
class Pairs:
    """Names and values that few readers need. The page shows them folded."""

    title: str
    values: list[tuple[str, str]] = field(default_factory=list)


Block = Heading | Paragraph | Code | Bullets | Grid | Picture | Pairs


def pieces(text: Text) -> list[Span]:
    """Text as spans, with form "" for plain text. Line breaks become spaces, because they would end a list item."""
    parts = [text] if isinstance(text, str) else text
    spans = [part if isinstance(part, Span) else Span("", part) for part in parts]
    return [Span(form, _one_line(part)) for form, part in spans]


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks as GitHub's markdown."""
    return "\n\n".join(_block(block) for block in blocks) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {block.text}"
        case Paragraph():
            return _inline(block.text)
        case Code():
            return f"```\n{block.text}\n```"
        case Bullets():
            return "\n".join(f"- {_inline(item)}" for item in block.items)
        case Grid():
            align = ["---"] * block.left + ["---:"] * (len(block.header) - block.left)
            return "\n".join("| " + " | ".join(row) + " |" for row in (block.header, align, *block.rows))
        case Picture():
            return f"![{block.alt}]({block.file})\n\n*{block.caption}*"
        case Pairs():
            lines = [f"- `{name}`: {_one_line(value)}" for name, value in block.values]
            return f"{block.title}:\n\n" + ("\n".join(lines) or "none recorded")
    raise TypeError(f"{type(block).__name__} is no block of a report")


def _inline(text: Text) -> str:
    forms = {"": "{0}", "strong": "**{0}**", "code": "`{0}`", "link": "[{0}]({0})"}
    return "".join(forms[form].format(part) for form, part in pieces(text))


def _one_line(text: str) -> str:
    """The text without line breaks. A space at an end is kept, because it may separate this piece from the next."""
    return " ".join(text.split()) if not text[:1].isspace() and not text[-1:].isspace() else " ".join(text.splitlines())
