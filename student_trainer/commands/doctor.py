"""``student-trainer doctor CONFIG``: checks everything that ``train`` with the same settings
needs.

It makes the steps of a run's start (``startup.steps``) and the checks of
``commands.examination``, which take longer. It trains nothing and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from student_trainer.commands.shared import positive, quiet_libraries, resolve

if TYPE_CHECKING:
    from teacher_proto.program.checks import Checks

    from student_trainer.settings.train import TrainConfig
    from student_trainer.startup.start import Start, Step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("configs", nargs="*", metavar="CONFIG.toml", help="as for train")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    parser.add_argument(
        "--ranks",
        type=positive,
        metavar="N",
        help="estimate the memory of each of N ranks, too (docs/distributed.md)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings; the exit code is that of the first failure."""
    quiet_libraries()
    checks = run_checks(lambda: resolve(arguments).settings, arguments.ranks)
    sys.stdout.write(checks.render(as_json=arguments.json))
    return checks.exit_code


def run_checks(settings: Callable[[], TrainConfig], ranks: int | None = None) -> Checks:
    """The findings on the settings, on every step of a start, and of the examination.

    Args:
        ranks: for how many ranks memory is estimated, too.
    """
    from teacher_proto.program.checks import Checks

    checks = Checks()
    read: list[TrainConfig] = []

    def load() -> str:
        read.append(settings())
        return f"run {read[0].run.name}, {read[0].run.steps} steps into {read[0].run.output_dir}"

    checks.run("settings", load)
    if not read:
        return checks
    from student_trainer.commands.examination import EXAMINATION
    from student_trainer.startup import steps
    from student_trainer.startup.start import Start

    with Start(read[0]) as start:
        for step in (*steps.STEPS, *EXAMINATION, *of_ranks(ranks)):
            examine(checks, step, start)
    return checks


def of_ranks(ranks: int | None) -> list[Step]:
    """What is examined for so many ranks beside the rest."""
    if ranks is None:
        return []
    from student_trainer.commands.estimate_ranks import memory_of
    from student_trainer.startup.start import Step

    check = partial(memory_of, ranks=ranks)
    return [Step("memory of a rank", check, needs=("student",), reads="model")]


def examine(checks: Checks, step: Step, start: Start) -> None:
    """Makes one step; its warnings are a part of its finding."""
    checks.run(
        step.name,
        lambda: "; ".join([step.check(start), *start.take_warnings()]),
        step.needs,
    )
