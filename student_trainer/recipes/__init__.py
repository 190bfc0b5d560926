"""Ready settings. ``student-trainer recipes`` lists them, and ``train recipe:NAME`` reads
one like a file, so that later files and ``--set`` override it.

A recipe is a TOML file in this folder or in one of its folders, of a name of its own. Its first
comment line is its purpose. ``published`` holds the settings of others' published runs.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from teacher_proto.errors import ConfigurationError

PREFIX = "recipe:"
RECIPES = Path(__file__).parent


def names() -> list[str]:
    return sorted(_files())


def recipe(name: str) -> Path:
    """The file of a recipe.

    Raises:
        ConfigurationError: there is no recipe of this name; the nearest one is named.
    """
    files = _files()
    if name not in files:
        close = difflib.get_close_matches(name.lower(), names(), n=1, cutoff=0.4)
        advice = f"did you mean {close[0]}? " if close else ""
        raise ConfigurationError(
            f"there is no recipe {name!r}",
            where=f"{PREFIX}{name}",
            fix=f"{advice}there are {', '.join(names())}",
        )
    return files[name]


def _files() -> dict[str, Path]:
    return {path.stem: path for path in RECIPES.rglob("*.toml")}


def config_files(given: Sequence[str]) -> list[Path]:
    """The configuration files of a command line, where ``recipe:NAME`` is a recipe's file."""
    return [
        recipe(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else Path(text)
        for text in given
    ]


def purpose(path: Path) -> str:
    """The first comment line of a recipe."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this one whole, to copy")


def run(arguments: argparse.Namespace) -> int:
    if arguments.name is not None:
        sys.stdout.write(recipe(arguments.name).read_text(encoding="utf-8"))
        return 0
    width = max(len(name) for name in names())
    for name in names():
        sys.stdout.write(f"{name:<{width}}  {purpose(recipe(name))}\n")
    return 0
