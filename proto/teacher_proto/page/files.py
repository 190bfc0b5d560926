"""The page's files, as they are in the package; nothing of them is made when it runs."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent / "static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
# An import or an export, as all modules of the page write them.
IMPORT = re.compile(r'^import (\{[^}]*\}) from "([^"]+)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export ((?:async )?function|const) (\w+)", re.MULTILINE)


@cache
def page_files() -> dict[str, bytes]:
    """The content of each file by its path below the page, such as ``view/look.js``."""
    return {
        file.relative_to(ROOT).as_posix(): file.read_bytes()
        for file in sorted(ROOT.rglob("*"))
        if file.suffix in TYPES
    }


def content_type(path: str) -> str:
    """Of a file of the page; raises KeyError for one of another kind."""
    return TYPES[Path(path).suffix]


@cache
def one_script(first: str) -> str:
    """A module of the page and everything that it imports, as one script without imports.

    Each module becomes a function that is called once and returns what it exports, those that
    are imported before those that import them.
    """
    files = page_files()
    parts: list[str] = []
    names: dict[str, str] = {}

    def add(path: str) -> str:
        """The name that holds the exports of a module."""
        if path in names:
            return names[path]
        text = files[path].decode()
        folder = Path(path).parent
        own = {there: add((folder / there).as_posix()) for _, there in IMPORT.findall(text)}
        exported = ", ".join(name for _, name in EXPORT.findall(text))
        text = IMPORT.sub(lambda found: f"const {found[1]} = {own[found[2]]};\n", text)
        text = EXPORT.sub(r"\1 \2", text)
        names[path] = f"module{len(names)}"
        parts.append(f"const {names[path]} = (() => {{\n{text}\nreturn {{ {exported} }};\n}})();")
        return names[path]

    add(first)
    return "\n".join(parts)


def source_hash(text: str) -> str:
    """How a content-security policy names a script or a style that stands in the page."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
