"""One rollout in both tokenizers: where their tokens meet, and what is settled when.

Offsets are bytes. A special token takes the bytes of its text and is never split.

CAUSALITY. The teacher's encoding of the whole rollout depends on later text at the
end of every prefix. The walk for a student position therefore begins at a *sync
point*: an offset where both tokenizers begin a pre-token whatever follows the
position (``sync``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Int32, Level

from teacher_server.realign.pair.encoder import Encoded
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary

Int64 = NDArray[np.int64]
# Inside a longer pre-token (Chinese has no spaces) a boundary counts as settled
# this many bytes later; the causality test measures what that costs.
SETTLED_AFTER_BYTES = 24


@dataclass(frozen=True)
class Layout:
    """n student tokens, m teacher tokens, B bytes.

    Attributes:
        data: the B bytes.
        student_ids: int32 [n].
        student_offsets: int64 [n + 1].
        teacher_ids: int32 [m].
        teacher_offsets: int64 [m + 1].
        sync: int64 [n], index of the teacher token at the position's sync point.
        special: bool [n], the position's own token is special.
        canonical: bool [n], the student's tokenizer gives this token at this place.
        bad: bool [n], the text of the token's chunk cannot be carried over.
        chunk: int64 [n], index of the span between two common boundaries.
        chunk_teacher: int64 [C + 1], teacher index where each chunk begins.
        chunk_tokens: int64 [C], tokens of the longer side.
        level: CROSS where the two are encodings of the same bytes; else ids are mapped.
    """

    data: bytes
    student_ids: Int32
    student_offsets: Int64
    teacher_ids: Int32
    teacher_offsets: Int64
    sync: Int64
    special: Bool
    canonical: Bool
    bad: Bool
    chunk: Int64
    chunk_teacher: Int64
    chunk_tokens: Int64
    level: Level = Level.CROSS


def lay_out(student_ids: Int32, tables: PairTables) -> Layout:
    """Encodes a rollout for the teacher.

    Raises:
        ValueError: the teacher has no token for some of the bytes.
    """
    student, teacher = tables.student, tables.teacher
    pieces: list[bytes] = []
    teacher_ids: list[Int32] = []
    raw: list[Bool] = []
    hard: list[tuple[int, int]] = [(0, 0)]  # (offset, settled once this much is read)
    bad_spans: list[tuple[int, int]] = []
    special = np.array([t in student.specials for t in student_ids.tolist()], np.bool_)
    offset = 0
    teacher_special: list[bool] = []
    canonical: list[Bool] = []
    for is_special, run in _runs(student_ids, special):
        if not is_special:
            span = b"".join(student.token_bytes[t] for t in run)
            encoded = teacher.encoder.encode(span)
            own = student.encoder.encode(span)
            canonical.append(_canonical(run, own.ids, student))
            settled = _settled(span, encoded, own, tables)
            hard += [(offset + at, offset + until) for at, until in settled]
            teacher_ids.append(encoded.ids)
            raw.append(encoded.raw)
            teacher_special += [False] * len(encoded.ids)
            pieces.append(span)
            offset += len(span)
        else:
            text = student.specials[run[0]].encode()
            mapped = tables.special_to_teacher.get(run[0])
            if mapped is None:
                encoded = teacher.encoder.encode(text)
                teacher_ids.append(encoded.ids)
                teacher_special += [False] * len(encoded.ids)
                bad_spans.append((offset, offset + len(text)))
            else:
                teacher_ids.append(np.array([mapped], np.int32))
                teacher_special.append(True)
            raw.append(np.zeros(len(teacher_ids[-1]), np.bool_))
            pieces.append(text)
            offset += len(text)
            hard.append((offset, offset))
            canonical.append(np.ones(1, np.bool_))
    ids = np.concatenate(teacher_ids)
    own_offsets = student_offsets(student_ids, student)
    lengths = teacher.lengths[ids]
    at = 0
    for index in np.flatnonzero(teacher_special).tolist():
        # A mapped special token spans the text of the student's.
        at = int(np.searchsorted(own_offsets, lengths[:index].sum(), "left"))
        lengths[index] = own_offsets[at + 1] - own_offsets[at]
    teacher_offsets = np.concatenate([[0], np.cumsum(lengths)])
    assert teacher_offsets[-1] == own_offsets[-1] == offset
    starts = np.flatnonzero(np.concatenate(raw))
    bad_spans += [(int(teacher_offsets[i]), int(teacher_offsets[i + 1])) for i in starts]
    return _assemble(
        b"".join(pieces),
        student_ids,
        own_offsets,
        ids,
        teacher_offsets,
        special,
        np.concatenate(canonical),
        hard,
        bad_spans,
    )


def _runs(ids: Int32, special: Bool) -> list[tuple[bool, list[int]]]:
    """Specials one by one, the ordinary tokens between them together."""
    runs: list[tuple[bool, list[int]]] = []
    for token, is_special in zip(ids.tolist(), special.tolist(), strict=True):
        if not is_special and runs and not runs[-1][0]:
            runs[-1][1].append(token)
        else:
            runs.append((is_special, [token]))
    return runs


def _canonical(run: Sequence[int], own: Int32, student: Vocabulary) -> Bool:
    """bool [len(run)]: the tokenizer's own encoding has this token at this offset."""
    ids = np.array(run, np.int64)
    begin = np.cumsum(student.lengths[ids]) - student.lengths[ids]
    own_begin = np.cumsum(student.lengths[own]) - student.lengths[own]
    at = np.minimum(np.searchsorted(own_begin, begin), len(own) - 1)
    same: Bool = (own_begin[at] == begin) & (own[at] == ids)
    return same


def student_offsets(ids: Int32, student: Vocabulary) -> Int64:
    """int64 [n + 1]: bytes before each token; a special has those of its text."""
    lengths = [
        len(student.specials[t].encode()) if t in student.specials else len(student.token_bytes[t])
        for t in ids.tolist()
    ]
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _settled(
    span: bytes, encoded: Encoded, other: Encoded, tables: PairTables
) -> list[tuple[int, int]]:
    """(offset, until): where both tokenizers begin a pre-token whatever follows ``until``."""
    starts = _pretoken_starts(span, encoded, tables.teacher)
    starts &= _pretoken_starts(span, other, tables.student)
    text = span.decode("utf-8", "replace") if starts else ""
    if len(text.encode()) != len(span):
        return []  # not UTF-8: the layout marks it, and only soft boundaries remain
    at, places = 0, []
    letters = list(text)
    for letter in letters:
        places.append(at)
        at += len(letter.encode())
    places.append(at)
    solid = len(letters)
    settled = []
    for index in range(len(letters) - 1, -1, -1):
        if not letters[index].isspace():
            solid = index
        if not index or places[index] not in starts or solid == len(letters):
            continue
        if not _may_rejoin(letters[index - 1], letters[index]):
            settled.append((places[index], places[solid + 1]))
    return settled[::-1]


def _may_rejoin(before: str, after: str) -> bool:
    """Pairs whose boundary some pre-tokenizers take back several characters later.

    An apostrophe may turn out to begin a contraction that belongs to the word; an
    upper-case run after letters without case joins them when lower case follows.
    """
    if after in "'\u2019":
        return True
    return not before.isascii() and not before.islower() and after.isupper()


def _pretoken_starts(span: bytes, encoded: Encoded, vocabulary: Vocabulary) -> set[int]:
    offsets = np.concatenate([[0], np.cumsum(vocabulary.lengths[encoded.ids])])[:-1]
    if vocabulary.kind == "byte_level":
        return set(offsets[encoded.starts].tolist())
    # No pre-tokens: only pairs of bytes that no token holds are sure to be split.
    values = np.frombuffer(span, np.uint8)
    split = ~vocabulary.adjacent[values[:-1], values[1:]]
    return {0, *(np.flatnonzero(split) + 1).tolist()}


def _assemble(
    data: bytes,
    student_ids: Int32,
    student_offsets: Int64,
    teacher_ids: Int32,
    teacher_offsets: Int64,
    special: Bool,
    canonical: Bool,
    hard: Sequence[tuple[int, int]],
    bad_spans: Sequence[tuple[int, int]],
) -> Layout:
    common = np.intersect1d(student_offsets, teacher_offsets)
    known = set(common.tolist())
    points = [(until, at) for at, until in hard if at in known]
    points += [(at + SETTLED_AFTER_BYTES, at) for at in common.tolist()]
    points.sort()
    untils = [until for until, _ in points]
    furthest = np.maximum.accumulate([at for _, at in points])
    begin = student_offsets[:-1]
    at = np.array([bisect_right(untils, offset) - 1 for offset in begin.tolist()], np.int64)
    chunk = np.searchsorted(common, begin, "right") - 1
    student_cut = np.searchsorted(student_offsets, common)
    teacher_cut = np.searchsorted(teacher_offsets, common)
    bad = np.zeros(len(common) - 1, np.bool_)
    for low, high in bad_spans:
        first = np.searchsorted(common, low, "right") - 1
        bad[first : np.searchsorted(common, high, "left")] = True
    return Layout(
        data=data,
        student_ids=student_ids,
        student_offsets=student_offsets,
        teacher_ids=teacher_ids,
        teacher_offsets=teacher_offsets,
        sync=np.searchsorted(teacher_offsets, furthest[at]),
        special=special,
        canonical=canonical,
        bad=bad[chunk],
        chunk=chunk,
        chunk_teacher=teacher_cut,
        chunk_tokens=np.maximum(np.diff(student_cut), np.diff(teacher_cut)),
    )
