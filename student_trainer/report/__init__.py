"""A run's report: one HTML file and its plots, made from the run directory's files alone."""

from __future__ import annotations

from pathlib import Path


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` and ``plots/*.png``; returns the HTML file's path.

    Raises:
        ConfigurationError: a file the report needs is missing or unreadable.
    """
    # matplotlib and jinja2 load only when a report is made.
    from student_trainer.report.write import write

    return write(run_dir)
