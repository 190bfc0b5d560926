"""What the laboratory's tasks share: prompts by seed, and right responses to learn from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from student_trainer.study.lab.language.words import Response
from student_trainer.tasks.base import PlacedRow, Read, Row, Split, Task


class LabTask(Task):
    """Prompts drawn from a seed, each with a right answer and many right ways to write it.

    Attributes:
        name: of its models and files.
        numbers: the numbers that its texts hold.
    """

    name: ClassVar[str]
    numbers: ClassVar[range]

    items: PositiveInt = Field(default=4, description="Items of a prompt, K, each a step.")
    count: PositiveInt = Field(default=2000, description="Prompts to train on.")
    held_out: PositiveInt = Field(default=200, description="Prompts to evaluate on.")
    seed: NonNegativeInt = Field(default=0, description="Which prompts these are.")

    def prompts(self, split: Split, read: Read) -> Iterator[PlacedRow]:
        """As ``Task.prompts``. No prompt is in both splits, nor twice in one."""
        draw = random.Random(f"{self.name} {self.items} {self.seed}")
        seen: set[str] = set()
        while len(seen) < self.held_out + self.count:
            row = self.draw_row(draw, self.items)
            if row["prompt"] in seen:
                continue
            seen.add(row["prompt"])
            if (split == "held_out") == (len(seen) <= self.held_out):
                yield f"{self.name}, prompt {len(seen)}", row

    @property
    def longest_response(self) -> int:
        """Words of the longest right response, with its end."""
        raise NotImplementedError

    def draw_row(self, draw: random.Random, items: int) -> Row:
        """A prompt of this many items, with what ``verify`` and ``write`` read of it."""
        raise NotImplementedError

    def write(self, row: Row, draw: random.Random, *, decided: float, slip: float) -> Response:
        """A response to the row.

        Args:
            decided: weight of words that the rules decide.
            slip: probability that one of its steps is wrong. What follows a wrong step is right
                by what that step has written, so that a teacher knows prefixes with mistakes.
        """
        raise NotImplementedError
