"""Prints what some extras of pyproject.toml need, one requirement a line, so that an
image gets its dependencies in a layer that outlives changes to our own code.

    requirements.py PYPROJECT EXTRA...
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

OWN_EXTRAS = re.compile(r"lsm-distill\[([a-z,-]+)\]")


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The base dependencies and those of ``extras``, extras of our own resolved."""
    project = tomllib.loads(pyproject.read_text())["project"]
    found: dict[str, None] = dict.fromkeys(project["dependencies"])
    todo, seen = list(extras), set()
    while todo:
        extra = todo.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for line in project["optional-dependencies"][extra]:
            own = OWN_EXTRAS.fullmatch(line)
            if own:
                todo += own[1].split(",")
            else:
                found[line] = None
    return list(found)


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])) + "\n")
