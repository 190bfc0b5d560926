"""Whether a run made its student better, and what stands out in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from student_trainer.evaluation.course.points import Point
from student_trainer.evaluation.course.uncertainty import Interval, change, verdict
from student_trainer.losses import LOSSES
from student_trainer.report.collect import RunFiles, read_run
from student_trainer.report.findings import Course, Finding, find
from student_trainer.report.held_out import HeldOutMetric, held_out_metrics

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Result:
    """A held-out metric before and after a run, as text.

    Attributes:
        change: the 95% interval of the change; empty where it is not known.
        verdict: "better" or "worse" only where 0 is outside that interval; "unclear" where it is
            inside; empty where neither direction is better, and where nothing is known.
    """

    label: str
    before: str
    after: str
    change: str
    verdict: Literal["better", "worse", "unclear", ""]


def results(run: RunFiles, summary: Mapping[str, Any]) -> list[Result]:
    """The held-out metrics of a run, in the order they are shown."""
    return [_result(run, summary, shown) for shown in held_out_metrics(summary)]


def results_of(run_dir: Path, summary: Mapping[str, Any]) -> list[Result]:
    """The same, from the run's directory. Raises ConfigurationError as ``read_run``."""
    return results(read_run(run_dir), summary)


def findings(run: RunFiles) -> list[Finding]:
    """What stands out in a run, the worst first."""
    renormalised = _renormalised(run.config["loss"])
    return find(Course(run.config, run.metrics, held_out_course(run), renormalised=renormalised))


def _renormalised(loss: Mapping[str, Any]) -> bool:
    """Whether a section ``loss`` is of a loss that is renormalised on its support. A class of a
    user's own is not loaded for a report: it is one where its section has no tail."""
    if (named := LOSSES.get(loss["kind"])) is None:
        return loss.get("tail") == "none"
    return named.model_construct(**loss).renormalised


def run_findings(run_dir: Path) -> list[Finding]:
    """The same, from the run's directory. Raises ConfigurationError as ``read_run``."""
    return findings(read_run(run_dir))


def held_out_course(run: RunFiles) -> list[Point]:
    """Every evaluation by its step, that after the run the last."""
    last = int(run.metrics[-1]["step"])
    points = [point for point in run.points if run.after is None or point.step < last]
    return points if run.after is None else [*points, Point(last, run.after)]


def _result(run: RunFiles, summary: Mapping[str, Any], shown: HeldOutMetric) -> Result:
    before, after = shown.at(summary, "before"), shown.at(summary, "after")
    moved: Interval | None = None
    judged: Literal["better", "worse", "unclear", ""] = ""
    if run.before is not None and run.after is not None:
        key = f"{shown.key}/{shown.teacher}" if shown.teacher else shown.key
        moved = change(run.before, run.after, key)
        judged = verdict(run.before, run.after, key, shown.better)
    return Result(
        shown.label, _text(before, shown.form), _text(after, shown.form), _moved(moved, shown.form),
        judged,
    )  # fmt: skip


def _text(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else form.format(value)


def _moved(moved: Interval | None, form: str) -> str:
    if moved is None:
        return ""
    signed = form.replace(":", ":+")
    return f"{signed.format(moved.low)} to {signed.format(moved.high)}"
