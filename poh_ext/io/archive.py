"""Mazes and tasks whole, as arrays in a file: .npz of NumPy, or safetensors.

The arrays have the names of the fields: passages, free, index of a MazeBatch; start, goal, path, length of MazeTasks.
Cells are int32 in the file. One maze of many tasks is one maze in the file. The rest is JSON under "poh_ext": a uint8
array of the .npz, an entry of the metadata of the safetensors. Both are checked against damage when they are read.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from poh_ext._files import digest, write_atomically
from poh_ext._optional import require
from poh_ext._sharing import is_shared
from poh_ext.io._source import FormatError
from poh_ext.mazes import MazeBatch
from poh_ext.tasks import MazeTasks

__all__ = ["read_npz", "read_safetensors", "write_npz", "write_safetensors"]

KEY = "poh_ext"
VERSION = 1
_CELL = (torch.int32, torch.int64)
_MAZES = {"passages": (torch.uint8,), "free": (torch.bool,), "index": (torch.int64,)}
_TASKS = {"start": _CELL, "goal": _CELL, "path": _CELL, "length": _CELL}
_FIELDS = _MAZES | _TASKS
_DTYPES = {
    np.dtype(name): dtype
    for name, dtype in (("|u1", torch.uint8), ("|b1", torch.bool), ("<i4", torch.int32), ("<i8", torch.int64))
}
_MOST_RATIO = 200  # of a compressed array to its bytes in the file; deflate reaches 1032
_MOST = 1 << 40  # mazes that one maze may stand for


def write_npz(path: str | os.PathLike[str], mazes_or_tasks: MazeBatch | MazeTasks) -> Path:
    """Write mazes or tasks whole to a .npz, which `numpy.load` reads, too.

    Raises:
        OSError: the file cannot be written.
        TypeError: mazes_or_tasks is neither a MazeBatch nor MazeTasks.
    """
    tensors, record = _fields(mazes_or_tasks)
    arrays = {KEY: np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)}
    arrays |= {name: tensor.numpy() for name, tensor in tensors.items()}

    def put(file: BinaryIO) -> None:
        np.savez(file, **arrays)  # type: ignore[arg-type]

    return write_atomically(path, put)


def read_npz(path: str | os.PathLike[str]) -> MazeTasks | MazeBatch:
    """Read what `write_npz` wrote. No pickles are read.

    Raises:
        OSError: the file cannot be read.
        FormatError: the file is damaged, cut off, no .npz, of another content or version; or what it holds is no maze
            or no task.

    Examples:
        >>> poh_ext.io.write_npz("tasks.npz", tasks)
        >>> tasks = poh_ext.io.read_npz("tasks.npz")
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        tensors = _parsed(path, "npz", lambda: _arrays(file, size))
    record = tensors.pop(KEY, None)
    return _built(path, tensors, None if record is None else bytes(record.numpy()))


def write_safetensors(path: str | os.PathLike[str], mazes_or_tasks: MazeBatch | MazeTasks) -> Path:
    """Write mazes or tasks whole as safetensors. Needs safetensors (the extra `experiments`).

    Raises:
        OSError: the file cannot be written.
        TypeError: mazes_or_tasks is neither a MazeBatch nor MazeTasks.
        ImportError: safetensors is missing.
    """
    tensors, record = _fields(mazes_or_tasks)
    record["sha256"] = digest(tensors)
    return write_atomically(path, require("safetensors.torch").save(tensors, {KEY: json.dumps(record)}))


def read_safetensors(path: str | os.PathLike[str]) -> MazeTasks | MazeBatch:
    """Read what `write_safetensors` wrote. Needs safetensors (the extra `experiments`).

    Raises:
        OSError: the file cannot be read.
        FormatError: as of `read_npz`.
        ImportError: safetensors is missing.
    """
    library = require("safetensors")

    def parse() -> tuple[dict[str, Tensor], str | None]:
        with library.safe_open(path, "pt") as file:
            _check_names(file.keys())
            # Copies, because the tensors of the file are its pages, which change when it is overwritten.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, (file.metadata() or {}).get(KEY)

    open(path, "rb").close()  # for the OSError
    tensors, record = _parsed(path, "safetensors", parse)
    return _built(path, tensors, record, check=True)


def _fields(what: MazeBatch | MazeTasks) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is in the file: tensors by name, and the rest."""
    mazes = what.mazes if isinstance(what, MazeTasks) else what
    if not isinstance(mazes, MazeBatch):
        raise TypeError(f"a MazeBatch or MazeTasks can be written, got {type(what).__name__}")
    n = len(mazes)
    of_mazes = [mazes.passages, mazes.free() if mazes.has_blocked else None, mazes.index]
    if all(t is None or is_shared(t) for t in of_mazes):
        mazes = mazes[:1]
    tensors = {"passages": mazes.passages}
    if mazes.has_blocked:
        tensors["free"] = mazes.free()
    if mazes.index is not None:
        tensors["index"] = mazes.index
    if isinstance(what, MazeTasks):
        tensors |= {name: getattr(what, name).to(torch.int32) for name in _TASKS}
    record = {"version": VERSION, "n": n, "seed": mazes.seed, "algorithm": mazes.algorithm}
    return {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, record


def _parsed(path: str | os.PathLike[str], kind: str, parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    except Exception as error:  # the libraries raise a dozen types for what a damaged file may hold
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise FormatError(f"{path}: the file is damaged or no {kind}: {reason}") from error


def _check_names(names) -> None:
    strange = sorted(set(names) - set(_FIELDS))
    if strange or "passages" not in names:
        found = ", ".join(sorted(names))[:200] or "nothing"
        raise FormatError(f"the file holds {found}; accepted: {', '.join(_FIELDS)}, of which passages is needed")


def _arrays(file: BinaryIO, size: int) -> dict[str, Tensor]:
    """The arrays of a .npz. Their sizes are compared with the file's before memory is taken for them."""
    tensors = {}
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        _check_names([entry.filename.removesuffix(".npy") for entry in entries if entry.filename != f"{KEY}.npy"])
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise FormatError(f"{name} is compressed otherwise than np.savez and np.savez_compressed do")
            most = _MOST_RATIO * entry.compress_size if entry.compress_type == zipfile.ZIP_DEFLATED else size
            if entry.compress_size > size or entry.file_size > most:
                raise FormatError(
                    f"{name} would take {entry.file_size} bytes, which a file of {size} bytes cannot hold"
                )
            data = archive.read(entry)  # checks its checksum
            tensors[name] = _array(name, data)
    return tensors


def _array(name: str, data: bytes) -> Tensor:
    """The tensor of a .npy. Where numpy.load would believe the header, it is compared with what follows."""
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise FormatError(f"{name} is a .npy of version {version}; accepted: 1.0 and 2.0")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = read_header(stream)
    if dtype not in _DTYPES:
        raise FormatError(f"{name} is {dtype}; accepted: {', '.join(map(str, _DTYPES))}")
    count = 1
    for side in shape:
        count *= side
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(data) - stream.tell():
        raise FormatError(f"{name} has {len(data) - stream.tell()} bytes, but its shape is {list(shape)} of {dtype}")
    array = np.frombuffer(data, dtype=dtype, offset=stream.tell()).reshape(shape, order="F" if by_columns else "C")
    return torch.from_numpy(array.copy(order="C"))


def _built(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], text: bytes | str | None, *, check: bool = False
) -> MazeTasks | MazeBatch:
    try:
        record = json.loads(text or "null")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the file is damaged: {KEY!r} is no JSON: {error}") from None
    try:
        return _of(tensors, record, check)
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise FormatError(f"{path}: {error}") from None


def _of(tensors: dict[str, Tensor], record: Any, check: bool) -> MazeTasks | MazeBatch:
    if not isinstance(record, dict) or "version" not in record:
        raise ValueError(f"the file holds no mazes that poh_ext wrote: it has no {KEY!r}")
    if record["version"] != VERSION:
        raise ValueError(f"the file has version {str(record['version'])[:40]!r}; this poh_ext reads {VERSION}")
    if check and record.get("sha256") != digest(tensors):
        raise ValueError("the file is damaged: its checksum is wrong")
    for name, tensor in tensors.items():
        if tensor.dtype not in _FIELDS[name]:
            accepted = " or ".join(map(str, _FIELDS[name]))
            raise ValueError(f"{name} is {tensor.dtype}; accepted: {accepted}".replace("torch.", ""))
    n, seed, algorithm = (record.get(name) for name in ("n", "seed", "algorithm"))
    if type(n) is not int or not 0 <= n <= _MOST:
        raise ValueError(f"n is {str(n)[:40]!r}; a whole number of mazes from 0 to {_MOST} is accepted")
    if not isinstance(seed, (int, type(None))) or not isinstance(algorithm, (str, type(None))):
        raise ValueError("seed is no whole number, or algorithm no string")
    known = {name: tensors.get(name) for name in _MAZES if name != "passages"}
    mazes = MazeBatch(tensors["passages"], seed=seed, algorithm=algorithm, **known)  # type: ignore[arg-type]
    if len(mazes) != n:
        if len(mazes) != 1:
            raise ValueError(f"passages has {len(mazes)} mazes; n is {n}")
        mazes = mazes.expand(n)
    of_tasks = [name for name in _TASKS if name in tensors]
    if not of_tasks:
        return mazes
    if len(of_tasks) < len(_TASKS):
        raise ValueError(f"the file holds {', '.join(of_tasks)} of tasks; needed: {', '.join(_TASKS)}")
    for name in _TASKS:
        if tensors[name].dim() < 1 or len(tensors[name]) != n:
            raise ValueError(f"{name} is {list(tensors[name].shape)}; its first size is to be n = {n}")
    return MazeTasks(mazes, *(tensors[name].long() for name in _TASKS))
