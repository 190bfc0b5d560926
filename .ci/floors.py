"""Reads requirements, one a line, and prints each at its lowest version: `name==version`.

What a build of torch decides is taken at the tested version: old builds know neither new
hardware nor new Pythons, and one is a gigabyte.

    docker/requirements.py pyproject.toml EXTRA... | .ci/floors.py constraints.txt
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

AT_THE_TESTED_VERSION = ("torch", "triton")
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?[^;]*?(?:>=|==)([\w.]+)[^;]*(?:;.*)?")


def floors(requirements: Iterable[str], tested: dict[str, str]) -> list[str]:
    """``name==version`` for each requirement.

    Raises:
        ValueError: one has no lower bound.
    """
    found = []
    for line in requirements:
        parts = REQUIREMENT.fullmatch(line.strip())
        if parts is None:
            raise ValueError(f"{line.strip()!r} has no lower bound")
        name, lowest = parts.groups()
        found.append(f"{name}=={tested[name] if name in AT_THE_TESTED_VERSION else lowest}")
    return found


def versions(constraints: Path) -> dict[str, str]:
    lines = constraints.read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


if __name__ == "__main__":
    sys.stdout.write("\n".join(floors(sys.stdin, versions(Path(sys.argv[1])))) + "\n")
