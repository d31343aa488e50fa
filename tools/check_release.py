"""Refuse a release, in one line, whose tree, tag and version do not agree: `make release` runs this first.

The version stands in pyproject.toml. CHANGELOG.md and CITATION.cff repeat it, and the tag of the commit is v and it.
"""

import re
import subprocess
import sys
from pathlib import Path

PLACES = {  # file -> (pattern of the version, pattern of the date or none), both of the newest release
    "pyproject.toml": (r'^version = "([^"]+)"$', None),
    "CHANGELOG.md": (r"^## \[([^\]]+)\] - ", r"^## \[[^\]]+\] - (\S+)$"),
    "CITATION.cff": (r"^version: (\S+)$", r"^date-released: (\S+)$"),
}


def declared(root: Path) -> dict[str, tuple[str, str]]:
    """file -> (version, date) as it says them, '' for what it does not say."""

    def first(pattern: str | None, text: str) -> str:
        found = re.search(pattern, text, re.M) if pattern else None
        return found[1] if found else ""

    texts = {name: (root / name).read_text(encoding="utf-8") for name in PLACES}
    return {name: (first(version, texts[name]), first(date, texts[name])) for name, (version, date) in PLACES.items()}


def why_not(root: Path) -> str:
    """Why the tree at `root` cannot be released, '' if it can."""
    said = declared(root)
    version = said["pyproject.toml"][0]
    for name, (other, date) in said.items():
        if other != version:
            return f"{name} says version {other or 'nothing'}, pyproject.toml says {version}"
        if date and date != said["CHANGELOG.md"][1]:
            return f"{name} says date {date}, CHANGELOG.md says {said['CHANGELOG.md'][1]}"

    def git(*words: str) -> list[str]:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()

    try:
        changes, tags = git("status", "--porcelain"), git("tag", "--points-at", "HEAD")
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return f"a release is made from a clone, and git does not know this folder: {lines[0]}"
    if changes:
        more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        return f"the tree is not what was committed: {changes[0].strip()}{more}; commit it or take it away"
    if f"v{version}" not in tags:
        return f"the commit must have the tag v{version}, it has {', '.join(tags) or 'none'}: git tag -a v{version}"
    return ""


if __name__ == "__main__":
    if reason := why_not(Path(__file__).resolve().parents[1]):
        sys.exit(f"no release: {reason}")
