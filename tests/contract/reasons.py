"""The reasons that the source code gives errors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

NAME = re.compile(r"[A-Z][A-Z0-9_]+")
# Functions that take a reason by position: name -> which argument it is.
BY_POSITION = {"refuse": 3, "over_limit": 5}


@dataclass
class Found:
    """Where a reason is given, and to which classes of errors, as far as the code shows it."""

    path: Path
    kinds: set[str] = field(default_factory=set)


@cache
def reasons_in(*folders: Path) -> dict[str, Found]:
    """Every reason that the source code gives an error."""
    sources = [
        path
        for folder in folders
        for path in (sorted(folder.rglob("*.py")) if folder.is_dir() else [folder])
    ]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sources}
    constants = dict(pair for tree in trees.values() for pair in _constants(tree))
    found: dict[str, Found] = {}
    for path, tree in trees.items():
        for reason, kind in _reasons(tree, constants):
            one = found.setdefault(reason, Found(path))
            one.kinds |= {kind} - {""}
    return found


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Constants of a module whose value can be a reason."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            value = node.value.value
            if isinstance(value, str) and NAME.fullmatch(value):
                yield from ((one.id, value) for one in node.targets if isinstance(one, ast.Name))


def _reasons(tree: ast.AST, constants: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(reason, class of the error, or nothing where that is not in sight)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            name = getattr(node.func, "attr", name)
            kind = "InvalidRequestError" if name in BY_POSITION else name
            kind = kind if kind.endswith("Error") else ""
            for keyword in node.keywords:
                if keyword.arg == "reason":
                    yield from ((one, kind) for one in _names(keyword.value, constants))
            if name in BY_POSITION and len(node.args) > BY_POSITION[name]:
                given = node.args[BY_POSITION[name]]
                yield from ((one, kind) for one in _names(given, constants))
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.Assign | ast.AnnAssign) and inner.value:
                    targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
                    if any(map(_is_reason, targets)):
                        yield from ((one, node.name) for one in _names(inner.value, constants))
        elif isinstance(node, ast.Assign) and any(map(_is_reason, node.targets)):
            yield from ((one, "") for one in _names(node.value, constants))
        elif isinstance(node, ast.arguments):
            yield from ((one, "") for one in _of_defaults(node, constants))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "reason":
                    yield from ((one, "") for one in _names(value, constants))
        elif isinstance(node, ast.Tuple) and len(node.elts) > 1 and _is_error(node.elts[0]):
            yield from ((one, "") for one in _names(node.elts[1], constants))


def _of_defaults(node: ast.arguments, constants: dict[str, str]) -> Iterator[str]:
    named = [*node.posonlyargs, *node.args]
    for argument, default in zip(reversed(named), reversed(node.defaults), strict=False):
        if argument.arg == "reason":
            yield from _names(default, constants)
    for argument, value in zip(node.kwonlyargs, node.kw_defaults, strict=True):
        if argument.arg == "reason" and value is not None:
            yield from _names(value, constants)


def _is_reason(target: ast.expr) -> bool:
    if isinstance(target, ast.Tuple):
        return any(map(_is_reason, target.elts))
    return isinstance(target, ast.Name) and (
        target.id in ("reason", "default_reason") or target.id.endswith("_REASON")
    )


def _is_error(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return str(name).endswith("Error")


def _names(node: ast.expr, constants: dict[str, str]) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            if NAME.fullmatch(inner.value):
                yield inner.value
        elif isinstance(inner, ast.Name) and inner.id in constants:
            yield constants[inner.id]
