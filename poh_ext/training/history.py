"""The training log: a JSON object per step and validation, on disk as it goes: nothing is lost with the process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from poh_ext._files import write_atomically
from poh_ext.results import plain

__all__ = ["History"]


class History:
    """Appends to a JSONL file; after an interruption the file goes on where the checkpoint was taken.

    Args:
        path: made with its folder.
        step: steps that the training goes on from; lines of later ones, and a line that was cut off, are removed.

    Example:
        >>> history = History(Path("run/logs/poh-seed42.jsonl"), step=0)
        >>> history.step({"step": 1, "loss": 4.97})
        >>> history.close()
    """

    def __init__(self, path: Path, *, step: int) -> None:
        write_atomically(path, b"".join(_lines_until(path, step)))
        self._file = path.open("ab", buffering=0)  # straight to the system, which outlives a killed process

    def step(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(plain(record), allow_nan=False).encode() + b"\n")

    def validated(self, point: dict[str, Any]) -> None:
        """Append the validation as a line of its own, after that of the step."""
        when = {name: point[name] for name in ("step", "epoch", "seconds")}
        self.step({**when, "validation": {name: value for name, value in point.items() if name not in when}})

    def epoch(self, *_: Any) -> None:
        """Write nothing: each step has written its own line."""

    def result(self, *_: Any) -> None:
        """Write nothing: the results go into results.json."""

    def close(self) -> None:
        self._file.close()


def _lines_until(path: Path, step: int) -> list[bytes]:
    """The lines of the first `step` steps, or up to the first line that is cut off or damaged."""
    lines = []
    for line in path.read_bytes().splitlines(keepends=True) if step and path.exists() else ():
        try:
            wanted = line.endswith(b"\n") and json.loads(line)["step"] <= step
        except (ValueError, TypeError, KeyError):
            wanted = False
        if not wanted:
            break
        lines.append(line)
    return lines
