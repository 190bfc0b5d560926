"""Every `pip install` in documents and error messages names something that can be installed.

The project is on no package index, where anybody may take its name.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.environments import NAME, ROOT

PACKAGES = (ROOT / "proto" / "teacher_proto", ROOT / "teacher_server", ROOT / "student_trainer")
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
SOURCES = tuple(file for package in PACKAGES for file in sorted(package.rglob("*.py")))
INSTALL = re.compile(r"pip install (?:-\S+ )*['\"]?([^\s'\"`,]+)")
EXTRAS = set(
    tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
)


def installed(files: tuple[Path, ...]) -> Iterator[tuple[str, str]]:
    """(file, what it tells to install)."""
    for file in files:
        for target in INSTALL.findall(file.read_text()):
            yield str(file.relative_to(ROOT)), target


@pytest.mark.parametrize("files", [DOCUMENTS, SOURCES], ids=["documents", "sources"])
def test_nobody_is_sent_to_an_index_for_this_project(files: tuple[Path, ...]) -> None:
    found = list(installed(files))
    assert found
    for file, target in found:
        assert not re.match(r"lsm[-_.]distill(\[|$|[=<>~])", target, re.IGNORECASE), (file, target)


def test_the_extras_and_the_wheel_of_the_documents_exist(wheel: Path) -> None:
    local = [(f, t) for f, t in installed(DOCUMENTS) if t.startswith(".") or ".whl" in t]
    assert {"README.md"} < {file for file, _ in local}
    for file, target in local:
        path, _, extras = target.rstrip("]").partition("[")
        assert path in (".", f"dist/{wheel.name}"), (file, target)
        assert {*filter(None, extras.split(","))} <= EXTRAS, (file, target)


def test_the_distribution_is_called_as_the_errors_say(wheel: Path) -> None:
    assert wheel.name.startswith(f"{NAME.replace('-', '_')}-")
    assert wheel.name.endswith("-py3-none-any.whl")
