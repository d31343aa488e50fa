"""What README.md, docs/ and the other pages show is true: Python blocks run, command lines are accepted, names exist.

The Python blocks of a page run from the first to the last, in one namespace and an empty folder. A comment above a
block, which no reader sees, says what it needs:

    <!-- tests: first                    lines that run before it
    import torch
    -->
    <!-- tests: 1000 is 4 -->           a number that is smaller here, so that it takes no time
    <!-- tests: not run, REASON -->      it is only compiled, and the test is reported as skipped for that reason

Command lines are those of bash blocks, and those in `code` that have an option. They are parsed by the program's own
parser, which stops before the work.
"""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

import poh_ext
from poh_ext import mazes, tasks
from poh_ext.commands import program
from poh_ext.training import cli
from tests.cases.training import needs_tyro

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ["README.md", "CONTRIBUTING.md", "examples/README.md", "experiments/TRAINING_ENHANCEMENTS.md"]
PAGES = [*OTHERS, *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r"(?:^<!-- tests: ((?:(?!-->).)*?)\s*-->\n)?^```python\n(.*?)^```$", re.M | re.S)
BASH = re.compile(r"^```bash\n(.*?)^```$", re.M | re.S)
PROGRAMS = r"(?:poh-ext|python -m poh_ext|python (?:experiments|tests|bench)/)"
IN_CODE = re.compile(rf"(?<!`)`((?:POH_EXT\w+=\S+ )?{PROGRAMS}[^`]* --?\w[^`]*)`(?!`)")
NOT_RUN = "not run, "


def blocks(page: str) -> list[tuple[str, str]]:
    """(comment above it, block) of each Python block."""
    found = BLOCK.findall(TEXTS[page])
    assert len(found) == len(re.findall(r"^ *```python", TEXTS[page], re.M)), f"{page}: a block that is indented"
    return found


WITH_PYTHON = [page for page in PAGES if blocks(page)]
SKIPPED = [(page, comment, block) for page in WITH_PYTHON for comment, block in blocks(page) if NOT_RUN in comment]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_blocks_run(page, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {}
    for number, (comment, block) in enumerate(blocks(page)):
        if comment.startswith(NOT_RUN):
            continue
        if comment.startswith("first\n"):
            block = comment.removeprefix("first\n") + "\n" + block
        elif comment:
            old, new = re.fullmatch(r"(\d+) is (\d+)", comment).groups()
            assert re.search(rf"\b{old}\b", block), f"{page}: no {old} in the block below {comment!r}"
            block = re.sub(rf"\b{old}\b", new, block)
        exec(compile(block, f"{page}, Python block {number + 1}", "exec"), names)


@pytest.mark.parametrize("page, comment, block", SKIPPED, ids=[page for page, *_ in SKIPPED])
def test_the_other_python_blocks_compile(page, comment, block):
    compile(block, page, "exec")
    pytest.skip(f"{page}: {comment}")


class Parsed(BaseException):
    """Raised when a command line was accepted, in place of the work."""


@pytest.fixture
def only_parse(monkeypatch, tmp_path):
    """Programs stop with Parsed once they have read their options."""
    parse_args = argparse.ArgumentParser.parse_args

    def parsed(self, *arguments, **options):
        parse_args(self, *arguments, **options)
        raise Parsed

    def checked(config_type, arguments, name):
        cli.parse(config_type, sys.argv[1:] if arguments is None else arguments, program=name).check()
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(cli, "_main", checked)
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.chdir(tmp_path)


def lines_of(page: str) -> list[list[str]]:
    """The words of each command of a page, without comments and variables."""
    lines = [line for block in BASH.findall(TEXTS[page]) for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(code.split()) for code in IN_CODE.findall(TEXTS[page])]
    commands = []
    for line in lines:
        words = shlex.split(line, comments=True)
        for part in " ".join(map(shlex.quote, words)).split(" '&&' "):
            command = shlex.split(part)
            while command and re.match(r"[A-Z_]+=", command[0]):
                command.pop(0)
            if command:
                commands.append(command)
    return commands


def test_command_lines_are_found():
    assert ["make", "lint"] in lines_of("CONTRIBUTING.md")
    assert ["python", "-m", "poh_ext.bench", "--only", "passes"] in lines_of("docs/solve.md")
    assert all(lines_of(page) for page in PAGES if BASH.search(TEXTS[page]))


def check_make(words):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    targets |= set(re.search(r"^\.PHONY: (.*?[^\\])$", (ROOT / "Makefile").read_text(), re.M | re.S)[1].split())
    assert {word for word in words if not word.startswith("-") and "=" not in word} <= targets, words


def check_pip(words):
    assert words[0] == "install"
    for extras in re.findall(r"(?:\.|poh_ext)\[([\w,]+)\]", " ".join(words)):
        if tomllib is not None:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), words


def check_python(words, monkeypatch):
    if words[0] == "-m" and words[1] in ("pytest", "mkdocs"):
        assert all((ROOT / word).exists() for word in words[2:] if "/" in word), words
        return
    if words[0] == "-m":
        monkeypatch.setattr(sys, "argv", words[1:])
        with pytest.raises(Parsed):
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    path = ROOT / words[0]
    assert path.is_file(), words
    if "--" in " ".join(words):
        monkeypatch.setattr(sys, "argv", [str(path), *words[1:]])
        with pytest.raises(Parsed):
            runpy.run_path(str(path), run_name="__main__")


@needs_tyro
@pytest.mark.parametrize("page", [page for page in PAGES if lines_of(page)])
def test_the_command_lines_are_accepted(page, only_parse, monkeypatch):
    for name, *words in lines_of(page):
        name = Path(name).name
        if name == "make":
            check_make(words)
        elif name == "pip":
            check_pip(words)
        elif name == "python":
            check_python(words, monkeypatch)
        elif name == "poh-ext" and words not in (["--help"], ["--version"]):
            with pytest.raises(Parsed):
                program.main(words)
        else:
            assert name in ("poh-ext", "cmake"), [name, *words]


def test_every_command_is_on_the_page_of_commands():
    headings = re.findall(r"^#+ poh-ext (.+)$", TEXTS["docs/api/commands.md"], re.M)
    assert set(headings) == {*program.COMMANDS, "maze make", "maze convert", "maze print"}


def test_every_generator_and_kind_of_start_is_described():
    text = TEXTS["docs/mazes.md"]
    assert set(mazes.GENERATORS) == set(re.findall(r"^\| `(\w+)` \| .* \| .* \|$", text, re.M))
    assert all((ROOT / "docs" / "figures" / f"maze_{name}.svg").is_file() for name in mazes.GENERATORS)
    assert set(tasks.STARTS) - {"any"} <= set(re.findall(r'"([\w-]+)"', text))


def test_every_format_is_described():
    assert set(poh_ext.io.FORMATS) == set(re.findall(r"^\| `(\w+)` \|", TEXTS["docs/formats.md"], re.M))


def test_every_page_is_in_the_navigation():
    config = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"^ +- [^:]+: (\S+\.md)$", config, re.M)) | {"gpu.md"}  # mkdocs_hook.py adds it
    assert {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} <= listed


@pytest.mark.parametrize("page", [page for page in PAGES if "|---" in TEXTS[page]])
def test_tables_have_as_many_columns_as_headings(page):
    lines = [re.sub(r"`[^`]*`", "", line.strip()) for line in TEXTS[page].splitlines()]
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|(-+\|)+", line):
            assert lines[number - 1].count("|") == line.count("|"), f"{page}, line {number}"
            assert number + 1 < len(lines) and lines[number + 1].count("|") == line.count("|"), f"{page}, line {number}"


def test_headings_open_with_the_title_of_the_page():
    for page, text in TEXTS.items():
        assert text.startswith(("# ", "<!-- site: include ")), page


@pytest.mark.parametrize("page", PAGES)
def test_lists_begin_after_a_blank_line(page):
    """Without one the site shows the item as part of the paragraph or table above it."""
    text = re.sub(r"^( *)(```|~~~).*?^\1\2", "", TEXTS[page], flags=re.M | re.S)
    for part in re.split(r"\n\s*\n", text):
        item = re.search(r"^ *([-*]|\d{1,2}\.) .*", part, re.M)
        assert item is None or item.start() == 0, f"{page}: {item[0]}"
