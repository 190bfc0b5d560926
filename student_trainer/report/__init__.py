"""A run's report, summary and model card, made from the files of its run directory alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_report(run_dir: Path, *, refresh: bool = False) -> Path:
    """Writes ``report.html``; returns its path.

    Args:
        refresh: whether a browser reads the page again every few seconds.

    Raises:
        ConfigurationError: a file that the report needs is missing or unreadable.
    """
    # jinja2 loads only when a report is made.
    from student_trainer.report.write import write

    return write(run_dir, refresh=refresh)


def write_comparison(run_dirs: Sequence[Path], target: Path) -> Path:
    """Writes several runs on one page to ``target``; returns it.

    Raises:
        ConfigurationError: as ``write_report``; or a run is given twice.
    """
    from student_trainer.report.write import write_comparison

    return write_comparison(run_dirs, target)
