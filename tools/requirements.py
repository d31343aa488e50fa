"""Print what pyproject.toml requires, a line each, for the Makefile: requirements.py build, or an extra.

Of an extra these are the libraries of poh_ext and of the extra, with those of the extras that it names.
"""

import re
import sys
from pathlib import Path

import tomllib


def required(pyproject: dict, what: str) -> list[str]:
    if what == "build":
        return pyproject["build-system"]["requires"]
    project = pyproject["project"]

    def libraries(extra: str) -> list[str]:
        found = []
        for line in project["optional-dependencies"][extra]:
            named = re.fullmatch(r"poh_ext\[(.*)\]", line)
            found += [library for other in named[1].split(",") for library in libraries(other)] if named else [line]
        return found

    return list(dict.fromkeys(project["dependencies"] + libraries(what)))


if __name__ == "__main__":
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    print(*required(tomllib.loads(text), sys.argv[1]), sep="\n")
