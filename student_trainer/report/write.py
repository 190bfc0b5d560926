"""Renders a run as one self-contained HTML file, and its plots as PNG files."""

from __future__ import annotations

import base64
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from teacher_proto.program.files import write_text

from student_trainer.evaluation.results import Evaluation
from student_trainer.report.collect import RunFiles, read_run, setting_texts
from student_trainer.report.held_out import (
    HeldOutMetric,
    evaluated_teachers,
    held_out_metrics,
    is_across,
)
from student_trainer.report.plots import Plot, all_plots
from student_trainer.report.summary import sample_pairs, summarise
from student_trainer.teacher.mask_reasons import EXPLAINED

REPORT_TEMPLATE = "report.html.j2"
NOT_MEASURED = "not measured"


def write(run_dir: Path) -> Path:
    """As ``student_trainer.report.write_report``."""
    run = read_run(run_dir)
    plots = all_plots(run)
    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    for plot in plots:
        (folder / f"{plot.name}.png").write_bytes(plot.light)
    target = run_dir / "report.html"
    write_text(target, render_html(run, plots))
    return target


def render_html(run: RunFiles, plots: list[Plot]) -> str:
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
    return environment.get_template(REPORT_TEMPLATE).render(
        summary=summary,
        results=[_result(summary, metric) for metric in held_out_metrics(summary)],
        across=is_across(summary),
        evaluated_teachers=evaluated_teachers(summary),
        reasons=_reasons(summary),
        cards=_cards(summary),
        teachers=_teachers(evaluation, summary),
        plots=[
            {"title": p.title, "note": p.note, "light": _uri(p.light), "dark": _uri(p.dark)}
            for p in plots
        ],
        samples=sample_pairs(run.before, run.after),
        settings=setting_texts(run.config),
        dropped=run.before.frozen.dropped_rows if run.before and run.before.frozen else 0,
        finished=run.after is not None,
        evaluated=evaluation is not None,
    )


def _teachers(evaluation: Evaluation | None, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of the teachers, names and values as text: of those that an evaluation asked
    what their services say, else what the run's settings and steps say."""
    if evaluation is None:
        told = [key for key in summary if key.partition("/")[0] in ("teacher", "teacher_identity")]
        return [(key.replace("_", " "), summary[key]) for key in told]
    every = {"": evaluation, **evaluation.by_teacher}
    return [
        (f"teacher {f'{name} ' if name else ''}{key.replace('_', ' ')}", str(value) or "none")
        for name, one in every.items()
        if one.teacher is not None
        for key, value in asdict(one.teacher).items()
    ]


def _reasons(summary: dict[str, Any]) -> list[dict[str, str]]:
    """The reasons that a run has, the most frequent first: name, share, and what it means."""
    shares: dict[str, float] = summary["mask_reasons"] or {}
    most = sorted((name for name in shares if shares[name]), key=lambda name: -shares[name])
    return [
        {"name": name, "share": f"{shares[name]:.2%}", "text": EXPLAINED[name]} for name in most
    ]


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _text(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else form.format(value)


def _result(summary: dict[str, Any], shown: HeldOutMetric) -> dict[str, str]:
    before, after = shown.at(summary, "before"), shown.at(summary, "after")
    verdict = ""
    if before is not None and after is not None and before != after and shown.better:
        verdict = "better" if (after - before) * shown.better > 0 else "worse"
    return {
        "label": shown.label,
        "before": _text(before, shown.form),
        "after": _text(after, shown.form),
        "verdict": verdict,
    }


def _cards(summary: dict[str, Any]) -> list[dict[str, str]]:
    """The few results that lead the page."""
    cards = []
    for shown in held_out_metrics(summary):
        if shown.card is None:
            continue
        label, form = shown.card
        before, after = shown.at(summary, "before"), shown.at(summary, "after")
        if before is not None and after is not None:
            cards.append(
                {"label": label, "before": form.format(before), "after": form.format(after)}
            )
    return cards
