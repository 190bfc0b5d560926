"""The closing table of a run on a terminal: held-out values before and after, from
summary.json, what stands out, and where everything is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from student_trainer.report.findings import Finding
from student_trainer.report.verdict import Result, results_of, run_findings

STYLES = {"problem": "bold red", "warning": "yellow", "note": "dim"}
VERDICTS = {"better": "green", "worse": "bold red", "unclear": "dim", "": ""}
# What a run leaves, in the order of what is opened first.
PATHS = (
    ("report.html", "the run on one page"),
    ("model", "the trained student"),
    ("summary.json", "what was measured"),
    ("metrics.jsonl", "every step"),
    ("checkpoints", "to resume from"),
)


def print_closing(run_dir: Path) -> None:
    """Writes the closing of a finished run to standard output."""
    Console().print(closing(run_dir), soft_wrap=True)


def closing(run_dir: Path) -> RenderableType:
    """The closing of a finished run. Raises OSError or ValueError without ``summary.json``, and
    ConfigurationError where another of its files is missing or unreadable."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    results, findings = results_of(run_dir, summary), run_findings(run_dir)
    parts: list[RenderableType] = [results_table(summary, results), findings_text(findings)]
    parts += [
        Text(f"{run_dir / name}  {what}", overflow="ignore", no_wrap=True)
        for name, what in PATHS
        if (run_dir / name).exists()
    ]
    return Group(*parts)


def results_table(summary: Mapping[str, Any], results: Sequence[Result]) -> Table:
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
    made.add_column("")
    for one in results:
        verdict = Text(one.verdict, style=VERDICTS[one.verdict])
        made.add_row(one.label, one.before, one.after, verdict)
    return made


def findings_text(findings: Sequence[Finding]) -> Text:
    """A line for each finding."""
    if not findings:
        return Text("Nothing stands out.")
    lines = [
        Text.assemble(
            (one.level, STYLES[one.level]), f": {one.title} ({one.metric}: {one.value}; "
            f"{one.setting})",
        )
        for one in findings
    ]  # fmt: skip
    return Text("\n").join(lines)
