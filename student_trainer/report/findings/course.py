"""What the rules read of a run, and what they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from student_trainer.evaluation.course.points import Point
from student_trainer.report.findings.thresholds import THRESHOLDS, Thresholds

Level = Literal["problem", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something about a run that its owner should know.

    Attributes:
        level: a problem spoils the result, a warning may, a note explains it.
        title: a sentence.
        metric: the key in metrics.jsonl or summary.json that shows it.
        value: what it is, as text.
        setting: the key to change.
        advice: what to do, in a sentence.
    """

    level: Level
    title: str
    metric: str
    value: str
    setting: str
    advice: str


@dataclass(frozen=True)
class Course:
    """A run for its rules.

    Attributes:
        config: the resolved settings, nested.
        metrics: the lines of metrics.jsonl, in order.
        points: held-out evaluations by completed steps, in order, the one before the run first.
        limits: what the rules compare with.
        renormalised: whether the run's loss is renormalised on a support.
    """

    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    points: Sequence[Point] = ()
    limits: Thresholds = field(default=THRESHOLDS)
    renormalised: bool = True

    @property
    def long_enough(self) -> bool:
        """Whether early and recent steps can be compared."""
        return len(self.metrics) >= self.limits.least_steps

    @property
    def window(self) -> int:
        """How many steps "early" and "recent" are."""
        return min(len(self.metrics), max(3, int(len(self.metrics) * self.limits.window)))

    def early(self, key: str) -> float | None:
        """Mean of a metric over the first steps; None where none has it."""
        return _mean(self.metrics[: self.window], key)

    def recent(self, key: str) -> float | None:
        """Mean of a metric over the last steps; None where none has it."""
        return _mean(self.metrics[-self.window :], key)

    def recent_share(self, keys: Sequence[str], of: str) -> float | None:
        """Sum of metrics over the last steps, divided by the sum of another; None where that is
        0."""
        rows = self.metrics[-self.window :]
        whole = sum(float(row.get(of) or 0) for row in rows)
        part = sum(float(row.get(key) or 0) for row in rows for key in keys)
        return part / whole if whole else None

    def setting(self, key: str) -> Any:
        """The value of a dotted key; None where it is not set."""
        found: Any = self.config
        for name in key.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    known = [float(row[key]) for row in rows if row.get(key) is not None]
    return sum(known) / len(known) if known else None
