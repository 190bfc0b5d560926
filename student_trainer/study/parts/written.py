"""A study's results as files: JSON, a table in Markdown, and a picture."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.distribution import install_command
from teacher_proto.program.files import write_text

Draw = Callable[[Mapping[str, Any], Path], None]


def check_pictures() -> None:
    """Raises ConfigurationError where matplotlib, which draws the pictures, is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError(
            "the pictures of a study need the package matplotlib",
            where="study",
            fix=install_command("study"),
        )


def write_results(
    folder: Path, name: str, document: Mapping[str, Any], table: str, draw: Draw
) -> list[Path]:
    """Writes ``NAME.json``, ``NAME.md`` and ``NAME.svg``, and returns their paths.

    Raises:
        ValueError: the document holds a number that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, text, picture = (folder / f"{name}.{kind}" for kind in ("json", "md", "svg"))
    write_text(data, json.dumps(document, indent=1, allow_nan=False) + "\n")
    write_text(text, table)
    draw(document, picture)
    return [data, text, picture]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with a line break at its end."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def new_figure(salt: str, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of matplotlib with panels side by side, which is written to the same bytes for
    the same numbers (``save_figure``)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = salt
    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), layout="constrained")
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure as SVG and closes it."""
    from matplotlib import pyplot

    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
