"""The metric by which one checkpoint is the best."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError

from student_trainer.run.directory import read_metrics
from student_trainer.settings.run import CheckpointSettings


class RecentMetric:
    """The values of the metric ``checkpoint.best`` in the last ``checkpoint.every`` steps."""

    def __init__(self, settings: CheckpointSettings) -> None:
        # A held-out value is not in the lines: the evaluations have it.
        self._name = None if settings.best_held_out else settings.best
        self._values: deque[float | None] = deque(maxlen=settings.every)

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds the metrics line of a step.

        Raises:
            ConfigurationError: the metric is not in the line, or is no number.
        """
        if self._name is None:
            return
        value = line.get(self._name)
        _, of_teacher, teacher = self._name.partition("/")
        if of_teacher and line.get(f"tokens/{teacher}") == 0:
            self._values.append(None)  # none of the step's prompts is this teacher's
            return
        numbers = sorted(k for k, v in line.items() if _is_number(v))
        if self._name not in line or not (value is None or _is_number(value)):
            raise ConfigurationError(
                f"a step has no metric {self._name!r}",
                where="checkpoint.best",
                fix=f"name one of {', '.join(numbers)}",
            )
        self._values.append(value)

    def restore(self, metrics: Path, step: int) -> None:
        """Adds the lines of an earlier attempt, up to ``step``."""
        if self._name is not None and metrics.exists():
            for line in read_metrics(metrics):
                if line["step"] <= step:
                    self.add(line)

    def mean(self) -> float | None:
        """The mean; None when no step has a value."""
        known = [value for value in self._values if value is not None]
        return sum(known) / len(known) if known else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
