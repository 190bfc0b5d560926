"""The references of the realignment benchmark: an n-gram teacher, and enumeration.

The enumeration shares nothing with the method but the tokenizers and the sync point. It
follows the teacher's paths from there, best first, decodes them, encodes the text as the
student does, and counts which student token comes. Up to the position it follows only the
teacher's own encoding of the text so far: other segmentations of the past do not count. A
path is settled when no continuation can change the student's token. Where the text ends in
white space, what follows decides how tokenizers cut it: nothing is settled there, and each
way to cut the text so far counts.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import PositionClass

from teacher_server.realign.pair.vocabulary import Vocabulary, incomplete_tail
from teacher_server.realign.realigner import RealignedRows

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
# Weights of the counts after 3, 2, 1 and 0 tokens.
WEIGHTS = (0.58, 0.25, 0.12, 0.045)
# Tokens that a row keeps: the enumeration follows all of them.
SUPPORT = 128
# Probability of a token of the text so far that is not in its row.
LEAST = 1e-9
# Continuation bytes of UTF-8.
CONTINUING = frozenset(bytes([byte]) for byte in range(0x80, 0xC0))
# What may follow white space at the end of the text so far: each may have it cut in another
# way.
FOLLOWING = ("", " ", "  x", "\t", "\n", " \n", "x", "7", "(", "\u754c", "\u00a0x", "\u00b2", "'s")


class Teacher(Protocol):
    def support(self, before: Sequence[int]) -> tuple[Int64, Float64]:
        """The tokens that may follow ``before``, with their probabilities, descending."""
        ...


@dataclass
class NgramTeacher:
    """A 4-gram model with interpolation over the tokens it has seen, and a uniform rest.

    A token that its tokenizer never writes after the token before (after white space,
    which is cut by what follows it: after the two tokens before) has no mass, as in a model
    that has learnt what its tokenizer writes. Nor has a token that leaves a character
    unfinished.
    """

    learnt: Sequence[int]
    vocabulary: Vocabulary
    _counts: list[dict[tuple[int, ...], Counter[int]]] = field(init=False)
    _known: dict[tuple[int, ...], tuple[Int64, Float64]] = field(init=False, default_factory=dict)

    _written: dict[tuple[int, ...], dict[int, bool]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._counts = [defaultdict(Counter) for _ in WEIGHTS]
        for length, table in zip((3, 2, 1, 0), self._counts, strict=True):
            for at in range(length, len(self.learnt)):
                table[tuple(self.learnt[at - length : at])][self.learnt[at]] += 1
        alone = self._counts[-1][()]
        scale = WEIGHTS[-1] / alone.total()
        self._base = {token: 0.005 / len(alone) + scale * n for token, n in alone.items()}
        self._seen = set(zip(self.learnt, self.learnt[1:], strict=False))
        self._seen |= set(zip(self.learnt, self.learnt[1:], self.learnt[2:], strict=False))
        common = sorted(self._base, key=lambda token: (-self._base[token], token))
        self._common = common[: 2 * SUPPORT]

    def support(self, before: Sequence[int]) -> tuple[Int64, Float64]:
        """The SUPPORT most likely tokens, equal ones by lower id."""
        key = tuple(before[-3:])
        if key not in self._known:
            self._known[key] = self._support(key)
        return self._known[key]

    def _support(self, before: tuple[int, ...]) -> tuple[Int64, Float64]:
        row = {token: self._base[token] for token in self._common}
        for length, weight, table in zip((3, 2, 1), WEIGHTS, self._counts, strict=False):
            found = table.get(before[-length:]) if len(before) >= length else None
            if found:
                scale = weight / found.total()
                for token, times in found.items():
                    row[token] = row.get(token, self._base[token]) + scale * times
        never = self._never(before, row)
        if len(never) < len(row):  # else nothing is ever written there, and all keep their mass
            for token in never:
                del row[token]
        best = sorted(row, key=lambda token: (-row[token], token))[:SUPPORT]
        values = np.array([row[token] for token in best])
        return np.array(best, np.int64), values / values.sum()

    def _never(self, before: tuple[int, ...], row: Iterable[int]) -> list[int]:
        """The tokens of a row that the tokenizer does not write there."""
        table = self.vocabulary.token_bytes
        if not before or not table[before[-1]]:
            return []
        said = b"".join(table[token] for token in before)
        if incomplete_tail(said):
            return [token for token in row if table[token][:1] not in CONTINUING]
        spaces = ends_in_space(table[before[-1]])
        context = before[-2:] if spaces and table[before[-2:][0]] else before[-1:]
        known = self._written.setdefault(context, {})
        asked = [token for token in (row if spaces else self._common) if token not in known]
        new = [token for token in asked if (*context, token) not in self._seen]
        known.update(dict.fromkeys(asked, True))
        known.update(zip(new, self._writes(context, new), strict=True))
        return [token for token in row if not known.get(token, True)]

    def _writes(self, context: tuple[int, ...], tokens: list[int]) -> list[bool]:
        """Whether the tokenizer cuts some text as ``context`` and then each token."""
        table = self.vocabulary.token_bytes
        wanted = [[*context, token] for token in tokens]
        texts, owner = [], []
        for index, path in enumerate(wanted):
            text = b"".join(table[token] for token in path)
            follows = FOLLOWING if ends_in_space(text) else ("",)
            texts += [text + following.encode() for following in follows]
            owner += [index] * len(follows)
        written = [False] * len(tokens)
        for index, ids in zip(owner, self.vocabulary.encoder.encode_each(texts), strict=True):
            written[index] |= ids[: len(wanted[index])] == wanted[index]
        return written

    def probability(self, before: Sequence[int], token: int) -> float:
        ids, values = self.support(before)
        return float(values[ids == token].sum())


@dataclass(frozen=True)
class Enumerated:
    """``mass``: student id -> probability given that the student's tokens so far agree."""

    mass: dict[int, float]
    open_mass: float


class Settling:
    """The student's token after the text so far, as soon as nothing can change it.

    Args:
        said: the text so far: bytes from the sync point to the position.
        tokens: the student's tokens over them.
    """

    def __init__(self, student: Vocabulary, said: bytes, tokens: Sequence[int]) -> None:
        self._student = student
        self._said = said
        self._tokens = list(tokens)
        self._known: dict[tuple[bytes, bool], int | None] = {}

    def token(self, data: bytes, *, closed: bool = False) -> int | None:
        """The token, -1 where the student would have cut the text so far in another way, or
        None where that is not settled.

        Args:
            closed: whether no token reaches beyond ``data``.
        """
        key = data, closed
        if key not in self._known:
            self._known[key] = self._settled(data, closed)
        return self._known[key]

    def _settled(self, data: bytes, closed: bool) -> int | None:
        student = self._student
        encoded = student.encoder.encode(data)
        ends = np.cumsum(student.lengths[encoded.ids])
        if closed:
            return self._after(encoded.ids.tolist(), True)
        begins = (ends - student.lengths[encoded.ids])[encoded.pretoken_starts].tolist()
        text = data.decode("utf-8", "ignore")
        solid = len(text.rstrip().encode())
        last = max((at for at in begins if at < solid), default=0)
        found = self._after(encoded.ids[: int(np.searchsorted(ends, last, "right"))].tolist())
        if found is None and not incomplete_tail(data) and _caseless(data[last:]):
            return self._frontier(data, last)
        return found

    def _after(self, ids: list[int], closed: bool = False) -> int | None:
        count = len(self._tokens)
        if ids[:count] != self._tokens[: len(ids)]:
            return -1
        if len(ids) > count:
            return ids[count]
        return -1 if closed else None

    def _frontier(self, data: bytes, start: int) -> int | None:
        """The token on which all encodings of a longer pre-token agree.

        In each of them one token, the first to end beyond ``data``, begins at some ``at``,
        and what precedes it is the encoding of ``data[:at]``.
        """
        answers: set[int | None] = set()
        for at in range(len(data), start - 1, -1):
            rest = data[at:]
            if rest:
                low, high = self._student.prefix_range(rest)
                texts = self._student.sorted_bytes
                while low < high and len(texts[low]) == len(rest):
                    low += 1
                if low == high:
                    continue
            head = self._student.encoder.encode(data[:start]).ids.tolist()
            (tail,) = self._student.encoder.encode_each([data[start:at]])
            answer = self._after(head + tail)
            if answer is None:
                return None  # it begins at the position or before
            answers.add(answer)
            if len(answers) > 1:
                return None
        return answers.pop() if answers else None


def _caseless(data: bytes) -> bool:
    """Whether it is letters without case only: pre-tokenizers never split such a run later."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    letters = text if text[:1].isalpha() else text[1:]  # a mark may lead a word
    return letters != "" and all(x.isalpha() and x.lower() == x.upper() for x in letters)


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
    pasts = _pasts(said, vocabulary)
    settling = Settling(student, said, student_tokens)
    # The first bytes of a character are encoded differently once its last ones are there.
    whole = len(said) - incomplete_tail(said)

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
            apart &= not ends_in_space(data)
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
        if len(data) > len(said):
            settle(settling.token(data, closed=True), -negative, path, data)
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


def rows_apart(first: RealignedRows, second: RealignedRows) -> float | None:
    """Total variation between two versions of one row (position 0 of each) over the ids
    that both certify; None where one of them is masked."""
    if PositionClass.MASKED in (first.position_class[0], second.position_class[0]):
        return None
    values = [_certified(rows) for rows in (first, second)]
    common = values[0].keys() & values[1].keys()
    return sum(abs(values[0][token] - values[1][token]) for token in common) / 2


def contradiction(first: RealignedRows, second: RealignedRows) -> float:
    """The mass that one version of a row (position 0 of each) settles beyond all that the
    other leaves possible; masks do not matter."""
    worst = 0.0
    for one, other in ((first, second), (second, first)):
        mine, theirs = _settled(one), _settled(other)
        rest = float(other.certified.open_mass[0] + other.certified.lost_mass[0])
        beyond = sum(max(0.0, mass - theirs.get(token, 0.0)) for token, mass in mine.items())
        worst = max(worst, beyond - rest)
    return worst


def _settled(rows: RealignedRows) -> dict[int, float]:
    settled = rows.walked.settled
    masses: dict[int, float] = {}
    for token, mass in zip(settled.token.tolist(), settled.mass.tolist(), strict=True):
        masses[token] = masses.get(token, 0.0) + mass / float(rows.walked.total[0])
    return masses


def _certified(rows: RealignedRows) -> dict[int, float]:
    count = int(rows.certified.counts[0])
    values = np.exp(rows.certified.log_probs[0, :count].astype(np.float64))
    return dict(zip(rows.certified.ids[0, :count].tolist(), values.tolist(), strict=True))
