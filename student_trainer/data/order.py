"""Which prompts are trained on, and in which order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from teacher_proto.errors import ConfigurationError

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

    A prompt that is left out keeps its place, and the next one of its epoch that is not left
    out is taken there: the other places stay as they are, whichever are left out.

    Attributes:
        left_out: indices that are never taken; something is left of the whole and of each
            part.
        name: of one of several independent orders; empty for that of the prompts.
        turn: how many positions in a row are taken from the same part.
    """

    seed: int
    count: int
    parts: tuple[Part, ...] = ()
    left_out: AbstractSet[int] = frozenset()
    name: str = ""
    turn: int = 1

    @classmethod
    def of(
        cls,
        seed: int,
        prompts: Sequence[PromptItem],
        shares: Sequence[float] = (),
        left_out: AbstractSet[int] = frozenset(),
        name: str = "",
        turn: int = 1,
    ) -> PromptOrder:
        """The order of ``prompts``, those of one file together.

        Args:
            shares: of each file (``data.train``), adding up to 1; none: a prompt is as
                frequent as any other. A file of share 0 has no prompts.
            left_out: indices of prompts that are never taken.
            name: of the order.
            turn: how many positions in a row are of the same file, with ``shares``.
        """
        if not shares:
            return cls(seed, len(prompts), left_out=left_out, name=name)
        found = Counter(prompt.file for prompt in prompts)
        parts, start = [], 0
        for file, share in enumerate(shares):
            if share:
                parts.append(Part(start, found[file], share))
                start += found[file]
        return cls(seed, len(prompts), tuple(parts), left_out, name, turn)

    def take(self, position: int, count: int) -> list[int]:
        """The indices of ``count`` prompts, from ``position`` on."""
        if not self.parts:
            whole = Part(0, self.count, 1.0)
            return [
                self._shuffled(place, whole, self.seed)
                for place in range(position, position + count)
            ]
        first, last = position // self.turn, (position + count - 1) // self.turn
        turns = self._turns(first, last - first + 1) if count else []
        taken = []
        for place in range(position, position + count):
            number, part, nth = turns[place // self.turn - first]
            offset = nth * self.turn + place % self.turn
            taken.append(self._shuffled(offset, part, self.seed, number))
        return taken

    def _shuffled(self, place: int, part: Part, *key: int) -> int:
        """The index of the prompt at this place of a part's endless order."""
        epoch, offset = divmod(place, part.count)
        named = (self.name,) if self.name else ()
        order = _permutation(part.count, *named, *key, epoch)
        while part.start + int(order[offset]) in self.left_out:
            offset = (offset + 1) % part.count
        return part.start + int(order[offset])

    def _turns(self, position: int, count: int) -> list[tuple[int, Part, int]]:
        """(number of the part, the part, which of its turns) of each of ``count`` turns, from turn
        ``position`` on.

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


@lru_cache(maxsize=64)
def _permutation(count: int, *key: int | str) -> NDArray[np.int64]:
    return stream("order", *key).permutation(count)


def held_out_of(
    prompts: Sequence[PromptItem], fraction: float, seed: int
) -> tuple[list[PromptItem], list[PromptItem]]:
    """(the prompts to train on, those held out): a share of the distinct prompts is held out.
    Equal prompts stay together.

    Raises:
        ConfigurationError: the share is none of them, or all.
    """
    unique = sorted({p.prompt_id for p in prompts})
    count = round(fraction * len(unique))
    if fraction > 0 and count == 0:
        raise ConfigurationError(
            f"{fraction} of {len(unique)} prompts is none",
            where="data.held_out_fraction",
            fix="raise it, or give data.held_out",
        )
    if count == len(unique) > 0:
        raise ConfigurationError(
            f"{fraction} of {len(unique)} prompts is all of them, and none is left to train on",
            where="data.held_out_fraction",
            fix="lower it, or give more prompts",
        )
    chosen = set(stream("held out", seed).permutation(unique)[:count].tolist())
    return (
        [p for p in prompts if p.prompt_id not in chosen],
        [p for p in prompts if p.prompt_id in chosen],
    )
