"""Worked sums and sorting by insertion together, for a student that learns both."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from typing import ClassVar

from student_trainer.study.lab.language.order import OrderTask
from student_trainer.study.lab.language.sums import SumsTask
from student_trainer.study.lab.language.task import LabTask
from student_trainer.study.lab.language.words import Response
from student_trainer.tasks.base import Row, Verdict


@cache
def _parts(items: int) -> Mapping[str, LabTask]:
    return {part.name: part(items=items) for part in (SumsTask, OrderTask)}


class SumsAndOrderTask(LabTask):
    """Each prompt is one of ``SumsTask`` or of ``OrderTask``, drawn with equal probability; the
    row's ``"task"`` says which."""

    name: ClassVar[str] = "sums-order"
    numbers: ClassVar[range] = SumsTask.numbers

    @property
    def longest_response(self) -> int:
        """As ``LabTask.longest_response``: of either task."""
        return max(part.longest_response for part in _parts(self.items).values())

    def draw_row(self, draw: random.Random, items: int) -> Row:
        """As ``LabTask.draw_row``; at most 48 items."""
        name = draw.choice(list(_parts(items)))
        return {**_parts(items)[name].draw_row(draw, items), "task": name}

    def write(self, row: Row, draw: random.Random, *, decided: float, slip: float) -> Response:
        """As ``LabTask.write``, of the row's task."""
        return self._of(row).write(row, draw, decided=decided, slip=slip)

    def verify(self, row: Row, response: str) -> Verdict:
        """As the row's task judges it."""
        return self._of(row).verify(row, response)

    def _of(self, row: Row) -> LabTask:
        return _parts(len(row["items"]))[row["task"]]
