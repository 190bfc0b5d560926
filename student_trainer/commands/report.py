"""``student-trainer report RUN_DIR...``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from teacher_proto.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_dirs", type=Path, nargs="+", metavar="RUN_DIR",
        help="output_dir of a run; of several, which are put on one page",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where several runs go; ./comparison.html"
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="while the run goes on, make its report again every few seconds; the page refreshes "
        "itself",
    )


def run(arguments: argparse.Namespace) -> int:
    from student_trainer.report import write_comparison, write_report
    from student_trainer.report.summary import write_summary

    folders: list[Path] = arguments.run_dirs
    if len(folders) > 1:
        if arguments.follow:
            raise ConfigurationError(
                "a single run can be followed", where="--follow", fix="give one RUN_DIR"
            )
        target = write_comparison(folders, arguments.out or Path("comparison.html"))
        sys.stdout.write(f"wrote {target}\n")
        return 0
    if arguments.out is not None:
        raise ConfigurationError(
            "the report of one run is in its own directory",
            where="--out",
            fix="leave it out, or give several RUN_DIR",
        )
    (folder,) = folders
    if arguments.follow:
        follow(folder)
    write_summary(folder)
    sys.stdout.write(f"wrote {write_report(folder)}\n")
    return 0


def follow(folder: Path) -> None:
    """Makes the report of a run again and again while a process holds its directory."""
    from student_trainer.report import write_report
    from student_trainer.report.write import REFRESH
    from student_trainer.run.lock import is_free

    told = False
    while not is_free(folder):
        if (folder / "metrics.jsonl").is_file() and (folder / "metrics.jsonl").stat().st_size:
            path = write_report(folder, refresh=True)
            if not told:
                sys.stdout.write(f"following the run: open {path}\n")
                sys.stdout.flush()
                told = True
        time.sleep(REFRESH)
