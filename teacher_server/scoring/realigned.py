"""A request in another tokenizer than the teacher's: the teacher's job, and its rows
carried over. Pure; ``realigned_path`` has the order of events.

A continuation is *planned* (what the teacher reads, which of its rows are needed),
asked for with the best M teacher ids a row, and *carried over*. Where that cannot be
done the continuation is NOT_REALIGNED and says why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from teacher_proto.rows import Rows, Support, Values, required
from teacher_proto.types import (
    Bool,
    Continuation,
    ContinuationScores,
    Float32,
    Int32,
    Realignment,
    ScoreRequest,
    SpecialRole,
    Status,
)

from teacher_server.engines.base import ScoredSpan
from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.realigner import RealignedRows, Realigner
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.rows import Float64, TeacherRows, teacher_rows, with_extra_rows
from teacher_server.realign.walk.walker import MAX_DEPTH, unsettled_paths

Int64 = NDArray[np.int64]
# Below it, 1 - coverage is rounding and not mass.
LEAST_TAIL = 1e-6
NON_FINITE_DETAIL = "the teacher's logits are not finite"


@dataclass(frozen=True)
class Planned:
    """One continuation as the teacher reads it.

    Attributes:
        teacher_ids: int32 [m]; empty when ``problem`` says why there are none.
        needed: int32, ascending: the teacher rows to ask for.
        layout: the rollout in both tokenizers; None with a problem.
    """

    continuation: Continuation
    teacher_ids: Int32
    needed: Int32
    layout: Layout | None = None
    problem: str = ""


@dataclass(frozen=True)
class Carried:
    """One continuation's scores, and for a layout what they came from."""

    scores: ContinuationScores
    rows: TeacherRows | None = None
    walked: RealignedRows | None = None


def best_of(top_k: int, explicit: int, limit: int) -> int:
    """M: teacher ids to ask for per row, so that K student ids come of them."""
    width = max(top_k, explicit)
    return min(max(2 * width, width + 64), limit)


def plan(continuation: Continuation, realigner: Realigner) -> Planned:
    """What the teacher reads for a continuation."""
    student = realigner.tables.student
    ids = continuation.token_ids
    nothing = np.zeros(0, np.int32)
    missing = np.flatnonzero(~has_token(student)[np.minimum(ids, student.size)])
    if len(missing):
        first = int(missing[0])
        problem = f"id {ids[first]} at index {first} has no token in the student's tokenizer"
        return Planned(continuation, nothing, nothing, problem=problem)
    positions = continuation.selected_positions
    try:
        layout = realigner.lay_out(ids)
    except ValueError as error:
        return Planned(
            continuation, nothing, nothing, problem=f"the teacher cannot read it: {error}"
        )
    needed = needed_rows(layout, positions.astype(np.int64))
    return Planned(continuation, layout.teacher_ids, needed, layout)


def text_bytes(request: ScoreRequest, student: Vocabulary) -> int:
    """Bytes of all continuations together; ids that no token has count nothing."""
    lengths = np.append(student.lengths, 0)
    for token, text in student.specials.items():
        lengths[token] = len(text.encode())
    return sum(
        int(lengths[np.minimum(segment.token_ids, student.size)].sum())
        for continuation in request.continuations
        for segment in continuation.segments
    )


def has_token(student: Vocabulary) -> Bool:
    """bool [V_S + 1]: the last one stands for every id above."""
    there = np.append(student.ordinary, False)
    there[list(student.specials)] = True
    return there


def needed_rows(layout: Layout, positions: Int64) -> Int32:
    """Teacher rows that the walk of these positions and their chunks can look at: all up
    to the last one, since what a rollout has shown before counts too."""
    begin = np.searchsorted(layout.teacher_offsets, layout.student_offsets[positions])
    last = max(
        int(begin.max()) + MAX_DEPTH + 2,
        int(layout.chunk_teacher[layout.chunk[positions] + 1].max()),
    )
    return np.arange(min(last, len(layout.teacher_ids)), dtype=np.int32)


def carry(
    planned: Planned,
    rows: Rows | None,
    realigner: Realigner,
    request: ScoreRequest,
    context_free: ContextFreeRows | None,
) -> Carried:
    """The engine's rows of one continuation in student ids."""
    if rows is None:
        return Carried(not_finite())
    support = required(rows.support, "support")
    sampled = required(rows.sampled, "sampled token")
    if not sampled.valid.all():
        return Carried(not_realigned("the teacher gives some of its text no probability at all"))
    count, width = len(planned.teacher_ids), support.ids.shape[1]
    ids, values = np.full((count, width), -1, np.int32), np.zeros((count, width), np.float32)
    own = np.zeros(count, np.float32)
    ids[planned.needed], values[planned.needed] = support.ids, support.log_probs
    own[planned.needed] = sampled.values
    read = teacher_rows(planned.teacher_ids, ids, values, own)
    return walk(planned, read, realigner, request, context_free)


def walk(
    planned: Planned,
    rows: TeacherRows,
    realigner: Realigner,
    request: ScoreRequest,
    context_free: ContextFreeRows | None,
) -> Carried:
    """``carry`` for rows in the form that the walk reads."""
    layout = required(planned.layout, "layout")
    continuation = planned.continuation
    positions = continuation.selected_positions.astype(np.int64)
    width = request.top_k
    if continuation.explicit_ids is not None:
        # Every id that the rows can certify, to look the explicit ones up among them.
        width = max(width, rows.ids.shape[1])
    limit = request.student_vocabulary_size
    found = realigner.realign(
        layout, positions, rows, top_k=width, limit=limit, context_free=context_free
    )
    certified = found.certified
    chunks, chunk_index = np.unique(found.chunk_index, return_inverse=True)
    explicit = None
    if continuation.explicit_ids is not None:
        sampled_ids = continuation.token_ids[positions]
        explicit = _look_up(continuation.explicit_ids, certified.ids, certified.log_probs)
        own = continuation.explicit_ids == sampled_ids[:, None]
        explicit = np.where(own, certified.sampled[:, None], explicit)
    support = Support(
        certified.ids[:, : request.top_k],
        certified.log_probs[:, : request.top_k],
        np.minimum(certified.counts, request.top_k).astype(np.int32),
    )
    scores = _scores(
        request,
        support,
        certified.sampled,
        explicit,
        Realignment(
            coverage=np.zeros(0, np.float32),
            open_mass=_probability(certified.open_mass),
            lost_mass=_probability(certified.lost_mass),
            position_class=found.position_class,
            chunk_index=chunk_index.astype(np.int32),
            chunk_log_likelihood=found.chunk_log_likelihood[chunks],
        ),
    )
    return Carried(scores, rows, found)


def wanted(carried: Carried) -> Int64:
    """Teacher tokens, ascending, whose context-free rows would tell more."""
    return np.zeros(0, np.int64) if carried.walked is None else carried.walked.walked.wanted


def context_free_prompt(teacher: Vocabulary) -> Int32:
    """What stands before a token alone: a beginning or an end of text, else a line's end.

    A model's row behind its very first token is like no other.
    """
    for role in (SpecialRole.BEGIN_OF_TEXT, SpecialRole.END_OF_TEXT):
        found = sorted(token for token, has in teacher.roles.items() if has is role)
        if found:
            return np.array(found[:1], np.int32)
    return teacher.encoder.encode(b"\n").ids[:1]


def context_free_sequence(token: int) -> ScoredSpan:
    """The row behind a token; the last id is never read."""
    return ScoredSpan(np.array([token, token], np.int32), np.array([1], np.int32))


def learn_context_free(
    tokens: Int64,
    rows: tuple[Rows | None, ...],
    realigner: Realigner,
    context_free: ContextFreeRows,
) -> None:
    """Adds the rows behind ``tokens`` [n]; one that is not finite leaves its token open."""
    finite = np.array([row is not None for row in rows], np.bool_)
    context_free.leave_open(tokens[~finite])
    found = [row for row in rows if row is not None]
    if not found:
        return
    support = required(Rows.concatenate(found).support, "support")
    log_probs = np.where(support.ids >= 0, support.log_probs.astype(np.float64), -np.inf)
    realigner.learn(context_free, tokens[finite], np.maximum(support.ids, 0), log_probs)


def open_paths(carried: Carried, most: int, least: float) -> list[tuple[int, int]]:
    """(row, teacher token) of at most ``most`` paths whose next row would settle most."""
    if carried.walked is None or carried.rows is None:
        return []
    walked = carried.walked.walked
    open_mass = np.bincount(walked.open.position, walked.open.mass, len(walked.total))
    shares = np.sort(open_mass / np.maximum(walked.total, 1e-300))[::-1]
    if len(shares) > most:
        least = max(least, float(shares[most]))
    known = carried.rows.extra_rows
    return [path for path in unsettled_paths(walked, least) if path not in known][:most]


def path_sequence(carried: Carried, planned: Planned, path: tuple[int, int]) -> ScoredSpan:
    """The one row after a path: the rollout up to where it leaves, and then the path."""
    row, token = path
    kept, tokens = required(carried.rows, "row").path(row)
    # The last id is never read: a row does not depend on its own token.
    ids = np.concatenate([planned.teacher_ids[:kept], [*tokens, token, 0]]).astype(np.int32)
    return ScoredSpan(ids, np.array([len(ids) - 1], np.int32))


def with_paths(
    carried: Carried, paths: list[tuple[int, int]], found: list[Rows | None]
) -> TeacherRows | None:
    """The rows with those after the paths; None when one of them is not finite."""
    finite = [rows for rows in found if rows is not None]
    if len(finite) < len(found):
        return None
    support = required(Rows.concatenate(finite).support, "support")
    return with_extra_rows(required(carried.rows, "row"), paths, support.ids, support.log_probs)


def not_finite() -> ContinuationScores:
    return ContinuationScores(status=Status.NON_FINITE, detail=NON_FINITE_DETAIL)


def not_realigned(detail: str) -> ContinuationScores:
    return ContinuationScores(status=Status.NOT_REALIGNED, detail=detail)


def _scores(
    request: ScoreRequest,
    support: Support,
    sampled: Float64,
    explicit: Float64 | None,
    block: Realignment,
) -> ContinuationScores:
    """What was asked for; ``sampled`` and ``explicit`` are -inf where they are not known."""
    probabilities = np.exp(support.log_probs.astype(np.float64))
    coverage = np.where(support.valid, probabilities, 0.0).sum(1)
    rest = 1.0 - coverage
    tail_valid = rest > LEAST_TAIL
    tail = np.log(np.where(tail_valid, rest, 1.0)).astype(np.float32)
    returns = request.returns
    rows = Rows(
        support=support if request.top_k else None,
        sampled=_values(sampled) if returns.sampled else None,
        log_tail=Values(tail, tail_valid) if returns.log_tail else None,
        explicit=None if explicit is None else _values(explicit),
    )
    return ContinuationScores(
        rows=rows, realignment=replace(block, coverage=_probability(coverage))
    )


def _values(log_probs: Float64) -> Values:
    """Of log-probabilities that are -inf where they are not known."""
    valid = log_probs > -np.inf
    return Values(np.where(valid, log_probs, 0.0).astype(np.float32), valid)


def _probability(mass: Float64) -> Float32:
    return np.clip(mass, 0.0, 1.0).astype(np.float32)


def _look_up(asked: Int32, ids: Int32, log_probs: Float32) -> Float64:
    """float64 [n, E]: the log-probability of an id among the row's; -inf where it is not."""
    span = 1 + int(max(ids.max(initial=0), asked.max(initial=0)))
    line = np.arange(len(ids), dtype=np.int64)[:, None] * span
    there = ids >= 0
    keys = (line + ids)[there]
    values = log_probs[there].astype(np.float64)
    order = np.argsort(keys)
    keys, values = keys[order], values[order]
    if not len(keys):
        return np.full(asked.shape, -np.inf)
    wanted = line + np.maximum(asked, 0)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found: Float64 = np.where((keys[at] == wanted) & (asked >= 0), values[at], -np.inf)
    return found
