"""``student-trainer report RUN_DIR``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="output_dir of a run")


def run(arguments: argparse.Namespace) -> int:
    from student_trainer.report import write_report
    from student_trainer.report.summary import write_summary

    write_summary(arguments.run_dir)
    sys.stdout.write(f"wrote {write_report(arguments.run_dir)}\n")
    return 0
