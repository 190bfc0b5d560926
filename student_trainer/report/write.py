"""Renders runs as one self-contained HTML file, which loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from teacher_proto.errors import ConfigurationError
from teacher_proto.page import embedded
from teacher_proto.page.offline import frame_sources
from teacher_proto.program.files import write_text

from student_trainer.evaluation.results import Evaluation
from student_trainer.report.collect import RunFiles, read_run, setting_texts
from student_trainer.report.findings import CHECKS
from student_trainer.report.held_out import evaluated_teachers, held_out_metrics, is_across
from student_trainer.report.page.all_charts import charts_of_run, charts_of_runs
from student_trainer.report.page.charts import Chart, draw
from student_trainer.report.summary import sample_pairs, summarise
from student_trainer.report.verdict import findings, held_out_course, results
from student_trainer.teacher.mask_reasons import EXPLAINED
from student_trainer.watch.document import rows_document

PAGE = Path(__file__).parent / "page"
STYLE, SCRIPT = PAGE / "report.css", PAGE / "report.js"
# Seconds between two readings of a page that follows a run.
REFRESH = 15


def write(run_dir: Path, *, refresh: bool = False) -> Path:
    """As ``student_trainer.report.write_report``."""
    target = run_dir / "report.html"
    write_text(target, render_run(read_run(run_dir), refresh=refresh))
    return target


def write_comparison(run_dirs: Sequence[Path], target: Path) -> Path:
    """As ``student_trainer.report.write_comparison``."""
    write_text(target, render_runs([read_run(run_dir) for run_dir in run_dirs]))
    return target


def render_run(run: RunFiles, *, refresh: bool = False) -> str:
    """The report of a run as HTML; every text of the run is escaped.

    Args:
        refresh: whether a browser reads the page again every few seconds.
    """
    summary = summarise(run)
    evaluation = run.after or run.before
    points = held_out_course(run)
    return _render(
        "report.html.j2",
        title=summary["run"],
        refresh=REFRESH if refresh else 0,
        charts=_charts(charts_of_run(run.metrics, points)),
        summary=summary,
        findings=findings(run),
        checks=len(CHECKS),
        results=results(run, summary),
        across=is_across(summary),
        evaluated_teachers=evaluated_teachers(summary),
        reasons=_reasons(summary),
        cards=_cards(summary),
        teachers=_teachers(evaluation, summary),
        samples=sample_pairs(run.before, run.after),
        kept=_kept(run),
        kept_step=run.kept_step,
        settings=setting_texts(run.config),
        machine=_machine(run),
        dropped=run.before.frozen.dropped_rows if run.before and run.before.frozen else 0,
        finished=run.after is not None,
        evaluated=evaluation is not None,
    )


def render_runs(runs: Sequence[RunFiles]) -> str:
    """Several runs on one page as HTML."""
    names = names_of(runs)
    each = dict(zip(names, runs, strict=True))
    summaries = {name: summarise(run) for name, run in each.items()}
    told = {name: results(run, summaries[name]) for name, run in each.items()}
    labels = list(dict.fromkeys(one.label for of_run in told.values() for one in of_run))
    settings = {name: dict(setting_texts(run.config)) for name, run in each.items()}
    keys = dict.fromkeys(key for of_run in settings.values() for key in of_run)
    differing = [k for k in keys if len({of_run.get(k) for of_run in settings.values()}) > 1]
    charts = charts_of_runs(
        {name: run.metrics for name, run in each.items()},
        {name: held_out_course(run) for name, run in each.items()},
    )
    return _render(
        "comparison.html.j2",
        title=", ".join(names),
        refresh=0,
        charts=_charts(charts),
        names=names,
        summaries=summaries,
        findings={name: findings(run) for name, run in each.items()},
        rows=[
            (label, [next((r for r in told[name] if r.label == label), None) for name in names])
            for label in labels
        ],
        settings=[(key, [settings[name].get(key, "") for name in names]) for key in differing],
    )


def names_of(runs: Sequence[RunFiles]) -> list[str]:
    """A name for each run: its own, or its directory's where two have the same.

    Raises:
        ConfigurationError: a run is given twice.
    """
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ConfigurationError("a run is given twice", where="RUN_DIR", fix="give each once")
    own = [str(run.config["run"]["name"]) for run in runs]
    return own if len(set(own)) == len(own) else [str(run.path) for run in runs]


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = STYLE.read_text(encoding="utf-8"), SCRIPT.read_text(encoding="utf-8")
    return environment.get_template(template).render(
        style=Markup(style), script=Markup(script), policy=_policy(script), **values
    )


def _policy(script: str) -> str:
    """A policy under which nothing is loaded, and no script runs but the page's own and that of
    its frame."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    of_frame, _ = frame_sources()
    return f"default-src 'none'; script-src 'sha256-{digest}' {of_frame}; style-src 'unsafe-inline'"


def _kept(run: RunFiles) -> Markup:
    """The kept responses as a frame with the page of a teacher's rows, whose texts are escaped
    already; empty where there are none."""
    if not run.kept:
        return Markup()
    title = f"Responses of step {run.kept_step} with the largest loss"
    return Markup(embedded(rows_document(run.kept, title), title))


def _charts(charts: Sequence[Chart]) -> list[dict[str, Any]]:
    """Charts with their panels drawn, whose texts are escaped already."""
    return [
        {"title": c.title, "note": c.note, "panels": [Markup(draw(panel)) for panel in c.panels]}
        for c in charts
    ]


def _machine(run: RunFiles) -> list[tuple[str, str]]:
    """When and with what the run was made, and when this page was."""
    told = [(key.replace("_", " "), str(value)) for key, value in run.machine.items()]
    ends = {"first": run.metrics[0].get("time"), "last": run.metrics[-1].get("time")}
    return [
        # Lines of an earlier version have no time.
        *((f"{which} step ended", str(time)) for which, time in ends.items() if time),
        *told,
        ("page made", datetime.now(UTC).isoformat(timespec="seconds")),
    ]


def _teachers(evaluation: Evaluation | None, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
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


def _reasons(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The reasons that a run has, the most frequent first: name, share, and what it means."""
    shares: dict[str, float] = summary["mask_reasons"] or {}
    most = sorted((name for name in shares if shares[name]), key=lambda name: -shares[name])
    return [
        {"name": name, "share": f"{shares[name]:.2%}", "text": EXPLAINED[name]} for name in most
    ]


def _cards(summary: Mapping[str, Any]) -> list[dict[str, str]]:
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
