"""Runs the code cells of notebooks, each in a namespace of its own, as a kernel does: the value
of a cell's last expression is shown. ``python -m tests.support.notebook FILE...``."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

BEGINS = "notebook: "


def code_cells(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cells(path: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, text in enumerate(code_cells(path), 1):
        place = f"{path.name}, code cell {number}"
        tree = ast.parse(text, place)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, place, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), place, "eval"), names)  # noqa: S307
            if value is not None:
                print(repr(value))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(BEGINS + Path(argument).name)
        run_cells(Path(argument))
