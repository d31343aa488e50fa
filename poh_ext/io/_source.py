"""Text files as lines, and the error that names file, line and column."""

from __future__ import annotations

import os

import numpy as np

from poh_ext._checks import MAX_CELLS

__all__ = ["FormatError", "Source", "read_source"]

MAX_BYTES = 1 << 30
_PART = 1 << 20


class FormatError(ValueError):
    """A file does not hold what its format wants, or a format cannot hold what is to be written.

    The message names the file and, where there is one, the line and the column, both counted from 1.

    Examples:
        >>> try:
        ...     poh_ext.io.parse("S.G\\n.x.")
        ... except poh_ext.io.FormatError as error:
        ...     print(error)
        text, line 2, column 2: 'x' is unknown; accepted: '#', ' ', '.', 'S', 'G', 'o'
    """


class Source:
    """The lines of a text, without their ends, and the errors that name them."""

    def __init__(self, name: str, text: str):
        self.name = name
        lines = text.split("\n")  # splitlines would split at form feeds and other characters, too
        if lines[-1] == "":
            lines.pop()
        self.lines = [line[:-1] if line.endswith("\r") else line for line in lines]

    def error(self, reason: str, line: int | None = None, column: int | None = None) -> FormatError:
        """line and column: counted from 0."""
        place = self.name
        if line is not None:
            place += f", line {line + 1}"
        if column is not None:
            place += f", column {column + 1}"
        return FormatError(f"{place}: {reason}")

    def grid(self, rows: list[str], first: int, accepted: str, ragged: str = "") -> np.ndarray:
        """uint8 [H, W]: the characters of rows of one length, all of them accepted.

        Args:
            first: the line of the first row.
            accepted: characters of ASCII other than '?', which stands for all others.
            ragged: what else to say where rows differ in length.
        """
        width = len(rows[0])
        for row, text in enumerate(rows):
            if len(text) != width:
                raise self.error(
                    f"the row has {len(text)} characters, but the first one (line {first + 1}) has {width}{ragged}",
                    first + row,
                )
        if len(rows) * width > MAX_CELLS:
            raise self.error(f"{len(rows)} x {width} cells are too many; at most {MAX_CELLS} are accepted", first)
        codes = np.frombuffer("".join(rows).encode("ascii", "replace"), dtype=np.uint8).reshape(len(rows), width)
        known = np.zeros(256, dtype=bool)
        known[list(accepted.encode())] = True
        if not known[codes].all():
            row, column = divmod(int((~known[codes]).argmax()), width)
            raise self.error(unknown(rows[row][column], accepted), first + row, column)
        return codes


def unknown(character: str, accepted: str) -> str:
    return f"{character!r} is unknown; accepted: {', '.join(map(repr, accepted))}"


def read_source(path: str | os.PathLike[str]) -> Source:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        OSError: it cannot be read.
        FormatError: it is larger than 1 GiB, or not UTF-8.
    """
    with open(path, "rb") as file:
        parts, size = [], 0
        while part := file.read(_PART):  # one read of MAX_BYTES would take that much memory for any file
            parts.append(part)
            if (size := size + len(part)) > MAX_BYTES:
                raise FormatError(f"{path}: the file is larger than {MAX_BYTES} bytes, the most that is read")
    data = b"".join(parts)
    try:
        return Source(os.fspath(path), data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise FormatError(f"{path}: the text is UTF-16; UTF-8 is accepted") from None
        line = data.count(b"\n", 0, error.start)
        raise FormatError(
            f"{path}, line {line + 1}: the byte 0x{data[error.start]:02x} is not UTF-8, which is the encoding accepted"
        ) from None
