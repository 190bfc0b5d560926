"""The cells of each pair, kept in a file of their own, so that a run can be done in parts.

A file holds for the code that gave it: it is used as long as the sources of realignment and of
the benchmark are what they were.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, commit, machine
from benchmarks.realign.figures import Found

ROOT = Path(__file__).parents[2]
SOURCES = ("teacher_server/realign", "benchmarks/realign", "proto/teacher_proto/rows.py")


def keep(pair: tuple[str, str], cells: list[Found]) -> None:
    """Writes a pair's cells, with the commit and the machine."""
    document = {"sources": digest(), "commit": commit(), "machine": machine(), "cells": cells}
    path = _path(pair)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def kept(pair: tuple[str, str]) -> list[Found] | None:
    """A pair's cells, by the code as it is; None where there are none."""
    path = _path(pair)
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text())
    cells: list[Found] = document["cells"]
    return cells if document["sources"] == digest() else None


@cache
def digest() -> str:
    """Of all sources that decide a cell."""
    found = hashlib.sha256()
    for name in SOURCES:
        place = ROOT / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            found.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def _path(pair: tuple[str, str]) -> Path:
    return RESULTS / "realign" / f"{pair[0]}-{pair[1]}.json"
