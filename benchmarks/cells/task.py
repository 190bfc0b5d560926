"""Additions that are worked out part by part, with sums of three digits.

    prompt    347+85:
    reply     5=352,80=432.

The first number takes on the tens and the ones of the second one, those that are not 0, in an
order that is drawn. A reply is right if its last number is the sum.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

FIRST = 100, 399
SECOND = 10, 99


@dataclass(frozen=True)
class Problem:
    first: int
    second: int

    @property
    def prompt(self) -> str:
        return f"{self.first}+{self.second}:"

    @property
    def parts(self) -> list[int]:
        """What the second number is the sum of, the largest first."""
        return [part for part in (self.second // 10 * 10, self.second % 10) if part]

    def solution(self, order: Sequence[int]) -> str:
        """The worked solution that takes the parts in this order."""
        steps, total = [], self.first
        for part in order:
            total += part
            steps.append(f"{part}={total}")
        return ",".join(steps) + "."

    def solved_by(self, reply: str) -> bool:
        """Whether the reply ends in the right number and a full stop."""
        last = reply.removesuffix(".").rpartition("=")[2]
        return reply.endswith(".") and last == str(self.first + self.second)


def problems(draw: random.Random, count: int) -> list[Problem]:
    return [Problem(draw.randint(*FIRST), draw.randint(*SECOND)) for _ in range(count)]


def worked(draw: random.Random, problem: Problem) -> str:
    """A solution in an order that is drawn."""
    return problem.solution(draw.sample(problem.parts, len(problem.parts)))


def held_out(count: int) -> list[Problem]:
    """Different problems, always the same, of which none may be learnt from."""
    return list(dict.fromkeys(problems(random.Random(2024), 2 * count)))[:count]
