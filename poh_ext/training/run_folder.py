"""The folder of a run: writable before any work starts, never overwritten silently, and gone on with if interrupted.

A run is continued only where its finished rows are those that this run would produce, bit for bit: same options, same
device, precision, threads and versions. Anything else is another run, and the first difference is named.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs in one folder are not noticed there
    fcntl = None

from poh_ext.report import FILES
from poh_ext.results import Results
from poh_ext.training.checkpoint import first_difference, identity
from poh_ext.training.config import BenchmarkConfig, ConfigError

__all__ = ["FOLDERS", "check_usable", "find_interrupted", "holding", "in_use", "own_folders", "prepare_output"]

LOCK = ".running"
FOLDERS = {  # name -> (this program's files in it, what they are)
    "checkpoints": ("*/*step-*", "of what is being trained: the same command goes on from them"),
    "logs": ("*.jsonl", "one JSON object per training step and validation"),
    "tensorboard": ("*/events.out.tfevents.*", "shown by tensorboard --logdir"),
    "weights": ("*.safetensors", "of the trained planners"),
}


def prepare_output(folder: Path, *, overwrite: bool) -> Path:
    """Make and return the folder to write to; ConfigError if that can't be done.

    A folder that holds files is left alone and `<name>-2`, `<name>-3`, ... is made beside it, unless `overwrite`:
    then this program's own files in it are removed.
    """
    folder = folder.expanduser()
    try:
        if overwrite and folder.is_dir():
            check_usable(folder)
            _remove_own(folder)
            return folder
        for candidate in _siblings(folder):
            if _claim(candidate):
                check_usable(candidate)
                return candidate
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error
    raise ConfigError(f"--output {folder}: it and its 9998 numbered siblings hold files; name another folder")


def own_folders(folder: Path) -> list[tuple[Path, str]]:
    """(folder, what it holds) of those in the output folder that hold this program's files."""
    return [(folder / name, about) for name, (_, about) in FOLDERS.items() if (folder / name).is_dir()]


def _remove_own(folder: Path) -> None:
    """What this program writes; foreign files in the folder stay."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for name, (pattern, _) in FOLDERS.items():
        parents = {folder / name}
        for path in (folder / name).glob(pattern):
            path.unlink(missing_ok=True)
            parents.add(path.parent)
        for parent in sorted(parents, reverse=True):  # children first
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def _claim(folder: Path) -> bool:
    """Make the folder, or take an empty one; False if it holds files. Safe against a run started beside this."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(folder)) from error
        # A lock alone is what a run leaves that was killed before it wrote anything.
        return all(path.name == LOCK for path in folder.iterdir()) and not in_use(folder)
    return True


def check_usable(folder: Path) -> None:
    """ConfigError if a run cannot write its files into this folder."""
    for name in FOLDERS:
        if (folder / name).exists() and not (folder / name).is_dir():
            raise _unusable(folder, f"{name} in it is no folder")
    for name in FILES:
        if (folder / name).is_dir():
            raise _unusable(folder, f"{name} in it is a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error


def _unusable(folder: Path, reason: str) -> ConfigError:
    return ConfigError(f"--output {folder} cannot be written: {reason}")


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep another run from going on in this folder meanwhile; the system ends it with the process, however it dies.

    Raises:
        ConfigError: another run is writing there.
    """
    path = folder / LOCK
    with path.open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(f"--output {folder}: another run is writing there") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def in_use(folder: Path) -> bool:
    """Whether another run holds this folder."""
    if fcntl is None or not (folder / LOCK).exists():
        return False
    try:
        with (folder / LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def find_interrupted(config: BenchmarkConfig, environment: dict[str, Any]) -> tuple[Path | None, Results | None, str]:
    """(folder, its results, why not more) of the run to go on with, in --output or one of its numbered siblings.

    With --resume a complete run counts too: there is nothing left to do in it.

    Raises:
        ConfigError: --resume, and there is no such run; the message says what is different about --output's.
    """
    why = ""
    for folder in itertools.takewhile(Path.is_dir, _siblings(config.output.expanduser())):
        try:
            earlier = Results.load(folder / "results.json")
        except (ValueError, OSError) as error:
            found = f"{folder}: {error}" if (folder / "results.json").exists() else f"{folder} holds no results.json"
            why = why or found
            continue
        different = first_difference(
            identity(earlier.experiment, earlier.config, earlier.environment),
            identity(config.title, config.to_dict(), environment),
        )
        if different is not None:
            why = why or f"{folder} holds another run: {different}"
        elif in_use(folder):
            why = why or f"the run in {folder} is still going on"
        elif earlier.status == "interrupted" or config.resume:
            return folder, earlier, ""
    if config.resume:
        raise ConfigError(f"--resume: nothing to go on with; {why or f'{config.output} does not exist'}")
    return None, None, why


def _siblings(folder: Path) -> Iterator[Path]:
    """The folder itself, <name>-2, <name>-3, ..."""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in range(2, 10_000))
