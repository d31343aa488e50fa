"""What the command lines of the package share: errors in one line, output files checked first, no tracebacks."""

from __future__ import annotations

import argparse
import difflib
import functools
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TextIO

from poh_ext._files import is_replaced, why_not_writable
from poh_ext._optional import MissingPackage

__all__ = [
    "BAD_OPTIONS",
    "INTERRUPTED",
    "READER_LEFT",
    "Parser",
    "counted",
    "did_you_mean",
    "number",
    "run",
    "run_command",
    "said_on",
    "whole",
]

BAD_OPTIONS = 2
INTERRUPTED = 130  # as a shell reports SIGINT
READER_LEFT = 141  # and SIGPIPE


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line (exit status 2), with options for files to write.

    Examples:
        >>> parser = Parser(prog="python -m poh_ext.bench")
        >>> parser.add_output("--json", help="write every sample to FILE")
        >>> parser.parse_args(["--json", "/etc"])
        python -m poh_ext.bench: error: argument --json: /etc cannot be written: it is a folder
    """

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self._outputs: dict[str, str] = {}  # flag -> name of its value
        # argparse takes the -1,0 of --start for a flag. No flag begins like a number, so that is a value.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def add_output(self, flag: str, *, help: str, suffix: str = "", metavar: str = "FILE") -> None:
        """An option, or an argument, that names a file to write: refused while parsing where that cannot be done.

        A name with another `suffix` is refused, too, because programs that open the file go by it.
        """
        kind = functools.partial(_output_file, suffix=suffix)
        self._outputs[flag] = self.add_argument(flag, type=kind, metavar=metavar, help=help).dest

    def parse_args(self, *arguments, **options) -> argparse.Namespace:
        """Also refuses two options that would write the same file, of which only the second were left."""
        values = super().parse_args(*arguments, **options)
        flags: dict[str, str] = {}
        for flag, name in self._outputs.items():
            path = getattr(values, name)
            if path is not None and is_replaced(path):
                other = flags.setdefault(os.path.realpath(path), flag)
                if other != flag:
                    self.error(f"{other} and {flag} name the same file, {path}")
        return values

    def error(self, message: str) -> None:
        self.exit(BAD_OPTIONS, f"{self.prog}: error: {message}\n")


def _output_file(text: str, suffix: str) -> Path:
    reason = "it is a folder" if text.endswith(os.sep) else why_not_writable(text)
    if not reason and suffix and Path(text).suffix.lower() not in ("", suffix):
        reason = f"the name must end in {suffix}, or have no suffix"
    if reason:
        raise argparse.ArgumentTypeError(f"{text or repr(text)} cannot be written: {reason}")
    return Path(text)


def counted(n: int, what: str) -> str:
    """ "1 move", "2 moves", "3 passes"."""
    return f"{n} {what}" + ("" if n == 1 else "es" if what.endswith("s") else "s")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """What is wrong with a command that is none of `names`."""
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    what = "option" if name.startswith("-") else "command"
    return f"unknown {what} {name!r}; {hint}commands: {', '.join(names)}"


def number(unit: str, *, least: float | None = None, most: float = math.inf, what: str = "") -> Callable[[str], float]:
    """The type of an option that takes a finite number, above 0 or, with `least`, from there to `most`.

    Errors say the unit, what was given, and what is accepted; `what` is the subject of "must be".
    """
    accepted = "positive" if least is None else f"at least {least:g}"
    accepted += " and finite" if most == math.inf else f" and at most {most:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number ({unit}), {accepted}, got {text!r}") from None
        low = value > 0 if least is None else value >= least
        if not (low and value <= most and value < math.inf):  # NaN is neither
            raise argparse.ArgumentTypeError(f"{what} must be {accepted}, got {text} ({unit})".lstrip())
        return value

    return read


def whole(unit: str, least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """The same of an option that takes a whole number."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"must be a whole number ({unit}), at least {least}, got {text!r}"
            ) from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value} ({unit})")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, got {value} ({unit})")
        return value

    return read


def said_on(*outputs: Path | None) -> TextIO:
    """Where a command says what it did: standard error where an output is a stream, which may be standard output."""
    return sys.stdout if all(path is None or is_replaced(path) for path in outputs) else sys.stderr


def run(main: Callable[..., int], *arguments) -> int:
    """Exit status of main(*arguments), whose lines are written as they come, whatever reads them and they hold.

    Ctrl-C ends with a line and 130. A reader that leaves (`| head -1`) ends it quietly with 141. A file that cannot
    be written after all, of a full disk say, ends with a line and 1.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        try:
            return main(*arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        about = error.filename
        if about is None:  # of a stream: of which?
            broken = next(filter(_is_broken, (sys.stdout, sys.stderr)), None)
            if broken is None:
                raise
            _lead_nowhere(broken)
            if isinstance(error, BrokenPipeError):
                return READER_LEFT
            about = "standard output"
        print(f"error: {about}: {error.strerror}", file=sys.stderr)
        return 1


def run_command(
    command: Callable[[Parser, Sequence[str]], int], program: str, about: str | None, arguments: Sequence[str]
) -> int:
    """`run` of a command, which declares its options with the parser that it gets.

    What is wrong with them after all, and a package that is missing, end with a line and 2.
    """

    def guarded() -> int:
        parser = Parser(prog=program, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        try:
            return command(parser, arguments)
        except (ValueError, FileNotFoundError, MissingPackage) as error:
            print(f"error: {error}", file=sys.stderr)
            return BAD_OPTIONS

    return run(guarded)


def _is_broken(stream: TextIO | None) -> bool:
    """Whether nothing can be written to it. A stream forgets a fault, and a write of nothing finds none."""
    try:
        if stream is not None:
            print(file=stream, flush=True)
    except OSError:
        return True
    return False


def _lead_nowhere(stream: TextIO) -> None:
    """Python's own flush at the exit then finds no fault."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
