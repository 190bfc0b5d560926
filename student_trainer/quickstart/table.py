"""The closing table: held-out metrics before and after, from summary.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from student_trainer.report.held_out import held_out_metrics


def closing_table(run_dir: Path) -> Table:
    """The table of a finished run. Raises OSError or ValueError without ``summary.json``."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return results_table(summary)


def results_table(summary: Mapping[str, Any]) -> Table:
    """The table of a summary."""
    made = Table(
        title=f"{summary['held_out_prompts']} held-out prompts, "
        f"{summary['frozen_rows']} frozen positions",
        caption=f"{summary['steps']} steps, {summary['tokens']} tokens, "
        f"{summary['seconds']:.0f} s of training and evaluation",
    )
    made.add_column("")
    made.add_column("before", justify="right")
    made.add_column("after", justify="right")
    for shown in held_out_metrics(summary):
        cells = (_cell(shown.at(summary, when), shown.form) for when in ("before", "after"))
        made.add_row(shown.label, *cells)
    return made


def _cell(value: float | None, form: str) -> str:
    return "not measured" if value is None else form.format(value)
