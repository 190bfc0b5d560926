"""``student-trainer study lab``: small teachers and students, made on the spot."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.commands.shared import natural, positive, quiet_libraries

if TYPE_CHECKING:
    from student_trainer.study.lab.recipe import Run


# Students that are made unless the command says how many.
STUDENTS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("lab"), metavar="DIR",
        help="where links to the models, prompts and lab.json go (lab)",
    )  # fmt: skip
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="another laboratory")
    parser.add_argument(
        "--students", type=natural, default=STUDENTS, metavar="N",
        help=f"students of each task besides its teacher ({STUDENTS}); 0 makes teachers alone",
    )  # fmt: skip
    parser.add_argument(
        "--task", type=_names, metavar="NAMES", dest="tasks",
        help="sums, sums-digits, order or sums-order, or several with commas (sums,order)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=positive, metavar="N", help="processes at a time (one a core)"
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


def _names(text: str) -> list[str]:
    return text.split(",")


def run(arguments: argparse.Namespace) -> int:
    from student_trainer.study.lab import recipe

    tasks = arguments.tasks or list(recipe.MADE)
    if unknown := [task for task in tasks if task not in recipe.TASKS]:
        raise ConfigurationError(
            f"there is no task {unknown[0]!r}",
            where="--task",
            fix=f"choose among {', '.join(recipe.TASKS)}",
        )
    if arguments.run_name is not None:
        return _one(arguments, tasks)
    return _all(arguments, tasks)


def _one(arguments: argparse.Namespace, tasks: Sequence[str]) -> int:
    from student_trainer.study.lab import recipe
    from student_trainer.study.lab.making import make

    runs = recipe.runs(arguments.seed, recipe.MOST * arguments.students, tasks)
    found = [run for run in runs if run.name == arguments.run_name]
    if not found:
        raise ConfigurationError(
            f"there is no run {arguments.run_name!r}",
            where="--run",
            fix=f"choose among {', '.join(run.name for run in runs)}",
        )
    quiet_libraries()
    make(recipe.quick(found[0]) if arguments.quick else found[0], _note, bars=not arguments.quick)
    return 0


def _all(arguments: argparse.Namespace, tasks: Sequence[str]) -> int:
    from student_trainer.study.lab import recipe
    from student_trainer.study.lab.document import (
        describe,
        link_models,
        write_document,
        write_prompts,
    )
    from student_trainer.study.parts.origin import origin

    options = {
        "seed": arguments.seed,
        "students": arguments.students,
        "task": tasks,
        "quick": arguments.quick,
    }
    runs, refused = _make(arguments, tasks)
    if arguments.quick:
        runs = [recipe.quick(run) for run in runs]
    models = link_models(arguments.out, runs)
    measured = list(dict.fromkeys(one for task in tasks for one in recipe.measured_on(task)))
    write_prompts(arguments.out, measured)
    document = describe(measured, models, refused, origin("lab", options))
    path = write_document(arguments.out, document)
    if lacking := len(recipe.runs(arguments.seed, arguments.students, tasks)) - len(models):
        raise LsmError(
            f"{lacking} models are lacking; {len(refused)} runs left none: "
            f"{'; '.join(refused.values())}",
            where=str(path),
            fix="take another --seed; what was made is kept",
        )
    kinds = "teachers alone" if arguments.students == 0 else "teachers and students"
    sys.stdout.write(f"{len(models)} models ({kinds}), with their figures in {path}\n")
    for reason in refused.values():
        sys.stdout.write(f"refused, and the next taken: {reason}\n")
    return 0


def _make(arguments: argparse.Namespace, tasks: Sequence[str]) -> tuple[list[Run], dict[str, str]]:
    """Makes teachers and students, and others for students that are refused.

    Returns:
        All runs, and the names of those that left no model -> the reason.
    """
    from student_trainer.study.lab import recipe
    from student_trainer.study.lab.making import kept
    from student_trainer.study.lab.together import make_together

    same = ["--seed", str(arguments.seed), "--students", str(arguments.students)]
    same += ["--task", ",".join(tasks)]
    same += ["--quick"] if arguments.quick else []
    jobs = arguments.jobs or len(os.sched_getaffinity(0))
    tried: list[Run] = []
    refused: dict[str, str] = {}
    pending = recipe.runs(arguments.seed, arguments.students, tasks)
    while pending:
        # A process of its own, which loads torch, only for what the cache says nothing of.
        found = {
            run.name: kept(recipe.quick(run)) if arguments.quick else kept(run, bars=True)
            for run in pending
        }
        refused |= {name: reason for name, reason in found.items() if reason}
        unmade = [name for name, reason in found.items() if reason is None]
        refused |= make_together(unmade, same, jobs, _note)
        tried += pending
        names = [run.name for run in tried]
        pending = recipe.instead_of(refused, names, arguments.seed, arguments.students, tasks)
    return tried, refused


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
