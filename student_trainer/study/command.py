"""``student-trainer study NAME``: the studies, one row each."""

from __future__ import annotations

import argparse
from types import ModuleType

from student_trainer.study.compare import command as compare
from student_trainer.study.games import command as games
from student_trainer.study.lab import command as lab
from student_trainer.study.repetition import command as repetition
from student_trainer.study.variance import command as variance

# name -> the study's command, a module with ``add_arguments`` and ``run``, and what it does
STUDIES: dict[str, tuple[ModuleType, str]] = {
    "lab": (lab, "make small teachers and students from seeds (docs/study/lab.md)"),
    "games": (games, "make a small teacher and students of text games (docs/study/games.md)"),
    "variance": (variance, "how the noise of one-token gradients grows with discount and horizon"),
    "repetition": (repetition, "what a teacher says in a loop, and where each objective pushes"),
    "compare": (compare, "arms that differ in named settings, over seeds, from a TOML file"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    studies = parser.add_subparsers(dest="study", required=True, metavar="STUDY")
    for name, (module, text) in STUDIES.items():
        module.add_arguments(studies.add_parser(name, help=text, description=text))


def run(arguments: argparse.Namespace) -> int:
    module, _ = STUDIES[arguments.study]
    code: int = module.run(arguments)
    return code
