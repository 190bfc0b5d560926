"""The evaluations of a run as a curve: ``evaluation/before.json`` is its beginning, and
``evaluation/step-NNNNNN.json`` what was measured after so many steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from student_trainer.evaluation.course.values import curve_values
from student_trainer.evaluation.files import load_evaluation
from student_trainer.evaluation.results import Evaluation

Goal = Literal["min", "max"]


@dataclass(frozen=True)
class Point:
    """An evaluation after so many completed steps."""

    step: int
    evaluation: Evaluation

    def value(self, key: str) -> float | None:
        """Of ``curve_values``; None where it was not measured."""
        return curve_values(self.evaluation).get(key)


def file_of(folder: Path, step: int) -> Path:
    """Where the evaluation after ``step`` completed steps is kept."""
    return folder / ("before.json" if step == 0 else f"step-{step:06d}.json")


def steps_of(folder: Path) -> list[int]:
    """After which steps there are evaluations, in order."""
    names = [re.fullmatch(r"step-(\d{6,})\.json", path.name) for path in folder.glob("step-*.json")]
    found = sorted(int(name[1]) for name in names if name)
    return [0, *found] if file_of(folder, 0).is_file() else found


def read_points(folder: Path) -> list[Point]:
    """The curve. Raises ConfigurationError when a file is malformed."""
    return [Point(step, load_evaluation(file_of(folder, step))) for step in steps_of(folder)]


def remove_after(folder: Path, step: int) -> None:
    """Removes the evaluations of later steps: a run goes back before them."""
    for later in steps_of(folder):
        if later > step:
            file_of(folder, later).unlink()


def best_point(values: Sequence[float | None], goal: Goal) -> int | None:
    """The place of the best value, the earliest among equals; None where there is none."""
    sign = 1 if goal == "min" else -1
    known = [(sign * value, place) for place, value in enumerate(values) if value is not None]
    return min(known)[1] if known else None


def without_improvement(values: Sequence[float | None], goal: Goal) -> int:
    """How many values in a row, the last ones, are not better than the best before them."""
    best = best_point(values, goal)
    return 0 if best is None else len(values) - 1 - best
