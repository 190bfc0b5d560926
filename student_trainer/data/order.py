"""The order in which prompts are trained on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from student_trainer.rollout.base import PromptItem
from student_trainer.rollout.sampling import stream


@dataclass(frozen=True)
class Part:
    """Prompts that are a fixed share of a run's, in the list of all from ``start`` on."""

    start: int
    count: int
    share: float


@dataclass(frozen=True)
class PromptOrder:
    """The endless order of training: every epoch has a shuffle of its own.

    Position p is place ``p mod count`` of epoch ``p div count``. With ``parts`` each of
    them has epochs of its own, and the order takes from them in turn, so that among any
    first n positions a part has its share of n to within the number of parts.
    """

    seed: int
    count: int
    parts: tuple[Part, ...] = ()

    @classmethod
    def of(
        cls, seed: int, prompts: Sequence[PromptItem], shares: Sequence[float] = ()
    ) -> PromptOrder:
        """The order of ``prompts``, those of one file together.

        Args:
            shares: of each file (``data.train``), adding up to 1; none: a prompt is as
                frequent as any other.
        """
        if not shares:
            return cls(seed, len(prompts))
        found = Counter(prompt.file for prompt in prompts)
        parts, start = [], 0
        for file, share in enumerate(shares):
            parts.append(Part(start, found[file], share))
            start += found[file]
        return cls(seed, len(prompts), tuple(parts))

    def take(self, position: int, count: int) -> list[int]:
        """The indices of ``count`` prompts, from ``position`` on."""
        if not self.parts:
            return [
                _shuffled(place, self.count, self.seed)
                for place in range(position, position + count)
            ]
        return [
            part.start + _shuffled(nth, part.count, self.seed, number)
            for number, part, nth in self._turns(position, count)
        ]

    def _turns(self, position: int, count: int) -> list[tuple[int, Part, int]]:
        """(number of the part, the part, which of its turns) of each position.

        The nth turn of a part is due at time (n + 1/2) / share, and turns are taken in
        the order of these times. Up to time t about t turns are due, so that only those
        around ``position`` are looked at.
        """
        margin = len(self.parts) + 1
        due, before = [], 0
        for number, part in enumerate(self.parts):
            first = max(0, math.ceil((position - margin) * part.share - 0.5))
            last = math.ceil((position + count + margin) * part.share + 0.5)
            before += first
            due += [((nth + 0.5) / part.share, number, nth) for nth in range(first, last + 1)]
        chosen = sorted(due)[position - before : position - before + count]
        return [(number, self.parts[number], nth) for _, number, nth in chosen]


def _shuffled(place: int, count: int, seed: int, *part: int) -> int:
    """Where the prompt at this place of the endless order is among ``count``."""
    epoch, offset = divmod(place, count)
    return int(_permutation(count, seed, *part, epoch)[offset])


@lru_cache(maxsize=64)
def _permutation(count: int, *key: int) -> NDArray[np.int64]:
    return stream("order", *key).permutation(count)
