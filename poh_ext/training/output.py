"""The output folder: writable before any work starts, and never overwritten silently."""

from __future__ import annotations

import tempfile
from pathlib import Path

from poh_ext.report import FILES
from poh_ext.training.config import ConfigError

__all__ = ["prepare_output"]


def prepare_output(folder: Path, *, overwrite: bool) -> Path:
    """Make and return the folder to write to; ConfigError if that can't be done.

    A folder that holds files is left alone and `<name>-2`, `<name>-3`, ... is made beside it, unless `overwrite`:
    then this program's own files in it are removed.
    """
    folder = folder.expanduser()
    try:
        if overwrite and folder.is_dir():
            _check_writable(folder)
            for name in FILES:  # what a report consists of; foreign files in the folder stay
                (folder / name).unlink(missing_ok=True)
            return folder
        for number in range(1, 10_000):
            candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            if _claim(candidate):
                _check_writable(candidate)
                return candidate
    except OSError as error:
        raise ConfigError(f"--output {folder}: cannot be written ({error.strerror or error})") from error
    raise ConfigError(f"--output {folder}: it and its 9998 numbered siblings hold files; name another folder")


def _claim(folder: Path) -> bool:
    """Make the folder, or take an empty one; False if it holds files. Safe against a run started beside this."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return not any(folder.iterdir())
    return True


def _check_writable(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        pass
