"""The charts of a run, and those of several runs side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from student_trainer.evaluation.course.points import Point
from student_trainer.report.page.bin_charts import charts_of_bins, heat_charts
from student_trainer.report.page.charts import Chart, Curve, Panel
from student_trainer.report.page.curves import Lines, held_out_curve, named, step_series
from student_trainer.report.page.step_charts import STEP_CHARTS, StepPanel
from student_trainer.report.page.task_charts import (
    STEPS_NOTE,
    TASKS_NOTE,
    of_task_steps,
    of_tasks,
)

HELD_OUT_NOTE = (
    "Lower divergence and higher agreement are better. Bars are 95% of a bootstrap over prompts. "
    "Frozen positions were fixed before training; fresh ones are those of the student's own "
    "answers then."
)
# Label of the axis, whether it is a share, and the values of its curves with their labels.
HELD_OUT = (
    (
        "nats per position",
        False,
        (
            ("reverse_kl", "reverse KL, frozen"),
            ("forward_kl", "forward KL, frozen"),
            ("fresh_reverse_kl", "reverse KL, fresh"),
            ("support_reverse_kl", "reverse KL on the support, frozen"),
            ("support_forward_kl", "forward KL on the support, frozen"),
            ("fresh_support_reverse_kl", "reverse KL on the support, fresh"),
        ),
    ),
    (
        "same most likely token",
        True,
        (
            ("agreement", "frozen"),
            ("fresh_agreement", "fresh"),
            ("support_agreement", "frozen, support"),
            ("fresh_support_agreement", "fresh, support"),
            ("truncated_share", "answers cut at the limit"),
        ),
    ),
    ("mean length, tokens", False, (("rollout_length", "fresh answers"),)),
    ("bits per byte", False, (("teacher_bits_per_byte", "teacher, of the student's answers"),)),
)


def charts_of_run(metrics: Lines, points: Sequence[Point]) -> list[Chart]:
    """Those that the run has values for, in the order of the report."""
    curves = [
        Chart("Right answers over the run", TASKS_NOTE, of_tasks({"": points})),
        Chart("Right answers in training", STEPS_NOTE, of_task_steps({"": metrics})),
        Chart("Held-out prompts over the run", HELD_OUT_NOTE, _held_out({"": points})),
        *(_of_steps(title, note, panels, {"": metrics}) for title, note, panels in STEP_CHARTS),
        *charts_of_bins(metrics),
    ]
    return [*_with_values(curves), *heat_charts(metrics)]


def charts_of_runs(
    metrics: Mapping[str, Lines], points: Mapping[str, Sequence[Point]]
) -> list[Chart]:
    """The same of several runs by their names: a panel for each metric, a curve for each run."""
    single = [(title, note, tuple(_single(panels))) for title, note, panels in STEP_CHARTS]
    return _with_values(
        [
            Chart("Right answers over the run", TASKS_NOTE, of_tasks(points)),
            Chart("Right answers in training", STEPS_NOTE, of_task_steps(metrics)),
            Chart("Held-out prompts over the run", HELD_OUT_NOTE, _held_out(points)),
            *(_of_steps(title, note, panels, metrics) for title, note, panels in single),
        ]
    )


def _single(panels: Sequence[StepPanel]) -> Iterator[StepPanel]:
    for panel in panels:
        for key, label in panel.lines:
            name = label if len(panel.lines) == 1 else f"{label}, {panel.label}"
            yield StepPanel(name, ((key, label),), panel.zero, panel.share)


def _of_steps(
    title: str, note: str, panels: Sequence[StepPanel], runs: Mapping[str, Lines]
) -> Chart:
    return Chart(
        title,
        note,
        [
            Panel(
                panel.label,
                [
                    Curve(named(run, label), *step_series(lines, key))
                    for key, label in panel.lines
                    for run, lines in runs.items()
                ],
                panel.zero,
                panel.share,
            )
            for panel in panels
        ],
    )


def _held_out(runs: Mapping[str, Sequence[Point]]) -> list[Panel]:
    """Panels of all teachers together, and then of each of several."""
    teachers = dict.fromkeys(
        name for points in runs.values() for point in points for name in point.evaluation.by_teacher
    )
    return [panel for teacher in ("", *teachers) for panel in _of_teacher(runs, teacher)]


def _of_teacher(runs: Mapping[str, Sequence[Point]], teacher: str) -> list[Panel]:
    """Panels of one of several teachers; an empty name is the only one, and all together."""
    several = len(runs) > 1
    of, end = (f" ({teacher})", f"/{teacher}") if teacher else ("", "")
    panels = []
    for label, share, values in HELD_OUT:
        curves = {
            key: [
                held_out_curve(run if several else name, key + end, points)
                for run, points in runs.items()
            ]
            for key, name in values
        }
        if several:
            panels += [
                Panel(f"{name}, {label}{of}", curves[key], share=share, points=True)
                for key, name in values
            ]
        else:
            every = [curve for of_key in curves.values() for curve in of_key]
            panels.append(Panel(label + of, every, share=share, points=True))
    return panels


def _with_values(charts: Sequence[Chart]) -> list[Chart]:
    """Charts and panels that have a value."""
    kept = []
    for chart in charts:
        panels = [panel for panel in chart.panels if panel.known]
        if panels:
            kept.append(Chart(chart.title, chart.note, panels))
    return kept
