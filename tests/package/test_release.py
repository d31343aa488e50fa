"""What a release says of itself, and when `make release` refuses to make one."""

import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from tools.check_release import declared, why_not

ROOT = Path(__file__).resolve().parents[2]
FILES = ("pyproject.toml", "CHANGELOG.md", "CITATION.cff", "Makefile", "tools/check_release.py")


def git(root, *words):
    named = (
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@example.org",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "tag.gpgsign=false",
    )
    subprocess.run(["git", *named, *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def released(tmp_path):
    """A commit of the files that matter, with the tag of the version."""
    (tmp_path / "tools").mkdir()
    for name in FILES:
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    version = declared(tmp_path)["pyproject.toml"][0]
    for words in (
        ("init", "-q"),
        ("add", "-A"),
        ("commit", "-qm", "Release"),
        ("tag", "-a", f"v{version}", "-m", version),
    ):
        git(tmp_path, *words)
    return tmp_path, version


def test_the_version_is_the_same_everywhere():
    said = declared(ROOT)
    (version,) = {version for version, _ in said.values()}
    assert version.count(".") == 2
    (day,) = {day for _, day in said.values() if day}
    assert date.fromisoformat(day).year >= 2026


def test_a_tagged_commit_is_released(released):
    assert why_not(released[0]) == ""


def test_a_tree_with_changes_is_refused(released):
    root, _ = released
    (root / "new.txt").write_text("")
    assert why_not(root) == "the tree is not what was committed: ?? new.txt; commit it or take it away"
    (root / "Makefile").write_text("")
    assert why_not(root) == "the tree is not what was committed: M Makefile and 1 more; commit it or take it away"


@pytest.mark.parametrize("other", ["", "v0.0.9"])
def test_a_commit_without_its_tag_is_refused_in_a_line(released, other):
    root, version = released
    git(root, "tag", "-d", f"v{version}")
    if other:
        git(root, "tag", other)
    done = subprocess.run(["make", "--no-print-directory", "release", f"PYTHON={sys.executable}"], cwd=root,
                          capture_output=True, text=True)  # fmt: skip
    line, *make = done.stderr.splitlines()
    tag = f"v{version}"
    assert line == f"no release: the commit must have the tag {tag}, it has {other or 'none'}: git tag -a {tag}"
    assert done.returncode == 2 and done.stdout == "" and len(make) == 1
    assert not (root / "dist").exists()


@pytest.mark.parametrize(
    "name, old, new, line",
    [
        ("CITATION.cff", "version: {}", "version: 9.9.9", "CITATION.cff says version 9.9.9, pyproject.toml says {}"),
        ("CHANGELOG.md", "## [{}]", "## {}", "CHANGELOG.md says version 0.1.0, pyproject.toml says {}"),
        ("CITATION.cff", "date-released: 2", "date-released: 1", "CITATION.cff says date 1"),
    ],
)
def test_files_that_contradict_each_other_are_refused(released, name, old, new, line):
    root, version = released
    text = (root / name).read_text()
    assert old.format(version) in text
    (root / name).write_text(text.replace(old.format(version), new.format(version)))
    assert why_not(root).startswith(line.format(version))


def test_what_is_no_clone_is_refused(released):
    root, _ = released
    shutil.rmtree(root / ".git")
    assert why_not(root).startswith("a release is made from a clone, and git does not know this folder: ")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
def test_requirements_are_those_of_an_extra_and_of_the_extras_that_it_names():
    from tools.requirements import required

    extras = {"a": ["x"], "b": ["poh_ext[a]", "y>=1"], "c": ["z", "poh_ext[a,b]", "torch"]}
    project = {"dependencies": ["torch"], "optional-dependencies": extras}
    pyproject = {"build-system": {"requires": ["cmake"]}, "project": project}
    wanted = {"build": ["cmake"], "a": ["torch", "x"], "b": ["torch", "x", "y>=1"], "c": ["torch", "z", "x", "y>=1"]}
    assert {what: required(pyproject, what) for what in wanted} == wanted
