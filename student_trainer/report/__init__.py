"""A run's report, summary and model card, made from the files of its run directory alone."""

from __future__ import annotations

from pathlib import Path


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` and ``plots/*.png``; returns the path of the HTML file.

    Raises:
        ConfigurationError: a file that the report needs is missing or unreadable.
    """
    # matplotlib and jinja2 load only when a report is made.
    from student_trainer.report.write import write

    return write(run_dir)
