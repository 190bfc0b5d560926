"""Lengths that responses are made to have, on every side of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from student_trainer.rollout.drawing import Drawing, Drawn
from student_trainer.student.model import Student


def lognormal_lengths(count: int, *, longest: int, mean: int) -> list[int]:
    """``count`` lengths of a lognormal distribution whose longest and mean are these."""
    normal = np.sort(np.random.default_rng(7).standard_normal(count))
    low, high = 0.01, 3.0
    for _ in range(60):  # the ratio of longest and mean grows with the width
        width = (low + high) / 2
        drawn = np.exp(width * normal)
        low, high = (width, high) if drawn.max() / drawn.mean() < longest / mean else (low, width)
    lengths = np.maximum(np.round(drawn / drawn.max() * longest), 1).astype(int)
    return [int(n) for n in np.random.default_rng(8).permutation(lengths)]


def passes(lengths: Sequence[int], slots: int) -> tuple[int, float]:
    """Forward passes of batches that each wait for their longest, and of slots that are never
    empty."""
    batches = [max(lengths[first : first + slots]) for first in range(0, len(lengths), slots)]
    return sum(batches), max(sum(lengths) / slots, max(lengths))


def endless(student: Student) -> Student:
    """The student with one more id that is never drawn, which alone ends a response."""
    last = student.vocabulary_size - 1
    own = [] if student.undrawn is None else student.undrawn.tolist()
    undrawn = torch.tensor(sorted({*own, last}))
    return replace(student, undrawn=undrawn, terminators=(last,))


@dataclass
class ForcedDrawing(Drawing):
    """Ends every response at its length. Attributes: lengths: by prompt and index."""

    lengths: Mapping[tuple[str, int], int] | None = None

    def draw(self, lines: list[int], logits: Tensor) -> Drawn:
        drawn, ended = super().draw(lines, logits), []
        for nth, line in enumerate(lines):
            key = self._keys[line]
            assert key is not None, "the line holds a response"
            assert self.lengths is not None, "every response has one"
            if self._drawn[line] >= self.lengths[key.prompt.prompt_id, key.index]:
                ended.append(nth)
        return Drawn(drawn.tokens, ended, [])


class ForcedEnds(LogitsProcessor):  # type: ignore[misc]
    """For transformers' ``generate``: a row draws its terminator at its length, and not before."""

    def __init__(self, lengths: Sequence[int], terminators: Sequence[int]) -> None:
        self._lengths = torch.tensor(lengths)
        self._terminators = list(terminators)
        self._drawn = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        self._drawn += 1
        forced = scores.index_fill(-1, torch.tensor(self._terminators), -torch.inf)
        ending = self._lengths[: len(scores)] <= self._drawn
        forced[ending] = -torch.inf
        forced[ending, self._terminators[0]] = 0.0
        return forced
