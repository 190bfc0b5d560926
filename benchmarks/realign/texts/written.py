"""English: prose, code and a licence, all of it on the machine."""

from __future__ import annotations

import inspect
import re
import site
import sys
from pathlib import Path

# What Debian keeps, and what every environment has.
LICENCES = Path("/usr/share/common-licenses")


def prose(tuning: bool) -> str:
    from pydoc_data.topics import topics

    chosen = sorted(name for name in topics if len(topics[name]) > 2000)[not tuning :: 2]
    words = "\n\n".join(topics[name] for name in chosen)
    return " ".join(line.strip() for line in words.splitlines() if line.strip())[:240_000]


def code(tuning: bool) -> str:
    import argparse
    import configparser
    import difflib
    import shlex
    import statistics
    import textwrap

    chosen = (textwrap, statistics, argparse) if tuning else (shlex, difflib, configparser)
    return "".join(inspect.getsource(module) for module in chosen)


def licence(tuning: bool) -> str:
    """Two licences of one kind: the first is learnt, the second is realigned. Without Debian's
    files, what the installed packages carry."""
    names = ("LGPL-2.1", "GPL-2") if tuning else ("GPL-3", "MPL-1.1", "Apache-2.0")
    files = [LICENCES / name for name in names]
    if not all(file.is_file() for file in files):
        files = _packaged_licences()[tuning::2]
    return "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)


def _packaged_licences() -> list[Path]:
    """Long ones, one of each text."""
    found: dict[str, Path] = {}
    for folder in site.getsitepackages():
        for file in sorted(Path(folder).glob("*.dist-info/**/LICENSE*")):
            text = file.read_text(encoding="utf-8", errors="ignore") if file.is_file() else ""
            if len(text) > 8000:
                found.setdefault(re.sub(r"\W", "", text[200:4000]), file)
    if len(found) < 4:
        raise RuntimeError(
            f"no licences: neither {LICENCES} nor four different ones in {sys.prefix}; "
            "leave the text out with --texts"
        )
    return list(found.values())
