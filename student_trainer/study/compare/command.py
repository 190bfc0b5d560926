"""``student-trainer study compare``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.commands.shared import positive, quiet_libraries

if TYPE_CHECKING:
    from student_trainer.study.compare.settings import CompareSettings
    from student_trainer.study.compare.store import Store

PHASES = ("grid", "counted")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=Path, metavar="CONFIG", help="TOML file that says what is compared"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("compare"), metavar="DIR",
        help="folder of the runs and results; finished runs there are kept (compare)",
    )  # fmt: skip
    parser.add_argument(
        "--models", type=Path, default=Path("lab"), metavar="DIR",
        help="folder of the models that the file names (lab)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="runs at the same time (1)"
    )
    parser.add_argument("--only", choices=PHASES, help="make the runs of one phase alone")
    parser.add_argument(
        "--report", action="store_true", help="make no run: write the results of those there are"
    )


def run(arguments: argparse.Namespace) -> int:
    # Trainer and teacher have one thread each. torch reads this when it is imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from student_trainer.study.compare.settings import read_settings
    from student_trainer.study.compare.store import Store
    from student_trainer.study.parts.written import check_pictures

    settings, store = read_settings(arguments.config), Store(arguments.out)
    check_pictures()
    failed = 0 if arguments.report else _work(settings, store, arguments)
    _report(settings, store)
    if failed:
        raise LsmError(
            f"{failed} runs failed",
            where=str(store.path / "runs"),
            fix="see their logs in work, and start it again: finished runs are kept",
        )
    return 0


def _work(settings: CompareSettings, store: Store, arguments: argparse.Namespace) -> int:
    """Makes the runs that are asked for; returns how many failed."""
    from student_trainer.quickstart.command import ended_by_signals
    from student_trainer.run.lock import locked
    from student_trainer.study.compare import execute, plan
    from student_trainer.study.compare.choose import chosen_rates
    from student_trainer.study.parts.origin import commit, origin

    facts = {"digest": settings.digest, "commit": commit()}
    options = {"models": arguments.models, "only": arguments.only}
    begun = origin("compare", options, [arguments.config.name])
    began = time.monotonic()

    def note(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began:.0f} s: {text}\n")
        sys.stderr.flush()

    def counted() -> list[plan.Planned]:
        rates = {arm: one["rate"] for arm, one in store.chosen().items()}
        if not rates:
            raise ConfigurationError(
                "the runs that choose the learning rates are not complete",
                where=str(store.path),
                fix="start it without --only; runs/NAME.failed says why a run failed",
            )
        return plan.counted_runs(settings, rates)

    quiet_libraries()
    grid = [plan.teacher_run(settings), *plan.grid_runs(settings)]
    failed = 0
    with ended_by_signals(), locked(store.path):
        store.begin(settings, {**begun, "config_commit": commit(arguments.config)})
        first = counted() if arguments.only == "counted" else grid
        if arguments.only is None and store.chosen():
            first = [*grid, *counted()]
        if all(store.has(one) for one in first) and (arguments.only or store.chosen()):
            return 0
        with execute.served(arguments.models / settings.models.teacher, store) as server:

            def make(planned: list[plan.Planned]) -> int:
                return execute.make_runs(
                    settings, planned, store, arguments.models, server, arguments.jobs, facts, note
                )

            failed += make(first)
            if not store.chosen():
                rates = chosen_rates(settings, store.records(grid[1:]))
                if len(rates) == len(settings.arms):
                    store.write_chosen(rates)
            if arguments.only is None:
                failed += make(counted())
    return failed


def _report(settings: CompareSettings, store: Store) -> None:
    from student_trainer.study.compare import plan
    from student_trainer.study.compare.report import draw, table
    from student_trainer.study.compare.results import results
    from student_trainer.study.parts.written import write_results

    store.check(settings)
    chosen = store.chosen()
    rates = {arm: one["rate"] for arm, one in chosen.items()}
    document: dict[str, Any] = results(
        settings,
        teacher=store.records([plan.teacher_run(settings)]),
        grid=store.records(plan.grid_runs(settings)),
        counted=store.records(plan.counted_runs(settings, rates)) if rates else [],
        chosen=chosen,
        origin=store.origin(),
    )
    text = table(document)
    sys.stdout.write(text + "\n")
    for path in write_results(store.path, settings.name, document, text, draw):
        sys.stdout.write(f"wrote {path}\n")
