"""docs/architecture.md names files that exist, and its rooms import as it says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = ("proto/teacher_proto", "teacher_server", "student_trainer")


def rooms(package: str) -> set[str]:
    """The folders of a package that hold source files."""
    return {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}


def documented(package: str) -> dict[str, set[str]]:
    """room -> rooms it may import, as the package's table has them."""
    (section,) = re.findall(rf"^### `{package}`.*?(?=^### |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    found: dict[str, set[str]] = {}
    for line in section.splitlines():
        if not line.startswith("| `"):
            continue
        names, _, imports = (re.sub(r"^every .*", "every", cell) for cell in cells(line))
        for name in re.findall(r"`(\w+)`", names):
            found[name] = rooms(package) if imports == "every" else set(re.findall(r"\w+", imports))
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def imported(package: str, room: str) -> Iterator[str]:
    """Rooms of the same package that the files of a room import."""
    name = Path(package).name
    for path in (ROOT / package / room).rglob("*.py"):
        if path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            for target in {node.module, *(f"{node.module}.{a.name}" for a in node.names)}:
                parts = target.split(".")
                if parts[0] == name and len(parts) > 1 and parts[1] in rooms(package) - {room}:
                    yield parts[1]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_is_in_its_table(package: str) -> None:
    assert set(documented(package)) == rooms(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_only_what_the_table_allows(package: str) -> None:
    for room, allowed in documented(package).items():
        assert set(imported(package, room)) <= allowed, room


def test_every_file_named_exists() -> None:
    """A path is from the root or from a package; a bare name is a file of a package or of
    one of its rooms."""
    names = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert len(names) > 20
    bases = [ROOT, *(ROOT / package for package in PACKAGES)]
    for name in names:
        rooms_too = [] if "/" in name else [f for base in bases for f in base.glob(f"*/{name}")]
        assert rooms_too or any((base / name).is_file() for base in bases), name
