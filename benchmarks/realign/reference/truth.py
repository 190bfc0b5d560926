"""A right row, and how far others are from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Truth:
    """The right row at one position.

    Attributes:
        mass: student id -> probability; with ``lost`` they sum to 1.
        lost: what no student token can express.
        noise: mean total variation between ``mass`` and what endless drawing would give.
        halves: ``mass`` from each half of the drawn texts.
    """

    mass: dict[int, float]
    lost: float
    noise: float
    halves: tuple[dict[int, float], dict[int, float]]

    def excess(self, values: Mapping[int, float]) -> float:
        """Total variation between ``values`` (student id -> probability) and the truth over
        these ids, beyond what chance makes of it: each half of the drawn texts tells on which
        side of the truth a value lies, and the other half how far. It is 0 in the mean where
        the values are right, and may be negative."""
        first, second = self.halves
        total = 0.0
        for token, value in values.items():
            one, other = value - first.get(token, 0.0), value - second.get(token, 0.0)
            total += _sign(one) * other + _sign(other) * one
        return total / 4

    @property
    def entropy(self) -> float:
        """Nats."""
        return entropy(self.mass.values())


def entropy(masses: Iterable[float]) -> float:
    """Nats, of probabilities that need not sum to 1: what is missing is one event more."""
    known = [mass for mass in masses if mass > 0]
    rest = 1.0 - sum(known)
    return -sum(mass * math.log(mass) for mass in [*known, *([rest] if rest > 1e-12 else [])])


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def truth_of(halves: Sequence[Mapping[int, float]], lost: int) -> Truth | None:
    """From the masses by outcome of two halves; ``lost`` is the outcome that is no token. None
    where one of them has nothing."""
    if not halves[0] or not halves[1]:
        return None
    first, second = halves
    outcomes = first.keys() | second.keys()
    mass = {one: (first.get(one, 0.0) + second.get(one, 0.0)) / 2 for one in outcomes}
    apart = sum(abs(first.get(one, 0.0) - second.get(one, 0.0)) for one in outcomes) / 2
    none = mass.pop(lost, 0.0)
    return Truth(mass, none, apart / 2, (dict(first), dict(second)))
