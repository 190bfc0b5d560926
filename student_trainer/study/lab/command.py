"""``student-trainer study lab``: small teachers and students, made on the spot."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from teacher_proto.errors import ConfigurationError, LsmError

if TYPE_CHECKING:
    from student_trainer.study.lab.recipe import Run


# Students that are made unless the command says how many.
STUDENTS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("lab"), metavar="DIR",
        help="where links to the models, prompts and lab.json go (lab)",
    )  # fmt: skip
    parser.add_argument("--seed", type=_natural, default=0, metavar="N", help="another laboratory")
    parser.add_argument(
        "--students", type=_natural, default=STUDENTS, metavar="N",
        help=f"students besides the teacher ({STUDENTS})",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", help="processes at a time (one a core)"
    )
    parser.add_argument(
        "--quick", action="store_true",
        help="a few updates and no bar to reach: models that know nothing, in a minute",
    )  # fmt: skip
    parser.add_argument(
        "--run",
        metavar="RUN",
        dest="run_name",
        help="make the model of one run, in this process",
    )


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _positive(text: str) -> int:
    if (value := _natural(text)) == 0:
        raise ValueError
    return value


def run(arguments: argparse.Namespace) -> int:
    from student_trainer.study.lab import recipe

    runs = recipe.runs(arguments.seed, arguments.students)
    if arguments.quick:
        runs = [recipe.quick(run) for run in runs]
    if arguments.run_name is not None:
        return _one(arguments.run_name, runs, bars=not arguments.quick)
    return _all(arguments, runs)


def _one(name: str, runs: Sequence[Run], *, bars: bool) -> int:
    found = [run for run in runs if run.name == name]
    if not found:
        raise ConfigurationError(
            f"there is no run {name!r}",
            where="--run",
            fix=f"choose among {', '.join(run.name for run in runs)}",
        )
    from student_trainer.commands.shared import quiet_libraries
    from student_trainer.study.lab.making import make

    quiet_libraries()
    make(found[0], _note, bars=bars)
    return 0


def _all(arguments: argparse.Namespace, runs: Sequence[Run]) -> int:
    from student_trainer.study.lab.document import (
        describe,
        link_models,
        write_document,
        write_prompts,
    )
    from student_trainer.study.lab.recipe import TASKS
    from student_trainer.study.lab.together import make_together
    from student_trainer.study.parts.origin import origin

    options = {
        "seed": arguments.seed,
        "students": arguments.students,
        "quick": arguments.quick,
    }
    same = ["--seed", str(arguments.seed), "--students", str(arguments.students)]
    same += ["--quick"] if arguments.quick else []
    jobs = arguments.jobs or len(os.sched_getaffinity(0))
    refused = make_together([run.name for run in runs], same, jobs, _note)
    models = link_models(arguments.out, runs)
    write_prompts(arguments.out, list(TASKS))
    document = describe(models, refused, origin("lab", options))
    path = write_document(arguments.out, document)
    if refused:
        raise LsmError(
            f"{len(refused)} of {len(runs)} runs left no model: {'; '.join(refused.values())}",
            where=str(path),
            fix="take another --seed; what was made is kept",
        )
    sys.stdout.write(f"{len(models)} models, with their figures in {path}\n")
    return 0


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
