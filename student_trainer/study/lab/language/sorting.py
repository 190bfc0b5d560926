"""Sorting by insertion: a response takes the numbers of the prompt in any order and writes, after
each, the list in which it stands in its place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from student_trainer.study.lab.language.task import LabTask
from student_trainer.study.lab.language.words import ANSWER, ASIDES, STYLES, Response
from student_trainer.tasks.base import Row, Verdict

UP, DOWN = "up", "down"
_NUMBERS = range(100, 1000, 25)
_READ = {str(number): number for number in _NUMBERS}


class SortingTask(LabTask):
    """Lists to sort, such as ``S3 up 350 125 775 400 =``. A step names a number that is left and
    the list with it; the answer is the last list."""

    name: ClassVar[str] = "sorting"
    numbers: ClassVar[range] = _NUMBERS

    @property
    def longest_response(self) -> int:
        """As ``LabTask.longest_response``: at most 8 words a step, and the growing list."""
        lists = self.items * (self.items + 1) // 2
        return (4 + len(ASIDES)) * self.items + lists + self.items + 2

    def draw_row(self, draw: random.Random, items: int) -> Row:
        """As ``LabTask.draw_row``; at most 36 items."""
        style, way = draw.randrange(STYLES), draw.choice((UP, DOWN))
        numbers = draw.sample(self.numbers, items)
        text = f"S{style} {way} {' '.join(map(str, numbers))} ="
        return {"prompt": text, "style": style, "down": way == DOWN, "items": numbers}

    def write(self, row: Row, draw: random.Random, *, decided: float, slip: float) -> Response:
        """As ``LabTask.write``. A slip is a number that stands in a wrong place."""
        response = Response(row["style"], draw, decided)
        order = draw.sample(row["items"], len(row["items"]))
        slip_at = draw.randrange(1, len(order)) if draw.random() < slip and order[1:] else -1
        listed: list[int] = []
        for place, number in enumerate(order):
            at = right_at = place_of(listed, number, down=row["down"])
            if place == slip_at:
                # Early anywhere, or one place late: so one number alone does not follow.
                late = [right_at + 1] if right_at < len(listed) else []
                at = draw.choice([*range(right_at), *late])
            listed.insert(at, number)
            response.begin_step()
            response.say("done")
            response.state(number)
            response.say("makes")
            for index, value in enumerate(listed):
                response.state(value, wrong=at != right_at and index == min(at, right_at))
            response.say("stop")
        response.state(ANSWER)
        for value in listed:
            response.state(value)
        return response

    def verify(self, row: Row, response: str) -> Verdict:
        """1 where the response ends in the word for the answer, said once, and the sorted list.

        ``values["steps_right"]`` is the share of right steps: a number of the prompt that was
        left, and the list of the step before with it in its place.
        """
        words = response.split()
        right = [str(number) for number in sorted(row["items"], reverse=row["down"])]
        ends = words[-len(right) - 1 :] == [ANSWER, *right] and words.count(ANSWER) == 1
        stretches = _stretches(words)
        left, good = list(row["items"]), 0
        listed: list[int] = []
        for taken, after in zip(stretches[::2], stretches[1::2], strict=False):
            if len(taken) == 1 and taken[0] in left:
                left.remove(taken[0])
                at = place_of(listed, taken[0], down=row["down"])
                good += after == [*listed[:at], taken[0], *listed[at:]]
            listed = after
        share = good / max((len(stretches) + 1) // 2, len(row["items"]))
        return Verdict(float(ends), values={"steps_right": share})


def place_of(listed: Sequence[int], number: int, *, down: bool) -> int:
    """Where a number is inserted: before the first that has to stand after it."""
    for place, other in enumerate(listed):
        if (other < number) if down else (other > number):
            return place
    return len(listed)


def _stretches(words: Sequence[str]) -> list[list[int]]:
    """The numbers before the answer, those that stand side by side together."""
    stretches: list[list[int]] = []
    beside = False
    for word in words:
        if word == ANSWER:
            break
        if word in _READ:
            if not beside:
                stretches.append([])
            stretches[-1].append(_READ[word])
        beside = word in _READ
    return stretches
