"""The teacher's rows over the student's tokens by brute force: the truth of this laboratory.

It shares nothing with realignment: numbers are tokens of up to three digits, cut from the
left, so that a token's probability is that of its digits and, below three, of no digit after
them. A position after a shorter number can have no digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.cells.pair import DIGITS, side
from benchmarks.cells.rows import Path, Scorer
from benchmarks.cells.task import Problem

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
# Paths of less probability are not followed; rows are normalised without them.
LEAST = 1e-5


def exact_rows(scorer: Scorer, asked: Sequence[Problem], replies: Sequence[Int64]) -> list[Float64]:
    """For each reply of n tokens float64 [n, V_S], probabilities; a row is 0 where the reply
    is not what the tokenizer writes."""
    texts = [_texts(ids) for ids in replies]
    lines = [_teacher_ids(text) for text in texts]
    digits = np.array([side(1).vocabulary.by_bytes[digit.encode()] for digit in DIGITS])
    first = scorer.rows(asked, lines, [[(at, ()) for at in _offsets(text)] for text in texts])
    tables = [
        [{(): row} if _may_be_number(text, index) else {} for index, row in enumerate(np.exp(rows))]
        for text, rows in zip(texts, first, strict=True)
    ]
    for _ in range(2):
        paths = [_further(text, table, digits) for text, table in zip(texts, tables, strict=True)]
        found = scorer.rows(asked, lines, [[path for _, path in some] for some in paths])
        for table, some, rows in zip(tables, paths, found, strict=True):
            for (index, (_, tokens)), row in zip(some, np.exp(rows), strict=True):
                table[index][tokens] = row
    every = [one for some in tables for one in some]
    alone = np.exp(np.concatenate(first))
    made = [_row(row, own, digits) for row, own in zip(alone, every, strict=True)]
    ends = np.cumsum([len(text) for text in texts])[:-1]
    return np.split(np.array(made), ends)


def _texts(ids: Int64) -> list[str]:
    student = side(3).vocabulary
    return [student.token_bytes[one].decode() or student.specials[one] for one in ids.tolist()]


def _teacher_ids(texts: Sequence[str]) -> list[int]:
    specials = side(1).vocabulary.special_ids
    ids: list[int] = []
    for text in texts:
        ids += [specials[text]] if text in specials else side(1).encode(text)
    return ids


def _offsets(texts: Sequence[str]) -> list[int]:
    """Teacher tokens before each token."""
    lengths = [1 if text in side(1).vocabulary.special_ids else len(text) for text in texts]
    return (np.cumsum(lengths) - lengths).tolist()


def _may_be_number(texts: Sequence[str], index: int) -> bool:
    before = texts[index - 1] if index else ""
    return not before.isdigit() or len(before) == 3


def _further(
    texts: Sequence[str], table: Sequence[dict[tuple[int, ...], Float64]], digits: Int64
) -> list[tuple[int, Path]]:
    """(index, path) of one digit more, after the longest paths of each position."""
    found: list[tuple[int, Path]] = []
    for index, (at, rows) in enumerate(zip(_offsets(texts), table, strict=True)):
        longest = max(map(len, rows), default=0)
        for path in [one for one in rows if len(one) == longest]:
            mass = probability(rows, path)
            found += [
                (index, (at, (*path, digit)))
                for digit in digits.tolist()
                if mass * rows[path][digit] > LEAST
            ]
    return found


def probability(rows: dict[tuple[int, ...], Float64], path: tuple[int, ...]) -> float:
    """Of the path's tokens, in the rows after its beginnings."""
    return float(np.prod([rows[path[:at]][token] for at, token in enumerate(path)]))


@cache
def _student_ids() -> Int64:
    """int64 [V_T]: the student's token with the same text."""
    student, teacher = side(3).vocabulary, side(1).vocabulary
    return np.array(
        [
            student.by_bytes[data] if data else student.special_ids[teacher.specials[token]]
            for token, data in enumerate(teacher.token_bytes)
        ]
    )


def _row(first: Float64, rows: dict[tuple[int, ...], Float64], digits: Int64) -> Float64:
    """float64 [V_S]: normalised."""
    student, teacher = side(3).vocabulary, side(1).vocabulary
    result = np.zeros(student.size)
    result[_student_ids()] = first
    result[[student.by_bytes[digit.encode()] for digit in DIGITS]] = 0.0
    for path, row in rows.items():
        mass = probability(rows, path)
        data = b"".join(teacher.token_bytes[token] for token in path)
        if path:
            result[student.by_bytes[data]] = mass * (1 - row[digits].sum())
        if len(path) == 2:
            longer = [student.by_bytes[data + digit.encode()] for digit in DIGITS]
            result[longer] = mass * row[digits]
    return result / result.sum()
