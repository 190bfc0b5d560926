"""The references of the realignment benchmark: an n-gram teacher, and enumeration.

The enumeration shares nothing with the method but the tokenizers and the sync point:
it follows the teacher's paths best first from there (up to the position only along the
teacher's own encoding of what has been said: other segmentations of the past do not
count), decodes them, encodes the text
as the student does, and counts which student token comes. A path is settled when the
pre-token that holds this token is closed.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import PositionClass

from teacher_server.realign.carry import CarriedRows
from teacher_server.realign.vocabulary import Vocabulary

Float64 = NDArray[np.float64]
# Weight of the counts after 3, 2, 1 and 0 tokens.
WEIGHTS = (0.58, 0.25, 0.12, 0.045)
# Tokens a row keeps: enumeration ends only where a row does.
SUPPORT = 128


@dataclass
class NgramTeacher:
    """A 4-gram model with interpolation over the tokens it has seen, and a uniform rest."""

    learnt: Sequence[int]
    counts: list[dict[tuple[int, ...], Counter[int]]] = field(init=False)
    seen: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = np.unique(np.array(self.learnt))
        self.counts = [defaultdict(Counter) for _ in WEIGHTS]
        for length, table in zip((3, 2, 1, 0), self.counts, strict=True):
            for at in range(length, len(self.learnt)):
                table[tuple(self.learnt[at - length : at])][self.learnt[at]] += 1
        place = {int(token): index for index, token in enumerate(self.seen)}
        self._place = place
        self._base = np.full(len(self.seen), 0.005 / len(self.seen))
        total = self.counts[-1][()].total()
        for token, times in self.counts[-1][()].items():
            self._base[place[token]] += WEIGHTS[-1] * times / total

    def row(self, before: Sequence[int]) -> Float64:
        """Probabilities of ``seen`` after these tokens."""
        row = self._base.copy()
        for length, weight, table in zip((3, 2, 1), WEIGHTS, self.counts, strict=False):
            key = tuple(before[len(before) - length :]) if len(before) >= length else None
            found = table.get(key) if key is not None else None
            if found:
                scale = weight / found.total()
                for token, times in found.items():
                    row[self._place[token]] += scale * times
        if len(row) > SUPPORT:
            row[row < np.partition(row, -SUPPORT)[-SUPPORT]] = 0.0
        result: Float64 = row / row.sum()
        return result

    def top(self, before: Sequence[int], size: int) -> tuple[NDArray[np.int32], Float64]:
        row = self.row(before)
        size = min(size, len(row))
        best = np.argpartition(-row, size - 1)[:size]
        best = best[np.argsort(-row[best], kind="stable")]
        return self.seen[best].astype(np.int32), np.log(np.maximum(row[best], 1e-300))


@dataclass(frozen=True)
class Enumerated:
    """``mass``: student id -> probability given that the student's tokens so far agree."""

    mass: dict[int, float]
    open_mass: float


def enumerate_paths(
    teacher: NgramTeacher,
    before: Sequence[int],
    said: bytes,
    student_tokens: Sequence[int],
    student: Vocabulary,
    vocabulary: Vocabulary,
    *,
    open_share: float,
    most: int,
) -> Enumerated | None:
    """Follows the teacher after ``before`` until only ``open_share`` is not settled.

    Args:
        said: bytes from the sync point to the position.
        student_tokens: the student's tokens over these bytes.

    Returns: None when ``most`` paths were not enough.
    """
    order = count()
    heap: list[tuple[float, int, tuple[int, ...], bytes]] = [(-1.0, next(order), (), b"")]
    waiting, kept = 1.0, 0.0
    mass: dict[int, float] = {}
    first = vocabulary.first_byte[teacher.seen]
    past = tuple(vocabulary.encoder.encode(said).ids.tolist())

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
        row = teacher.row([*before, *path]) * weight
        if len(data) > len(said):
            if settle(settled_token(data, said, student_tokens, student), weight, path, data):
                continue
            # No student token holds these two bytes: the text so far is closed.
            apart = ~student.adjacent[data[-1], first]
            closed = settled_token(data, said, student_tokens, student, closed=True)
            assert settle(closed, float(row[apart].sum()), path, data)
            row = np.where(apart, 0.0, row)
        for place in np.flatnonzero(row > 1e-8 * (kept + waiting + weight)).tolist():
            one = int(teacher.seen[place])
            longer = data + vocabulary.token_bytes[one]
            if not longer.startswith(said[: len(longer)]):
                continue
            if len(longer) <= len(said) and (*path, one) != past[: len(path) + 1]:
                continue
            waiting += row[place]
            heapq.heappush(heap, (-row[place], next(order), (*path, one), longer))
    else:
        return None
    if kept <= 0:
        return None
    return Enumerated({k: v / kept for k, v in mass.items()}, waiting / (kept + waiting))


def settled_token(
    data: bytes,
    said: bytes,
    tokens: Sequence[int],
    student: Vocabulary,
    *,
    closed: bool = False,
) -> int | None:
    """The student's token after ``said``; -1: it would have said otherwise; None: not settled.

    closed: no token goes on beyond ``data``.
    """
    encoded = student.encoder.encode(data)
    ends = np.cumsum(student.lengths[encoded.ids])
    begins = ends - student.lengths[encoded.ids]
    n = len(tokens)
    ids = encoded.ids.tolist()
    if not closed:
        starts = begins[encoded.starts].tolist()
        text = data.decode("utf-8", "ignore")
        solid = len(text.rstrip().encode())
        last = max((at for at in starts if at < solid), default=0)
        ids = ids[: int(np.searchsorted(ends, last, "right"))]
    if ids[:n] != list(tokens[: len(ids)]):
        return -1
    if len(ids) > n:
        return int(ids[n])
    return -1 if closed else None


def rows_apart(first: CarriedRows, second: CarriedRows) -> float | None:
    """Total variation of two versions of one row (position 0 of each) over the ids that
    both certify; None where one of them is masked."""
    if PositionClass.MASKED in (first.position_class[0], second.position_class[0]):
        return None
    values = [_certified(rows) for rows in (first, second)]
    common = values[0].keys() & values[1].keys()
    return sum(abs(values[0][token] - values[1][token]) for token in common) / 2


def contradiction(first: CarriedRows, second: CarriedRows) -> float:
    """What one version of a row (position 0 of each) settles beyond all that the other
    leaves possible; masks do not matter."""
    worst = 0.0
    for one, other in ((first, second), (second, first)):
        mine, theirs = _settled(one), _settled(other)
        rest = float(other.certified.open_mass[0] + other.certified.lost_mass[0])
        beyond = sum(max(0.0, mass - theirs.get(token, 0.0)) for token, mass in mine.items())
        worst = max(worst, beyond - rest)
    return worst


def _settled(rows: CarriedRows) -> dict[int, float]:
    settled = rows.walked.settled
    masses: dict[int, float] = {}
    for token, mass in zip(settled.token.tolist(), settled.mass.tolist(), strict=True):
        masses[token] = masses.get(token, 0.0) + mass / float(rows.walked.total[0])
    return masses


def _certified(rows: CarriedRows) -> dict[int, float]:
    count = int(rows.certified.counts[0])
    values = np.exp(rows.certified.log_probs[0, :count].astype(np.float64))
    return dict(zip(rows.certified.ids[0, :count].tolist(), values.tolist(), strict=True))
