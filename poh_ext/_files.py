"""Files that are whole or not there: checked before any work, written in one step, archives checked when read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import pickle
import re
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = ["digest", "is_part", "is_replaced", "read_archive", "why_not_writable", "write_atomically"]

_PART = re.compile(r"\..+\.\d+\.part")
MOST_LINKS = 40  # that lead to one another, as the kernel allows


def write_atomically(path: str | os.PathLike, data: bytes | Callable[[BinaryIO], None]) -> Path:
    """Write a file in one step, making its folder: a reader sees the old file or the new, never half of one.

    A symbolic link stays: what it leads to is replaced, and keeps its permissions. A FIFO, a device (/dev/null) and
    an open file of this process (/dev/stdout) are never replaced: they are written through.

    Args:
        data: may be a function that writes to the file it is given, so that what is large never lies in memory twice.

    Raises:
        OSError: it cannot be written; `filename` is `path`.
    """
    path = Path(path)
    descriptor = _own_descriptor(path)
    part = None
    try:
        if descriptor is not None or not is_replaced(path):
            _write_through(path if descriptor is None else descriptor, data)
            return path
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _part(target)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        try:
            with open(part, "wb") as file:
                _put(data, file)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name on empty blocks
            if mode is not None:
                os.chmod(part, mode)
            os.replace(part, target)
        except BaseException as error:  # Ctrl-C too
            with contextlib.suppress(OSError):
                part.unlink()
            if isinstance(error.__context__, OSError) and not isinstance(error, OSError):
                raise error.__context__ from None  # torch.save: an archive cannot be closed on a full disk either
            raise
    except OSError as error:
        if error.errno is None or error.filename not in (None, path, str(path), part, str(part)):
            raise  # of what `data` reads
        raise OSError(error.errno, error.strerror, str(path)) from error
    return path


def is_replaced(path: str | os.PathLike) -> bool:
    """Whether writing `path` puts a new file in its place: not where it is a FIFO, a device or an open file.

    Raises:
        OSError: it is a folder, a socket or a disk, or cannot be looked at.
    """
    path = Path(path)
    if _own_descriptor(path) is not None:
        return False
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return True
    if stat.S_ISREG(mode):
        return True
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    raise OSError(errno.EINVAL, "it is neither a file, a pipe nor a character device", str(path))


def is_part(path: Path) -> bool:
    """Whether it is what write_atomically leaves of a file where the process is killed meanwhile."""
    return _PART.fullmatch(path.name) is not None


def why_not_writable(path: str | os.PathLike) -> str:
    """'' if write_atomically(path, ...) can write, else the reason. Leaves nothing behind and opens no FIFO."""
    path = Path(path)
    descriptor = _own_descriptor(path)
    try:
        if descriptor is not None:
            os.fstat(descriptor)
            return ""
        replaced = is_replaced(path)
        if path.exists() and not os.access(path, os.W_OK):
            return os.strerror(errno.EACCES)
        if replaced:
            target = Path(os.path.realpath(path))
            if not target.parent.is_dir():
                return "its folder does not exist"
            part = _part(target)
            part.touch()  # tells what flags of access do not: a full or read-only file system, a name too long
            part.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _part(target: Path) -> Path:
    """What becomes `target`: in the same folder, because os.replace is atomic only within one file system."""
    return target.with_name(f".{target.name}.{os.getpid()}.part")  # _PART matches it


def _put(data: bytes | Callable[[BinaryIO], None], file: BinaryIO) -> None:
    if callable(data):
        data(file)
    else:
        file.write(data)


def _write_through(place: Path | int, data: bytes | Callable[[BinaryIO], None]) -> None:
    """Into what stays: a path, or a descriptor of this process, whose place in the file others go on from."""
    if callable(data):  # a pipe cannot be sought in, which writers of archives and pictures do
        data(buffer := io.BytesIO())
        data = buffer.getvalue()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # what was printed before comes before
    number = os.dup(place) if isinstance(place, int) else os.open(place, os.O_WRONLY)
    with open(number, "wb") as file:
        file.write(data)


def _own_descriptor(path: Path) -> int | None:
    """The number of the open file of this process that `path` names (/dev/stdout, /dev/fd/63), if it names one."""
    for _ in range(MOST_LINKS):
        if path.name.isdecimal() and os.path.realpath(path.parent) in ("/dev/fd", os.path.realpath("/proc/self/fd")):
            return int(path.name)
        if not path.is_symlink():
            break
        path = path.parent / os.readlink(path)
    return None


def read_archive(path: Path, kind: str, version: int) -> dict[str, Any]:
    """The dict that was saved, on the CPU. ValueError: the file is damaged or not of this kind and version.

    torch.load does not notice flipped bits in a tensor; the checksums of the archive do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > path.stat().st_size:  # torch.save compresses nothing
                raise ValueError("is damaged or no checkpoint: it would take more memory than the file has bytes")
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


def digest(tensors: dict[str, Tensor]) -> str:
    """A checksum of tensors in the order of their names, because safetensors does not notice flipped bits."""
    checksum = hashlib.sha256()
    for name in sorted(tensors):
        checksum.update(tensors[name].flatten().view(torch.uint8).numpy())
    return checksum.hexdigest()
