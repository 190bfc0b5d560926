"""One rollout in both tokenizers: where their tokens meet, and from where a walk starts.

Offsets are bytes. A special token takes the bytes of its text and is never split.

A *common boundary* is an offset where a token ends in both encodings; the text between two
neighbouring ones is a *chunk*. Walks start from common boundaries that no later text can
move (``sync_points``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Int32, Level

from teacher_server.realign.pair.sync_points import (
    apart_from_added,
    settled_boundaries,
    sync_offsets,
)
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary, incomplete_tail

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """A rollout of n student tokens, m teacher tokens and B bytes.

    Attributes:
        data: the B bytes.
        student_ids: int32 [n].
        student_offsets: int64 [n + 1].
        teacher_ids: int32 [m].
        teacher_offsets: int64 [m + 1].
        sync: int64 [n], index of the teacher token at the position's sync point.
        special: bool [n], the position's own token is special.
        canonical: bool [n], the student's tokenizer itself gives this token at this place.
        unreadable: bool [n], the teacher reads text of the token's chunk byte by byte, or a
            character before it that does not end.
        without_counterpart: bool [n], the token's chunk has a special token without one.
        chunk: int64 [n], index of the position's chunk.
        chunk_teacher: int64 [C + 1], index of the first teacher token of each chunk.
        chunk_tokens: int64 [C], tokens of the chunk on the side that has more; 1 where the
            chunk holds an added token that the other side spells.
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
    unreadable: Bool
    without_counterpart: Bool
    chunk: Int64
    chunk_teacher: Int64
    chunk_tokens: Int64
    level: Level = Level.CROSS


def lay_out(student_ids: Int32, tables: PairTables) -> Layout:
    """Encodes a rollout for the teacher.

    Raises:
        ValueError: the teacher has no token for some of the bytes.
    """
    student = tables.student
    special = np.array([t in student.specials for t in student_ids.tolist()], np.bool_)
    draft = _Draft(tables)
    for is_special, run in _runs(student_ids, special):
        if is_special:
            draft.add_special(run[0])
        else:
            draft.add_text(run)
    own_offsets = student_offsets(student_ids, student)
    teacher_ids = np.concatenate(draft.teacher_ids)
    teacher_offsets = draft.teacher_offsets(teacher_ids, own_offsets)
    assert teacher_offsets[-1] == own_offsets[-1] == draft.offset
    begin = own_offsets[:-1]
    common = np.intersect1d(own_offsets, teacher_offsets)
    chunk = np.searchsorted(common, begin, "right") - 1
    first_student = np.searchsorted(own_offsets, common)
    first_teacher = np.searchsorted(teacher_offsets, common)
    unreadable = _chunks_with(draft.unreadable_spans(teacher_offsets), common)[chunk]
    data = b"".join(draft.pieces)
    # Bytes that begin a character and do not end it are read one by one because of what follows
    # them: it must not know that either.
    for index in np.flatnonzero(unreadable[:-1] & ~unreadable[1:]).tolist():
        offset = int(begin[index + 1])
        unreadable[index + 1] = incomplete_tail(data[max(offset - 3, 0) : offset]) > 0
    chunk_tokens = np.maximum(np.diff(first_student), np.diff(first_teacher))
    chunk_tokens[chunk[student.is_spelt[student_ids]]] = 1
    spelt_by_student = teacher_offsets[:-1][tables.teacher.is_spelt[teacher_ids]]
    chunk_tokens[np.searchsorted(common, spelt_by_student, "right") - 1] = 1
    return Layout(
        data=data,
        student_ids=student_ids,
        student_offsets=own_offsets,
        teacher_ids=teacher_ids,
        teacher_offsets=teacher_offsets,
        sync=np.searchsorted(teacher_offsets, sync_offsets(begin, common, draft.boundaries)),
        special=special,
        canonical=np.concatenate(draft.canonical),
        unreadable=unreadable,
        without_counterpart=_chunks_with(draft.unmapped, common)[chunk],
        chunk=chunk,
        chunk_teacher=first_teacher,
        chunk_tokens=chunk_tokens,
    )


def _chunks_with(spans: Sequence[tuple[int, int]], common: Int64) -> Bool:
    """bool [C]: the chunks that a span (begin, end) reaches into."""
    found = np.zeros(len(common) - 1, np.bool_)
    for low, high in spans:
        first = np.searchsorted(common, low, "right") - 1
        found[first : np.searchsorted(common, high, "left")] = True
    return found


@dataclass
class _Draft:
    """A rollout as the teacher reads it, added run by run.

    Attributes:
        pieces: the bytes of each run.
        teacher_ids: int32, of each run.
        byte_by_byte: bool, of each run, as in ``Encoded``.
        mapped: for each teacher token, whether it is a special token's counterpart.
        canonical: bool, of each run, one entry for each student token.
        boundaries: (offset, settled from): both tokenizers begin a pre-token at the
            offset, whatever follows once the text up to "settled from" is there.
        unmapped: (begin, end) of special tokens without a counterpart.
        offset: bytes added so far.
    """

    tables: PairTables
    pieces: list[bytes] = field(default_factory=list)
    teacher_ids: list[Int32] = field(default_factory=list)
    byte_by_byte: list[Bool] = field(default_factory=list)
    mapped: list[bool] = field(default_factory=list)
    canonical: list[Bool] = field(default_factory=list)
    boundaries: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    unmapped: list[tuple[int, int]] = field(default_factory=list)
    offset: int = 0

    def add_text(self, run: Sequence[int]) -> None:
        """Ordinary student tokens."""
        student, teacher = self.tables.student, self.tables.teacher
        span = b"".join(student.token_bytes[token] for token in run)
        encoded, own = teacher.encoder.encode(span), student.encoder.encode(span)
        self.canonical.append(_canonical(run, own.ids, student))
        settled = settled_boundaries(span, [(encoded, teacher), (own, student)])
        settled = apart_from_added(settled, self.tables.added.begun_in(span))
        self.boundaries += [(self.offset + at, self.offset + from_) for at, from_ in settled]
        self.teacher_ids.append(encoded.ids)
        self.byte_by_byte.append(encoded.byte_by_byte)
        self.mapped += [False] * len(encoded.ids)
        self.pieces.append(span)
        self.offset += len(span)

    def add_special(self, token: int) -> None:
        """A special student token: its counterpart, else its text."""
        text = self.tables.student.specials[token].encode()
        counterpart = self.tables.special_to_teacher.get(token)
        if counterpart is None:
            ids = self.tables.teacher.encoder.encode(text).ids
            self.unmapped.append((self.offset, self.offset + len(text)))
        else:
            ids = np.array([counterpart], np.int32)
        self.teacher_ids.append(ids)
        self.mapped += [counterpart is not None] * len(ids)
        self.byte_by_byte.append(np.zeros(len(ids), np.bool_))
        self.pieces.append(text)
        self.offset += len(text)
        self.boundaries.append((self.offset, self.offset))
        self.canonical.append(np.ones(1, np.bool_))

    def teacher_offsets(self, teacher_ids: Int32, own_offsets: Int64) -> Int64:
        """int64 [m + 1]: bytes before each teacher token; ``own_offsets`` are the student's.

        A special token's counterpart takes the bytes of the student's token.
        """
        lengths = self.tables.teacher.lengths[teacher_ids]
        for index in np.flatnonzero(self.mapped).tolist():
            at = int(np.searchsorted(own_offsets, lengths[:index].sum(), "left"))
            lengths[index] = own_offsets[at + 1] - own_offsets[at]
        return np.concatenate([[0], np.cumsum(lengths)])

    def unreadable_spans(self, teacher_offsets: Int64) -> list[tuple[int, int]]:
        """(begin, end) of what the teacher reads byte by byte."""
        raw = np.flatnonzero(np.concatenate(self.byte_by_byte))
        return [(int(teacher_offsets[i]), int(teacher_offsets[i + 1])) for i in raw]


def _runs(ids: Int32, special: Bool) -> list[tuple[bool, list[int]]]:
    """(special, tokens): special tokens one by one, the ordinary ones between them together."""
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
    """int64 [n + 1]: bytes before each token; a special token has those of its text."""
    lengths = [
        len(student.specials[t].encode()) if t in student.specials else len(student.token_bytes[t])
        for t in ids.tolist()
    ]
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
