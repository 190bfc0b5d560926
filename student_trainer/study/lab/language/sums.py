"""Worked sums: every item has a value, which is not in the prompt; a response adds the values
one by one, in any order, modulo 20."""

from __future__ import annotations

import random
from typing import ClassVar

from student_trainer.study.lab.language.task import LabTask
from student_trainer.study.lab.language.words import ANSWER, ASIDES, ITEMS, STYLES, Response
from student_trainer.tasks.base import Row, Verdict

MODULUS = 20
_DRAW = random.Random("values of the items")
VALUES = {item: _DRAW.randrange(MODULUS) for item in ITEMS}
_NUMBERS = {str(number): number for number in range(MODULUS)}


class SumsTask(LabTask):
    """Sums of the values of items, such as ``S3 apple lamp boat desk =``. A step names an item
    that is left, its value, the total before it and the total after it."""

    name: ClassVar[str] = "sums"
    numbers: ClassVar[range] = range(MODULUS)

    @property
    def longest_response(self) -> int:
        """As ``LabTask.longest_response``: at most 13 words a step."""
        return (9 + len(ASIDES)) * self.items + 3

    def draw_row(self, draw: random.Random, items: int) -> Row:
        """As ``LabTask.draw_row``; at most 48 items."""
        style, chosen = draw.randrange(STYLES), draw.sample(ITEMS, items)
        return {"prompt": f"S{style} {' '.join(chosen)} =", "style": style, "items": chosen}

    def write(self, row: Row, draw: random.Random, *, decided: float, slip: float) -> Response:
        """As ``LabTask.write``. A slip is a wrong value or a wrong total."""
        response = Response(row["style"], draw, decided)
        order = draw.sample(row["items"], len(row["items"]))
        slip_at = draw.randrange(len(order)) if draw.random() < slip else -1
        total = 0
        for place, item in enumerate(order):
            value, off = VALUES[item], 0
            if wrong_value := place == slip_at and draw.random() < 0.3:
                value = (value + draw.randrange(1, MODULUS)) % MODULUS
            elif place == slip_at:
                off = draw.randrange(1, MODULUS)
            after = (total + value + off) % MODULUS
            response.begin_step()
            response.say("done")
            response.state(item)
            response.say("has")
            response.state(value, wrong=wrong_value)
            response.say("plus")
            response.state(total)
            response.say("makes")
            response.state(after, wrong=off > 0)
            response.say("stop")
            total = after
        response.state(ANSWER)
        response.state(total)
        return response

    def verify(self, row: Row, response: str) -> Verdict:
        """1 where the response ends in the word for the answer, said once, and the right sum.

        ``values["steps_right"]`` is the share of right steps: an item of the prompt that was
        left, its value, the total that the step before wrote, and the right total after it.
        """
        words = response.split()
        good, count = self._steps_right(row["items"], words)
        right = sum(VALUES[item] for item in row["items"]) % MODULUS
        ends = words[-2:] == [ANSWER, str(right)] and words.count(ANSWER) == 1
        share = good / max(count, len(row["items"]))
        return Verdict(float(ends), values={"steps_right": share})

    def _steps_right(self, items: list[str], words: list[str]) -> tuple[int, int]:
        """How many steps are right, and how many there are."""
        steps: list[tuple[str, list[int]]] = []
        for word in words:
            if word == ANSWER:
                break
            if word in VALUES:
                steps.append((word, []))
            elif word in _NUMBERS and steps:
                steps[-1][1].append(_NUMBERS[word])
        left, total, good = set(items), 0, 0
        for item, numbers in steps:
            value = VALUES[item]
            good += item in left and numbers == [value, total, (total + value) % MODULUS]
            left.discard(item)
            total = numbers[-1] if numbers else total
        return good, len(steps)
