"""``student-trainer study games``: a small teacher of text games and students, made on the spot."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from teacher_proto.errors import ConfigurationError, LsmError
from teacher_proto.program.files import write_text

from student_trainer.commands.shared import natural, quiet_libraries

DOCUMENT = "games.json"
# Students that are made unless the command says how many.
STUDENTS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("games"), metavar="DIR",
        help="where links to the models and games.json go (games)",
    )  # fmt: skip
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="another laboratory")
    parser.add_argument(
        "--students", type=natural, default=STUDENTS, metavar="N",
        help=f"students besides the teacher ({STUDENTS})",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help="a few updates and no bar to reach: models that know nothing",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Makes the models one after the other.

    Raises:
        LsmError: a model misses a bar; the others are kept.
        ConfigurationError: textworld is not installed.
    """
    from student_trainer.quickstart.cache import MANIFEST
    from student_trainer.study.games import recipe
    from student_trainer.study.games.making import make
    from student_trainer.study.parts.origin import origin

    quiet_libraries()
    options = {
        "seed": arguments.seed,
        "students": arguments.students,
        "quick": arguments.quick,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    models, refused = {}, {}
    for run in recipe.runs(arguments.seed, arguments.students):
        chosen, task = recipe.quick(run) if arguments.quick else (run, recipe.TASK)
        try:
            folder = make(chosen, task, _note, bars=not arguments.quick)
        except ConfigurationError:
            raise
        except LsmError as error:
            refused[run.name] = error.what
            _note(f"{run.name}: {error.what}")
            continue
        link = arguments.out / run.name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(folder, arguments.out.resolve()))
        models[run.name] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    bars = {"teacher": recipe.TEACHER_BARS, "student": recipe.STUDENT_BARS}
    document = {**origin("games", options), "bars": bars, "models": models, "refused": refused}
    write_text(arguments.out / DOCUMENT, json.dumps(document, indent=2) + "\n")
    if refused:
        raise LsmError(
            f"{len(refused)} models are not kept: {'; '.join(refused.values())}",
            where=str(arguments.out / DOCUMENT),
            fix="take another --seed, or more --students; what was made is kept",
        )
    sys.stdout.write(f"{len(models)} models, with their figures in {arguments.out / DOCUMENT}\n")
    return 0


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
