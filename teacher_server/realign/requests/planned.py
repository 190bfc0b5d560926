"""What the teacher reads of a request in another tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Int32

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.realigner import Realigner
from teacher_server.realign.requests.messages import AskedContinuation, Plan, RealignRequest

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class PlannedContinuation:
    """One continuation as the teacher reads it.

    Attributes:
        teacher_ids: int32 [m]; empty when there is a ``problem``.
        needed: int32, ascending: the teacher rows to ask for.
        layout: the rollout in both tokenizers; None when there is a problem.
        problem: why the teacher cannot read the continuation; empty when it can.
    """

    continuation: AskedContinuation
    teacher_ids: Int32
    needed: Int32
    layout: Layout | None = None
    problem: str = ""


def plan_continuation(
    continuation: AskedContinuation, realigner: Realigner, logits: int
) -> PlannedContinuation:
    """Lays a continuation out in the teacher's tokens, of which the model has ``logits``."""
    student = realigner.tables.student
    ids = continuation.token_ids
    nothing = np.zeros(0, np.int32)
    missing = np.flatnonzero(~has_token(student)[np.minimum(ids, student.size)])
    if len(missing):
        first = int(missing[0])
        problem = f"id {ids[first]} at index {first} has no token in the student's tokenizer"
        return PlannedContinuation(continuation, nothing, nothing, problem=problem)
    try:
        layout = realigner.lay_out(ids)
    except ValueError as error:
        return PlannedContinuation(
            continuation, nothing, nothing, problem=f"the teacher cannot read it: {error}"
        )
    beyond = layout.teacher_ids[layout.teacher_ids >= logits]
    if len(beyond):
        problem = f"the teacher's model has no embedding for its token {beyond[0]}"
        return PlannedContinuation(continuation, nothing, nothing, problem=problem)
    positions = continuation.positions.astype(np.int64)
    needed = needed_rows(layout, positions, realigner.tables.walk_depth)
    return PlannedContinuation(continuation, layout.teacher_ids, needed, layout)


def continuation_bytes(request: RealignRequest, student: Vocabulary) -> int:
    """Bytes of the text of all continuations; ids that no token has count as 0."""
    lengths = np.append(student.lengths, 0)
    for token, text in student.specials.items():
        lengths[token] = len(text.encode())
    return sum(
        int(lengths[np.minimum(continuation.token_ids, student.size)].sum())
        for continuation in request.continuations
    )


def has_token(student: Vocabulary) -> Bool:
    """bool [V_S + 1]: the last one stands for every id above."""
    there = np.append(student.ordinary, False)
    there[list(student.specials)] = True
    return there


def needed_rows(layout: Layout, positions: Int64, depth: int) -> Int32:
    """int32, ascending: the teacher rows that the walk of these positions can look at, which
    follows a path over ``depth`` rows.

    They are all rows up to the last one of the positions and of their chunks, since what
    the rollout has shown earlier counts too.
    """
    begin = np.searchsorted(layout.teacher_offsets, layout.student_offsets[positions])
    last = max(
        int(begin.max()) + depth + 2,
        int(layout.chunk_teacher[layout.chunk[positions] + 1].max()),
    )
    return np.arange(min(last, len(layout.teacher_ids)), dtype=np.int32)


def plan_of(planned: list[PlannedContinuation], limit: int, wide_ids: Int32) -> Plan:
    """
    Args:
        wide_ids: as ``PairTables`` has them. No row is wide where some are not below ``limit``.
    """
    known = bool((wide_ids < limit).all())
    return Plan(
        lengths=tuple(len(one.teacher_ids) for one in planned),
        needed=tuple(len(one.needed) for one in planned),
        problems=tuple(one.problem for one in planned),
        limit=limit,
        wide_ids=tuple(wide_ids.tolist()) if known else (),
    )
