"""``student-trainer study repetition``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

    from student_trainer.student.model import Student
    from student_trainer.study.repetition.models import Teacher

TOP_K, REPETITIONS = 32, 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--teacher", metavar="HOST:PORT",
        help="gRPC port of a service; without it and --model the quickstart's two models",
    )  # fmt: skip
    which.add_argument("--model", metavar="PATH", help="folder or hub name of the teacher")
    parser.add_argument(
        "--student", metavar="PATH",
        help="a model with the teacher's tokenizer; without it --model is measured alone",
    )  # fmt: skip
    parser.add_argument(
        "--teacher-name", default="default", metavar="NAME",
        help="the teacher's name at the service (default)",
    )  # fmt: skip
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="holds the token for the service"
    )
    parser.add_argument(
        "--ca", type=Path, metavar="PEM", help="encrypt, and trust these authorities alone"
    )
    parser.add_argument(
        "--repetitions", type=int, default=REPETITIONS, metavar="R",
        help=f"how often a loop is repeated after its first time ({REPETITIONS})",
    )  # fmt: skip
    parser.add_argument(
        "--top-k", type=int, default=TOP_K, metavar="K", help=f"ids of a support ({TOP_K})"
    )
    parser.add_argument(
        "--cases", type=Path, metavar="FILE",
        help="JSON Lines with name, question, answer and loop, in place of the built-in ones",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("study"), metavar="DIR",
        help="folder of repetition.json, repetition.md and repetition.svg (study)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    from student_trainer.commands.shared import quiet_libraries
    from student_trainer.study.parts.origin import origin
    from student_trainer.study.parts.written import check_pictures, write_results
    from student_trainer.study.repetition.cases import CASES, read_cases
    from student_trainer.study.repetition.loop import check_length, make_loop
    from student_trainer.study.repetition.probe import probe
    from student_trainer.study.repetition.report import draw, figures, table

    check_pictures()
    quiet_libraries()
    cases = CASES if arguments.cases is None else read_cases(arguments.cases)
    with _models(arguments) as (reader, teacher, student, ids):
        if not arguments.top_k < len(ids):
            raise ConfigurationError(
                f"there are {len(ids)} ids, and a support of {arguments.top_k} has no rest",
                where="--top-k",
                fix=f"give at most {len(ids) - 1}",
            )
        loops = [make_loop(case, reader.tokenizer, arguments.repetitions) for case in cases]
        check_length(loops, reader.max_length, "--repetitions")
        found = probe(loops, teacher, student, ids, arguments.top_k)
    document = {
        "study": "repetition",
        **origin("repetition", _options(arguments)),
        "settings": {"repetitions": arguments.repetitions, "top_k": arguments.top_k},
        "figures": figures(found),
        "cases": found,
    }
    text = table(document)
    sys.stdout.write(text + "\n")
    for path in write_results(arguments.out, "repetition", document, text, draw):
        sys.stdout.write(f"wrote {path}\n")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.teacher is not None and arguments.student is None:
        raise ConfigurationError(
            "a teacher behind a service is read by a student's tokens",
            where="--teacher",
            fix="give --student, or the teacher as --model",
        )
    if arguments.teacher is None and arguments.model is None and arguments.student is not None:
        raise ConfigurationError(
            "there is no teacher for it", where="--student", fix="give --teacher or --model"
        )
    for name, least in (("repetitions", 1), ("top_k", 2)):
        if getattr(arguments, name) < least:
            raise ConfigurationError(
                f"it is {getattr(arguments, name)}",
                where=f"--{name.replace('_', '-')}",
                fix=f"give at least {least}",
            )


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What repeats the command, without addresses and credentials."""
    model, student = arguments.model, arguments.student
    return {
        "teacher": None if arguments.teacher is None else "HOST:PORT",
        "model": None if model is None else Path(model),
        "student": None if student is None else Path(student),
        "repetitions": None if arguments.repetitions == REPETITIONS else arguments.repetitions,
        "top_k": None if arguments.top_k == TOP_K else arguments.top_k,
        "cases": arguments.cases,
    }


@contextmanager
def _models(
    arguments: argparse.Namespace,
) -> Iterator[tuple[Student, Teacher, Student | None, Tensor]]:
    """The model that reads the texts, the teacher, the student if there is one, and the ids that
    are compared."""
    from student_trainer.study.repetition.models import (
        LocalTeacher,
        ServedTeacher,
        load_model,
        local_ids,
    )

    if arguments.teacher is not None:
        from student_trainer.settings.teacher import TeacherSettings
        from student_trainer.teacher.link import TeacherLink

        student = load_model(arguments.student, "--student")
        settings = TeacherSettings(
            address=arguments.teacher,
            name=arguments.teacher_name,
            prompt="student",
            token_file=arguments.token_file,
            ca=arguments.ca,
        )
        with TeacherLink(settings, student, run="study", key="--teacher") as link:
            served = ServedTeacher(link, student)
            yield student, served, student, served.ids
        return
    teacher_path, student_path = arguments.model, arguments.student
    if teacher_path is None:
        teacher_path, student_path = map(str, _quickstart_models())
    model = load_model(teacher_path, "--model")
    own = None if student_path is None else load_model(student_path, "--student")
    ids = local_ids(model, own)
    yield model, LocalTeacher(model, ids), own, ids


def _quickstart_models() -> tuple[Path, Path]:
    from student_trainer.quickstart.command import FOLDER
    from student_trainer.quickstart.models import prepare_models

    def note(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    return prepare_models(note, FOLDER / "train.jsonl", cross_tokenizer=False)
