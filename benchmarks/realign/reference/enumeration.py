"""A row by enumeration: another way to what ``reference`` draws, and a test of it.

It follows the teacher's paths from a place before the position, best first, decodes them,
encodes the text as the student does, and counts which student token comes. Up to the position
it follows only the teacher's own encoding of the text so far: other segmentations of the past
do not count. A path is settled when no continuation can change the student's token
(``settling``), which never is the case inside a character. Where the text ends in white space,
what follows decides how tokenizers cut it: nothing is settled there, and each way to cut the
text so far counts.

It cannot see that a token of letters at the end of the text so far is cut in another way once
more letters follow: ``pasts`` of the reference can.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.realign.reference.settling import Settling
from teacher_server.realign.pair.vocabulary import Vocabulary, incomplete_tail

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
# Probability of a token of the text so far that is not in its row.
LEAST = 1e-9
# What may follow white space at the end of the text so far: each may have it cut in another
# way.
FOLLOWING = ("", " ", "  x", "\t", "\n", " \n", "x", "7", "(", "\u754c", "\u00a0x", "\u00b2", "'s")


class Teacher(Protocol):
    def support(self, before: Sequence[int]) -> tuple[Int64, Float64]:
        """The tokens that may follow ``before``, with their probabilities, descending."""
        ...


@dataclass(frozen=True)
class Enumerated:
    """``mass``: student id -> probability given that the student's tokens so far agree."""

    mass: dict[int, float]
    open_mass: float


def enumerate_paths(
    teacher: Teacher,
    before: Sequence[int],
    said: bytes,
    student_tokens: Sequence[int],
    student: Vocabulary,
    vocabulary: Vocabulary,
    *,
    open_share: float,
    most: int,
    enough: float = 0.0,
) -> Enumerated | None:
    """Follows the teacher after ``before`` until at most ``open_share`` is not settled.

    Args:
        said: bytes from the sync point to the position.
        student_tokens: the student's tokens over these bytes.
        enough: share not settled that is accepted once ``most`` paths have been followed.

    Returns: None when ``most`` paths were not enough.
    """
    order = count()
    heap: list[tuple[float, int, tuple[int, ...], bytes]] = [(-1.0, next(order), (), b"")]
    waiting, kept = 1.0, 0.0
    mass: dict[int, float] = {}
    # The first bytes of a character are encoded differently once its last ones are there.
    whole = len(said) - incomplete_tail(said)
    pasts = _pasts(said[:whole], vocabulary)
    settling = Settling(student, said, student_tokens)

    def settle(token: int | None, weight: float, path: tuple[int, ...], data: bytes) -> bool:
        nonlocal kept
        if token is not None and token >= 0:
            mass[token] = mass.get(token, 0.0) + weight
            kept += weight
        elif token is not None and tuple(vocabulary.encoder.encode(data).ids.tolist()) != path:
            kept += weight  # text that the teacher itself would have encoded otherwise: lost
        return token is not None

    for _ in range(most):
        if not heap or waiting <= open_share * (kept + waiting):
            break
        negative, _, path, data = heapq.heappop(heap)
        weight = -negative
        waiting -= weight
        ids, row = teacher.support([*before, *path])
        row = row * weight
        if len(data) > len(said):
            if settle(settling.token(data), weight, path, data):
                continue
            # No student token holds these two bytes: the text so far is closed.
            apart = ~student.adjacent[data[-1], vocabulary.first_byte[ids]]
            apart &= not ends_in_space(data) and not incomplete_tail(data)
            if apart.any():
                closed = settling.token(data, closed=True)
                assert settle(closed, float(row[apart].sum()), path, data)
                row = np.where(apart, 0.0, row)
        # The text so far has been written, however unlikely it was.
        nexts = {past[len(path)] for past in pasts if past[: len(path)] == path != past}
        for one in sorted(nexts.difference(ids.tolist())):
            ids = np.append(ids, one)
            row = np.append(row, LEAST * weight)
        least = 1e-8 * (kept + waiting + weight)
        for one, value in zip(ids.tolist(), row.tolist(), strict=True):
            if value <= least and one not in nexts:
                continue
            longer = data + vocabulary.token_bytes[one]
            if not longer.startswith(said[: len(longer)]):
                continue
            if len(longer) <= whole and one not in nexts:
                continue
            waiting += value
            heapq.heappush(heap, (-value, next(order), (*path, one), longer))
    else:
        if waiting > enough * (kept + waiting):
            return None
    # What is left counts as if its text ended here: dropping it would shift all the others.
    rest = waiting
    for negative, _, path, data in heap:
        if len(data) > len(said) and settle(
            settling.token(data, closed=True), -negative, path, data
        ):
            rest += negative
    if kept <= 0:
        return None
    return Enumerated({k: v / kept for k, v in mass.items()}, waiting / (kept + rest))


def _pasts(said: bytes, vocabulary: Vocabulary) -> set[tuple[int, ...]]:
    """The ways in which the tokenizer may cut ``said``, depending on what follows it."""
    pasts = {tuple(vocabulary.encoder.encode(said).ids.tolist())}
    if ends_in_space(said):
        texts = [said + following.encode() for following in FOLLOWING]
        for encoded in vocabulary.encoder.encode_each(texts):
            ids = np.array(encoded, np.int64)
            pasts.add(tuple(ids[np.cumsum(vocabulary.lengths[ids]) <= len(said)].tolist()))
    return pasts


def ends_in_space(data: bytes) -> bool:
    return data.decode("utf-8", "replace")[-1:].isspace()
