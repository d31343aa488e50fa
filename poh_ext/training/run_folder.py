"""The folder of a run: writable before any work starts, never overwritten silently, and gone on with if interrupted.

One run at a time holds a folder, and notices when it is removed meanwhile.

A run is continued only where its finished rows are those that this run would produce, bit for bit: same options, same
device, precision, threads and versions. Anything else is another run, and the first difference is named.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs in one folder are not noticed there
    fcntl = None

from poh_ext._files import is_part
from poh_ext.report import FILES
from poh_ext.results import Results
from poh_ext.training.checkpoint import first_difference, identity
from poh_ext.training.config import BenchmarkConfig, ConfigError
from poh_ext.training.progress import Interrupted

__all__ = [
    "FOLDERS",
    "FolderLost",
    "FolderTaken",
    "Hold",
    "check_usable",
    "find_interrupted",
    "holding",
    "in_use",
    "output_folder",
    "own_folders",
    "prepare_output",
    "remove_own",
]

LOCK = ".running"
WAIT = 30.0  # seconds that a run has to end of which another one would be the continuation
FOLDERS = {  # name -> (this program's files in it, what they are)
    "checkpoints": ("*/*step-*", "of what is being trained: the same command goes on from them"),
    "logs": ("*.jsonl", "one JSON object per training step and validation"),
    "tensorboard": ("*/events.out.tfevents.*", "shown by tensorboard --logdir"),
    "weights": ("*.safetensors", "of the trained planners"),
}


def prepare_output(folder: Path, *, overwrite: bool, dry: bool = False) -> Path:
    """Make and return the folder to write to; ConfigError if that can't be done.

    A folder that holds files is left alone and `<name>-2`, `<name>-3`, ... is made beside it, unless `overwrite`: then
    it is to be emptied by `remove_own`. With `dry` nothing is made, and all else is as without.
    """
    folder = output_folder(folder)
    try:
        if overwrite and folder.is_dir():
            check_usable(folder)
            if dry and in_use(folder):
                raise ConfigError(f"--output {folder}: another run is writing there")
            return folder
        for candidate in _siblings(folder):
            if (dry and not _is_there(candidate)) or _claim(candidate):
                check_usable(candidate)
                return candidate
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error
    siblings = " and its 9998 numbered siblings hold" if folder.name else " holds"
    raise ConfigError(f"--output {folder}: it{siblings} files; name another folder")


def output_folder(output: Path) -> Path:
    """The folder that --output means, by a name that siblings can be numbered from; ConfigError if there is none."""
    try:
        folder = output.expanduser()
        return folder.resolve() if folder.name in ("", "..") else folder
    except (RuntimeError, OSError) as error:  # the home of no user, or the working folder is gone
        raise _unusable(output, str(error).rstrip(".")) from error


def own_folders(folder: Path) -> list[tuple[Path, str]]:
    """(folder, what it holds) of those in the output folder that hold this program's files."""
    return [(folder / name, about) for name, (_, about) in FOLDERS.items() if (folder / name).is_dir()]


def remove_own(folder: Path) -> None:
    """Remove what this program writes; foreign files in the folder stay. To be called by who holds the folder."""
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


def _is_there(folder: Path) -> bool:
    try:
        folder.lstat()
    except FileNotFoundError:
        return False
    return True


def _claim(folder: Path) -> bool:
    """Make the folder, or take an empty one; False if it holds files. Safe against a run started beside this."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(folder)) from error
        if in_use(folder):
            return False
        # That is what a run leaves that was killed before it wrote anything whole.
        return all(path.name == LOCK or is_part(path) for path in folder.iterdir())
    return True


def check_usable(folder: Path) -> None:
    """ConfigError if a run cannot write its files into this folder, or make it."""
    for name in FOLDERS:
        if (folder / name).exists() and not (folder / name).is_dir():
            raise _unusable(folder, f"{name} in it is no folder")
    for name in FILES:
        if (folder / name).is_dir():
            raise _unusable(folder, f"{name} in it is a folder")
    try:
        with tempfile.TemporaryFile(dir=next(filter(Path.exists, (folder, *folder.parents)))):
            pass
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error


def _unusable(folder: Path, reason: str) -> ConfigError:
    return ConfigError(f"--output {folder} cannot be written: {reason}")


class FolderLost(Interrupted):
    """The output folder was removed or renamed; a new one in its place takes what the run still has to write."""


class FolderTaken(RuntimeError):
    """The output folder was removed or renamed, and another run has taken its place."""


class Hold:
    """Keeps other runs out of a folder; the system ends it with the process, however it dies.

    Raises:
        ConfigError: another run is writing there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._file = self._place = None
        self._take()
        _remove_parts(self.folder)

    def _take(self) -> None:
        path = self.folder / LOCK
        while self._file is None:
            file = path.open("a+")
            if fcntl is not None:
                if not _lock(file):
                    file.seek(0)
                    holder = file.read(20).strip()
                    file.close()
                    by = f" (process {holder})" if holder.isdecimal() else ""
                    raise ConfigError(f"--output {self.folder}: another run{by} is writing there")
                if not _is_open(path, file.fileno()):  # the run before removed it after it was opened here
                    file.close()
                    continue
                # While it is open, no other folder gets its number.
                self._place = os.open(self.folder, os.O_RDONLY)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            self._file = file

    def check(self) -> None:
        """Notice that the folder was removed or renamed. To be called before results or a checkpoint are written.

        Raises:
            FolderLost: it was. It is there again, without files, and held.
            FolderTaken: it was, and it is there again with another run in it.
            OSError: it was, and cannot be made again.
        """
        if fcntl is None or _is_open(self.folder / LOCK, self._file.fileno()):
            return
        kept = _is_open(self.folder, self._place)  # only the lock was removed
        if not kept:
            self.folder.mkdir(parents=True, exist_ok=True)
            if in_use(self.folder) or (self.folder / "results.json").exists():
                raise FolderTaken(f"--output {self.folder} was removed or renamed, and another run writes there now")
        self._close()
        self._take()
        if not kept:
            raise FolderLost(f"--output {self.folder} was removed or renamed, with the logs and weights in it")

    def release(self) -> None:
        with contextlib.suppress(OSError):  # of a folder that cannot be written any more
            if fcntl is None:
                self._close()  # there, what is open cannot be removed
                (self.folder / LOCK).unlink()
            elif self._file is not None and _is_open(self.folder / LOCK, self._file.fileno()):
                (self.folder / LOCK).unlink()
        self._close()

    def _close(self) -> None:
        if self._place is not None:
            os.close(self._place)
        if self._file is not None:
            self._file.close()
        self._file = self._place = None


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[Hold]:
    """Keep another run from going on in this folder meanwhile.

    Raises:
        ConfigError: another run is writing there.
    """
    hold = Hold(folder)
    try:
        yield hold
    finally:
        hold.release()


def _lock(file: IO) -> bool:
    """False if another process holds the file. True without a lock where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True


def _is_open(path: Path, descriptor: int) -> bool:
    """Whether the path leads to what is open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _remove_parts(folder: Path) -> None:
    """What a run left that was killed while it wrote."""
    for path in (*folder.iterdir(), *(path for name in FOLDERS for path in (folder / name).rglob(".*.part"))):
        if is_part(path):
            path.unlink(missing_ok=True)


def in_use(folder: Path) -> bool:
    """Whether another run holds this folder."""
    if fcntl is None or not (folder / LOCK).exists():
        return False
    path = folder / LOCK
    try:
        with path.open("r+" if os.access(path, os.W_OK) else "r") as file:  # it may be another user's
            return not _lock(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def find_interrupted(config: BenchmarkConfig, environment: dict[str, Any]) -> tuple[Path | None, Results | None, str]:
    """(folder, its results, why not more) of the run to go on with, in --output or one of its numbered siblings.

    With --resume a complete run counts too: there is nothing left to do in it.

    Raises:
        ConfigError: --resume, and there is no such run; the message says what is different about --output's.
    """
    why, output = "", output_folder(config.output)
    for folder in itertools.takewhile(_is_dir, _siblings(output)):
        earlier, found = _earlier(folder, config, environment)
        if earlier is not None and in_use(folder):
            if not config.dry_run:
                _wait_for(folder)
            earlier, found = _earlier(folder, config, environment)  # it may have finished rows meanwhile
            if in_use(folder):
                earlier, found = None, f"the run in {folder} is still going on"
        if earlier is not None and (earlier.status == "interrupted" or config.resume):
            return folder, earlier, ""
        why = why or found
    if config.resume:
        raise ConfigError(
            f"--resume: nothing to go on with; {why or f'{output} does not exist'}. Without --resume the run "
            "starts in a folder of its own, with --overwrite in this one"
        )
    return None, None, why


def _earlier(folder: Path, config: BenchmarkConfig, environment: dict[str, Any]) -> tuple[Results | None, str]:
    """(results of this run in the folder, why there are none)."""
    try:
        earlier = Results.load(folder / "results.json")
    except (ValueError, OSError) as error:
        missing = not (folder / "results.json").exists()
        return None, f"{folder} holds no results.json" if missing else f"{folder}: {error}"
    different = first_difference(
        identity(earlier.experiment, earlier.config, earlier.environment),
        identity(config.title, config.to_dict(), environment),
    )
    return (earlier, "") if different is None else (None, f"{folder} holds another run: {different}")


def _is_dir(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError as error:  # a name too long, or a folder above it that may not be searched
        raise _unusable(folder, error.strerror or str(error)) from error


def _wait_for(folder: Path) -> None:
    """Until a run in the folder has ended, as that of a torchrun that was killed soon does; at most WAIT seconds."""
    if WAIT:
        print(f"this run is still going on in {folder}: waiting {WAIT:.0f} s for its end", flush=True)
    end = time.monotonic() + WAIT
    while in_use(folder) and time.monotonic() < end:
        time.sleep(0.2)


def _siblings(folder: Path) -> Iterator[Path]:
    """The folder itself, <name>-2, <name>-3, ..."""
    yield folder
    if folder.name:  # the root has none
        yield from (folder.with_name(f"{folder.name}-{number}") for number in range(2, 10_000))
