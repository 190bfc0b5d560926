"""``student-trainer study variance``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from student_trainer.study.variance.settings import VarianceSettings

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("study"), metavar="DIR",
        help="folder of variance.json, variance.md and variance.svg (study)",
    )  # fmt: skip
    for name, of, text in (
        ("seeds", int, "seeds of networks and walks (42,43,2026)"),
        ("gammas", float, "discounts, ascending (0,0.25,0.5,0.75,1)"),
        ("horizons", int, "lengths of walks in the sweep (5,10,20,40,80)"),
    ):
        parser.add_argument(f"--{name}", type=_list_of(of), metavar="X,Y,...", help=text)
    for name, text in (
        ("steps", "updates of a student (2000)"),
        ("teacher-steps", "updates of a teacher (1500)"),
        ("horizon-steps", "updates of a student in the sweep (400)"),
        ("horizon-teacher-steps", "updates of a teacher in the sweep (500)"),
        ("horizon", "moves of a walk (20)"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=text)
    parser.add_argument("--no-sweep", action="store_true", help="leave out the sweep over horizons")


def _list_of(of: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    def read(text: str) -> tuple[T, ...]:
        try:
            return tuple(of(part) for part in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list of numbers such as 1,2"
            ) from error

    return read


def run(arguments: argparse.Namespace) -> int:
    from student_trainer.study.parts.written import check_pictures, write_results
    from student_trainer.study.variance.report import draw, table
    from student_trainer.study.variance.settings import VarianceSettings

    options: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in (
            "seeds", "gammas", "horizons", "steps", "teacher_steps", "horizon_steps",
            "horizon_teacher_steps", "horizon",
        )
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    settings = VarianceSettings(**given)
    check_pictures()
    document = study(settings, given, sweep=not arguments.no_sweep)
    text = table(document)
    sys.stdout.write(text + "\n")
    for path in write_results(arguments.out, "variance", document, text, draw):
        sys.stdout.write(f"wrote {path}\n")
    return 0


def study(settings: VarianceSettings, options: dict[str, Any], *, sweep: bool) -> dict[str, Any]:
    """The document of the whole study, on one thread: more of them only change the rounding.

    Args:
        options: of the command that were given.
    """
    import torch

    from student_trainer.study.parts.origin import origin
    from student_trainer.study.variance import experiment

    def note(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began:.0f} s: {text}\n")

    began, threads = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = experiment.students(settings, note)
        rows = experiment.sweep(settings, note) if sweep else []
        facts = origin("variance", {**options, "no_sweep": not sweep})
    finally:
        torch.set_num_threads(threads)
    return {
        "study": "variance",
        **facts,
        "seconds": round(time.monotonic() - began, 1),
        "settings": settings.described(),
        **made,
        "horizons": rows,
        "exponents": experiment.exponents(rows),
        "figures": experiment.verdict(made["students"]),
    }
