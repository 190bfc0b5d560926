"""Pairs that differ in added tokens only: ids stay, special tokens are looked up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Float32, Int32

from teacher_server.realign.rows import Float64
from teacher_server.realign.tables import PairTables
from teacher_server.realign.vocabulary import Vocabulary

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Remap:
    """Attributes:
    to_teacher: int64 [V_S], the teacher's id of a student's; -1 where none.
    to_student: int64 [V_T], the other way; several teacher's ids may be one student's.
    columns: int64 [X], teacher's ids whose mass is asked for by itself: those that
        have another id on the student's side, and those that share it.
    targets: int64 [X], their student's ids.
    """

    to_teacher: Int64
    to_student: Int64
    columns: Int64
    targets: Int64

    @property
    def elsewhere(self) -> int:
        """Teacher's ids that a row may list and that are not the student's own id."""
        return int((self.to_student != np.arange(len(self.to_student))).sum())


@dataclass(frozen=True)
class RemappedRows:
    """n rows in student ids; log-probabilities are -inf where there is nothing.

    ``ids`` [n, K] holds -1, ``log_probs`` 0 from ``counts`` on.
    """

    ids: Int32
    log_probs: Float32
    counts: Int32
    sampled: Float64
    explicit: Float64 | None
    lost_mass: Float64


def make_remap(tables: PairTables) -> Remap:
    """The ids of a pair whose ordinary tokens are equal."""
    student, teacher = tables.student, tables.teacher
    theirs = {_text(teacher, t): t for t in range(teacher.size - 1, -1, -1) if _is(teacher, t)}
    mine = {_text(student, s): s for s in range(student.size - 1, -1, -1) if _is(student, s)}
    to_teacher = np.full(student.size, -1, np.int64)
    shared = np.flatnonzero(student.ordinary)
    to_teacher[shared] = shared
    for token, text in student.specials.items():
        found = theirs.get(text.encode(), tables.special_to_teacher.get(token))
        to_teacher[token] = -1 if found is None else found
    to_student = np.full(teacher.size, -1, np.int64)
    shared = np.flatnonzero(teacher.ordinary)
    to_student[shared] = shared
    for token, text in teacher.specials.items():
        found = mine.get(text.encode())
        to_student[token] = tables.special_to_student[token] if found is None else found
    moved = (to_student >= 0) & (to_student != np.arange(teacher.size))
    columns = np.flatnonzero(moved | np.isin(to_student, to_student[moved]))
    return Remap(to_teacher, to_student, columns, to_student[columns])


def _is(vocabulary: Vocabulary, token: int) -> bool:
    return token in vocabulary.specials or bool(vocabulary.token_bytes[token])


def _text(vocabulary: Vocabulary, token: int) -> bytes:
    special = vocabulary.specials.get(token)
    return vocabulary.token_bytes[token] if special is None else special.encode()


def remap_rows(
    remap: Remap,
    top_ids: Int32,
    top_log_probs: Float32,
    columns: Float64,
    sampled_ids: Int32,
    sampled: Float64,
    explicit_ids: Int32 | None,
    explicit: Float64 | None,
    *,
    top_k: int,
    limit: int,
) -> RemappedRows:
    """Rows of the teacher in the student's ids.

    Args:
        top_ids, top_log_probs: [n, M], the teacher's best; -1 in empty slots.
        columns: float64 [n, X], log-probabilities of ``remap.columns``; -inf allowed.
        sampled_ids: int32 [n], student's ids; ``sampled`` the log-probability of their
            own teacher's ids, explicit ids likewise [n, E].
        limit: only ids below it enter a support.
    """
    count = len(top_ids)
    groups, member = np.unique(remap.targets, return_inverse=True)
    summed = np.full((count, len(groups)), -np.inf)
    for column, group in enumerate(member.tolist()):
        summed[:, group] = np.logaddexp(summed[:, group], columns[:, column])
    known = np.maximum(top_ids, 0)
    target = np.where(top_ids >= 0, remap.to_student[known], -1)
    listed = top_ids >= 0
    lost = np.where(listed & (target < 0), np.exp(top_log_probs.astype(np.float64)), 0.0).sum(1)
    keep = (target == known) & ~np.isin(known, groups) & (target < limit)
    usable = np.broadcast_to(groups < limit, summed.shape)
    ids = np.column_stack([target, np.broadcast_to(groups, summed.shape)]).astype(np.int64)
    values = np.column_stack(
        [np.where(keep, top_log_probs, -np.inf), np.where(usable, summed, -np.inf)]
    )
    order = np.lexsort((ids, -values), axis=1)[:, :top_k]
    ids, values = np.take_along_axis(ids, order, 1), np.take_along_axis(values, order, 1)
    there: Bool = values > -np.inf
    missing = top_k - ids.shape[1]
    padding = ((0, 0), (0, missing))
    return RemappedRows(
        ids=np.pad(np.where(there, ids, -1), padding, constant_values=-1).astype(np.int32),
        log_probs=np.pad(np.where(there, values, 0.0), padding).astype(np.float32),
        counts=there.sum(1).astype(np.int32),
        sampled=_grouped(sampled_ids[:, None], sampled[:, None], groups, summed)[:, 0],
        explicit=(
            None
            if explicit_ids is None or explicit is None
            else _grouped(explicit_ids, explicit, groups, summed)
        ),
        lost_mass=lost,
    )


def _grouped(ids: Int32, values: Float64, groups: Int64, summed: Float64) -> Float64:
    """[n, E]: the group's sum where an id is one, else the id's own value."""
    if not len(groups):
        return values
    at = np.minimum(np.searchsorted(groups, ids), len(groups) - 1)
    result: Float64 = np.where(groups[at] == ids, np.take_along_axis(summed, at, 1), values)
    return result
