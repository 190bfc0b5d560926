"""Curves of a run's metrics and evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from student_trainer.evaluation.course.points import Point
from student_trainer.evaluation.course.uncertainty import interval
from student_trainer.report.page.charts import Curve

Lines = Sequence[Mapping[str, Any]]


def named(run: str, label: str) -> str:
    """A curve's label: the run's name where there are several, which a panel is of one metric."""
    return run or label


def step_series(lines: Lines, key: str) -> tuple[list[float], list[float | None]]:
    return (
        [float(row["step"]) for row in lines],
        [None if row.get(key) is None else float(row[key]) for row in lines],
    )


def held_out_curve(label: str, key: str, points: Sequence[Point]) -> Curve:
    edges = [interval(point.evaluation, key) for point in points]
    return Curve(
        label,
        [float(point.step) for point in points],
        [point.value(key) for point in points],
        [None if edge is None else edge.low for edge in edges],
        [None if edge is None else edge.high for edge in edges],
    )
