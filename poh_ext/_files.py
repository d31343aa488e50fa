"""Files that are whole or not there: written in one step, archives of tensors checked when read."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

__all__ = ["read_archive", "write_atomically"]


def write_atomically(path: str | os.PathLike, data: bytes | Callable[[BinaryIO], None]) -> Path:
    """Write a file in one step, making its folder: a reader sees the old file or the new, never half of one.

    `data` may be a function that writes to the file it is given, so that what is large never lies in memory twice.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because os.replace is atomic only within one file system.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on empty blocks
        os.replace(part, path)
    except BaseException:  # Ctrl-C too
        part.unlink(missing_ok=True)
        raise
    return path


def read_archive(path: Path, kind: str, version: int) -> dict[str, Any]:
    """The dict that was saved, on the CPU. ValueError: the file is damaged or not of this kind and version.

    torch.load does not notice flipped bits in a tensor; the checksums of the archive do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"is damaged: the checksum of {damaged} is wrong")
        record = torch.load(path, map_location="cpu", weights_only=True)
    except ValueError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError("is damaged or no checkpoint: it holds more than tensors and plain values") from error
    except Exception as error:  # zipfile and torch raise a dozen types for what a damaged file may hold
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"is damaged or no checkpoint: {reason}") from error
    if not isinstance(record, dict) or record.get("format") != kind:
        raise ValueError(f"is not a {kind}")
    if record.get("version") != version:
        raise ValueError(f"has version {record.get('version')!r}; this poh_ext reads {version}")
    return record
