"""Reads the shape of the packages from their sources: files, imports, circles.

Nothing is imported. Every import statement counts, also those inside functions and
under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# Found at their place by Python's own rules.
MARKERS = {"__init__.py", "__main__.py", "py.typed"}

Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, and the dotted names that its statements import."""

    name: str
    is_package: bool
    imported: frozenset[str]

    @property
    def room(self) -> str:
        """The folder it stands in; a loose module of a package is a room of its own."""
        parent = self.name.rpartition(".")[0]
        return self.name if self.is_package or "." not in parent else parent


def read_modules(*packages: Path) -> dict[str, Module]:
    """Every module of the packages, by dotted name; generated stubs are left out."""
    modules = {}
    for package in packages:
        for file in sorted(package.rglob("*.py")):
            if "_pb2" not in file.name:
                module = _read(package, file)
                modules[module.name] = module
    return modules


def _read(package: Path, file: Path) -> Module:
    parts = file.relative_to(package.parent).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    return Module(name, is_package, frozenset(_imported(ast.parse(file.read_text()))))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            # The name may be a submodule, or something in the module.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(module: Module) -> set[str]:
    """The top-level packages that a module imports."""
    return {name.partition(".")[0] for name in module.imported}


def module_graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Which of the modules each one imports."""
    return {
        name: {target for raw in module.imported if (target := _home(raw, modules))} - {name}
        for name, module in modules.items()
    }


def _home(name: str, modules: Mapping[str, Module]) -> str | None:
    """The module that an imported name is, or is in."""
    if name in modules:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in modules else None


def room_graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Which rooms the modules of each room import from."""
    graph: dict[str, set[str]] = {module.room: set() for module in modules.values()}
    for name, targets in module_graph(modules).items():
        room = modules[name].room
        graph[room] |= {modules[target].room for target in targets} - {room}
    return graph


def circles(graph: Graph) -> list[set[str]]:
    """Groups of two or more nodes that all reach each other."""
    reach = {node: _reachable(graph, node) for node in graph}
    found: list[set[str]] = []
    for node in graph:
        group = {other for other in reach[node] if node in reach.get(other, ())}
        if len(group) > 1 and group not in found:
            found.append(group)
    return found


def _reachable(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for target in graph.get(todo.pop(), ()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


def loose_files(folder: Path) -> list[str]:
    """Names of the files right in a folder, markers and generated stubs aside."""
    return sorted(
        file.name
        for file in folder.iterdir()
        if file.is_file() and file.name not in MARKERS and "_pb2" not in file.name
    )


def folders(package: Path) -> Iterable[Path]:
    """The folders of a package, itself left out."""
    return (
        folder
        for folder in sorted(package.rglob("*"))
        if folder.is_dir() and folder.name != "__pycache__"
    )
