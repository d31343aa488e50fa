"""What the documentation site needs beyond mkdocs.yml.

Pages are docs/*.md and the files of OUTSIDE. Their links are those of the repository, relative to the file that they
stand in. On the site, a link to a page leads to that page, by its title where the text was its path, and a link to
another file to a copy of it (of Python, to a page with its text). A link to a file that does not exist stays as it is,
which `mkdocs build --strict` refuses.

Comments that only the site reads:

    <!-- site: include README.md until "## Install" -->      a file up to a line; with `after "..."` also from one
    <!-- site: help poh-ext solve -->                        what `poh-ext solve --help` prints
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "examples/README.md": "examples.md",
    "experiments/TRAINING_ENHANCEMENTS.md": "training.md",
    "notebooks/README.md": "notebooks.md",
}
LINK = re.compile(r"\[([^\[\]]*)\]\((?!\w+:|#)([^)\s#]+)(?=[#)])")
COMMENT = re.compile(r"^<!-- site: (.*) -->$", re.M)
INCLUDE = re.compile(r'include (\S+)(?: after "(.*)")? until "(.*)"')
NOT_SEARCHED = "---\nsearch: {exclude: true}\n---\n"
# Of a page: what keeps its code as it is, or a name in code on its own.
CODE = re.compile(r"<(a|h\d|pre)\b.*?</\1>|<code>((?:poh_ext\.|io\.)*)([A-Za-z]\w*)((?:\.\w+)?)</code>", re.S)


def on_config(config):
    formula = {"name": "math", "class": "formula", "format": _formula}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [formula]}
    if (ROOT / "docs" / "gpu.md").is_file():  # which `make gpu` writes
        next(part["Kernels"] for part in config.nav if "Kernels" in part).append({"On this GPU": "gpu.md"})
    return config


def on_files(files, config):
    for source, page in OUTSIDE.items():
        if page not in files.src_uris:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    sources = [_source(file) for file in files.documentation_pages()]
    for source in sources:
        text = (ROOT / source).read_text(encoding="utf-8")
        for target in sorted(filter(None, (_target(source, link) for _, link in LINK.findall(text)))):
            page = _page(target)
            if page in files.src_uris:
                continue
            if target.endswith(".py"):
                code = (ROOT / target).read_text(encoding="utf-8")
                files.append(
                    File.generated(config, page, content=f"{NOT_SEARCHED}# {target}\n\n~~~~python\n{code}~~~~\n")
                )
            else:
                files.append(File.generated(config, page, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    text = _with_links(markdown, _source(page.file), here)
    return COMMENT.sub(lambda match: _filled(match[1], here), text)


def on_page_content(content, page, config, files):
    """A public name in code leads to its description."""
    names = _described()

    def linked(match: re.Match) -> str:
        before, name, member = match.group(2, 3, 4)
        path = names.get(f"{'io.' if 'io.' in (before or '') else ''}{name}")
        if path is None:
            return match[0]
        return f'<autoref identifier="{path}{member}" optional>{match[0]}</autoref>'

    return CODE.sub(linked, content)


def _source(file: File) -> str:
    """Where a page comes from, in the repository."""
    return next((source for source, page in OUTSIDE.items() if page == file.src_uri and page != "index.md"),
                f"docs/{file.src_uri}")  # fmt: skip


def _target(source: str, link: str) -> str | None:
    """What a link in `source` names, in the repository; of a folder its README."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if (ROOT / target / "README.md").is_file():
        target += "/README.md"
    return target if (ROOT / target).is_file() and not target.startswith("..") else None


def _page(target: str) -> str:
    """The site's file for one of the repository."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return OUTSIDE.get(target, f"files/{target}.md" if target.endswith(".py") else f"files/{target}")


def _with_links(text: str, source: str, page: str) -> str:
    def moved(match: re.Match) -> str:
        words, link = match.groups()
        target = _target(source, link)
        if target is None:
            return match[0]
        if words in (link, target) and target.endswith(".md"):
            words = (ROOT / target).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        return f"[{words}]({posixpath.relpath(_page(target), posixpath.dirname(page) or '.')}"

    return LINK.sub(moved, text)


def _filled(comment: str, page: str) -> str:
    if match := INCLUDE.fullmatch(comment):
        text = (ROOT / match[1]).read_text(encoding="utf-8")
        return _with_links(_part(text, match[2], match[3], match[1]), match[1], page)
    what, _, command = comment.partition(" ")
    if what != "help":
        raise ValueError(f'{page}: {comment!r} is unknown; accepted: help COMMAND, include FILE until "LINE"')
    return f"~~~~text\n{_help(command.split()[1:])}~~~~"


def _part(text: str, after: str | None, until: str, name: str) -> str:
    """The lines of a text between two, which are named by what they begin with."""
    for begin in (after, until):
        if begin and f"\n{begin}" not in text:
            raise ValueError(f"{name} has no line that begins with {begin!r}")
    if after:
        text = text.partition(f"\n{after}")[2].partition("\n")[2]
    return text.partition(f"\n{until}")[0]


def _help(words: list[str]) -> str:
    from poh_ext.commands import program

    said, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            program.main([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return said.getvalue()


def _described() -> dict[str, str]:
    """Public names, those of poh_ext.io with "io." before them, and what the API pages call them."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "api").glob("*.md")))
    paths = re.findall(r"^::: (\S+)$", pages, re.M)
    return {("io." if path.startswith("poh_ext.io.") else "") + path.rpartition(".")[2]: path for path in paths}


def _formula(source: str, language: str, css_class: str, options: dict, md, **_) -> str:
    return f'<div class="{css_class}">{convert(source, display="block")}</div>'
