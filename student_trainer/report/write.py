"""Render a run as one HTML file that needs nothing beside it, and its plots as PNG files."""

from __future__ import annotations

import base64
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from student_trainer.report.collect import RunFiles, leaves, read_run
from student_trainer.report.plots import Plot, all_plots
from student_trainer.summary import sample_pairs, summarise

TEMPLATE = "report.html.j2"
NOT_MEASURED = "not measured"

# Label, key in summary.json, format, and whether lower (-1) or higher (1) is better.
FIGURES = (
    ("Reverse KL, frozen positions", "reverse_kl", "{:.3f}", -1),
    ("Forward KL, frozen positions", "forward_kl", "{:.3f}", -1),
    ("Same most likely token, frozen positions", "agreement", "{:.1%}", 1),
    ("Reverse KL, fresh answers", "fresh_reverse_kl", "{:.3f}", -1),
    ("Forward KL, fresh answers", "fresh_forward_kl", "{:.3f}", -1),
    ("Same most likely token, fresh answers", "fresh_agreement", "{:.1%}", 1),
    ("Answer length, tokens", "rollout_length", "{:.1f}", 0),
    ("Answers cut at the length limit", "truncated_share", "{:.1%}", 0),
)


def write(run_dir: Path) -> Path:
    """See ``student_trainer.report.write_report``."""
    run = read_run(run_dir)
    plots = all_plots(run)
    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    for plot in plots:
        (folder / f"{plot.name}.png").write_bytes(plot.light)
    target = run_dir / "report.html"
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_text(render(run, plots), encoding="utf-8")
    os.replace(temporary, target)
    return target


def render(run: RunFiles, plots: list[Plot]) -> str:
    """The report as HTML; every text of the run is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    summary = summarise(run)
    evaluation = run.after or run.before
    return environment.get_template(TEMPLATE).render(
        summary=summary,
        figures=[_figure(summary, *figure) for figure in FIGURES],
        cards=_cards(summary),
        teacher=asdict(evaluation.teacher) if evaluation else {},
        plots=[
            {"title": p.title, "note": p.note, "light": _uri(p.light), "dark": _uri(p.dark)}
            for p in plots
        ],
        samples=sample_pairs(run.before, run.after),
        settings=list(leaves(run.config)),
        dropped=run.before.frozen.dropped_rows if run.before and run.before.frozen else 0,
        finished=run.after is not None,
        evaluated=evaluation is not None,
    )


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _text(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else form.format(value)


def _figure(
    summary: dict[str, Any], label: str, key: str, form: str, better: int
) -> dict[str, str]:
    before, after = summary[f"{key}_before"], summary[f"{key}_after"]
    verdict = ""
    if before is not None and after is not None and before != after and better:
        verdict = "better" if (after - before) * better > 0 else "worse"
    return {
        "label": label,
        "before": _text(before, form),
        "after": _text(after, form),
        "verdict": verdict,
    }


def _cards(summary: dict[str, Any]) -> list[dict[str, str]]:
    """The few figures that lead the page."""
    cards = []
    for label, key, form in (
        ("Reverse KL, nats", "reverse_kl", "{:.2f}"),
        ("Forward KL, nats", "forward_kl", "{:.2f}"),
        ("Same most likely token", "agreement", "{:.0%}"),
        ("Answer length, tokens", "rollout_length", "{:.0f}"),
    ):
        before, after = summary[f"{key}_before"], summary[f"{key}_after"]
        if before is not None and after is not None:
            cards.append(
                {"label": label, "before": form.format(before), "after": form.format(after)}
            )
    return cards
