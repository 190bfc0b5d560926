"""Scores of a continuation in another tokenizer, out of the teacher's rows.

Where that cannot be done the continuation is NOT_REALIGNED and its detail is the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from teacher_proto.rows import Rows, Support, Values, WideRows, required
from teacher_proto.types import (
    Bool,
    ContinuationScores,
    Float32,
    Int32,
    Realignment,
    Status,
    UInt8,
)

from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.realigner import RealignedRows, Realigner
from teacher_server.realign.requests.messages import BLOCK_ENTRIES, RealignRequest
from teacher_server.realign.requests.planned import PlannedContinuation
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.masses import Entries, Settled, WalkResult
from teacher_server.realign.walk.rows import (
    NOT_WIDE,
    Float64,
    TeacherRows,
    teacher_rows,
    wide_entries_of,
)

Int64 = NDArray[np.int64]
# Below it, 1 - coverage is rounding and not mass.
LEAST_TAIL = 1e-6
NOTHING: Int64 = np.zeros(0, np.int64)
NOTHING_SETTLED = Settled(NOTHING, NOTHING, np.zeros(0), NOTHING)
NO_PROBABILITY_DETAIL = "the teacher gives some of its text no probability at all"


@dataclass(frozen=True)
class RealignedContinuation:
    """One continuation's scores, and of what they were made what may be needed once more.

    Attributes:
        wanted: int64, ascending: teacher tokens whose context-free rows would settle more.
        rows: the teacher's; None where nothing more is asked for.
        walked: what the walk has left open, without what it has settled; None where no rows
            after paths are asked for.
    """

    scores: ContinuationScores
    wanted: Int64 = field(default_factory=lambda: NOTHING)
    rows: TeacherRows | None = None
    walked: WalkResult | None = None


def not_finite() -> ContinuationScores:
    """The teacher's rows are not finite."""
    return ContinuationScores(status=Status.NON_FINITE)


def not_realigned(detail: str) -> ContinuationScores:
    """The continuation cannot be read in the teacher's tokens; ``detail`` gives the reason."""
    return ContinuationScores(status=Status.NOT_REALIGNED, detail=detail)


def realign_engine_rows(
    planned: PlannedContinuation,
    rows: Rows | None,
    realigner: Realigner,
    request: RealignRequest,
    context_free: ContextFreeRows | None,
) -> RealignedContinuation:
    """One continuation's scores out of the engine's rows; None: they are not finite."""
    if rows is None:
        return RealignedContinuation(not_finite())
    sampled = required(rows.sampled, "sampled token")
    if not sampled.valid.all():
        return RealignedContinuation(not_realigned(NO_PROBABILITY_DETAIL))
    read = rows_of(planned, rows, realigner.tables)
    return realign_rows(planned, read, realigner, request, context_free)


def rows_of(planned: PlannedContinuation, rows: Rows, tables: PairTables) -> TeacherRows:
    """The engine's rows of a continuation, with their best ids and sampled tokens, as the walk
    reads them."""
    support = required(rows.support, "support")
    sampled = required(rows.sampled, "sampled token")
    count, width = len(planned.teacher_ids), support.ids.shape[1]
    ids, values = np.full((count, width), -1, np.int32), np.zeros((count, width), np.float32)
    own = np.zeros(count, np.float32)
    ids[planned.needed], values[planned.needed] = support.ids, support.log_probs
    own[planned.needed] = sampled.values
    wide = NOT_WIDE
    if isinstance(rows, WideRows) and len(rows.wide):
        at = planned.needed[rows.wide].astype(np.int64)
        listed = np.column_stack([ids[at], planned.teacher_ids[at]])
        wide = wide_entries_of(tables.wide_ids, at, rows.wide_log_probs, listed)
    return teacher_rows(planned.teacher_ids, ids, values, own, wide)


def realign_rows(
    planned: PlannedContinuation,
    rows: TeacherRows,
    realigner: Realigner,
    request: RealignRequest,
    context_free: ContextFreeRows | None,
) -> RealignedContinuation:
    """One continuation's scores out of the teacher's rows as the walk reads them."""
    layout = required(planned.layout, "layout")
    continuation = planned.continuation
    limit = request.student_vocabulary_size
    parts: list[_Part] = []
    for block in position_blocks(len(continuation.positions), rows.most_entries):
        positions = continuation.positions[block].astype(np.int64)
        asked = None
        if continuation.explicit_ids is not None:
            asked = continuation.explicit_ids[block]
        # Every id that the rows can certify, to look the explicit ones up among them.
        more = 0 if asked is None else max(rows.ids.shape[1] - request.top_k, 0)
        found = realigner.realign(
            layout,
            positions,
            rows,
            top_k=request.top_k,
            more=more,
            coarse=request.coarse,
            limit=limit,
            context_free=context_free,
        )
        own = continuation.token_ids[positions]
        keep = bool(request.extra_rounds)
        if keep and rows.any_wide:
            few = _few_open(found.walked, realigner.tables.is_wide, rows.ids.shape[1])
            found = replace(found, walked=replace(found.walked, open=few))
        parts.append(_part(found, asked, own, request.top_k, block.start, keep_open=keep))
        chunk_log_likelihood = found.chunk_log_likelihood
        del found
    chunk_index = np.concatenate([part.chunk_index for part in parts])
    chunks, chunk_index = np.unique(chunk_index, return_inverse=True)
    explicit = None
    if continuation.explicit_ids is not None:
        explicit = np.concatenate([required(part.explicit, "explicit") for part in parts])
    scores = _scores(
        request,
        Support(
            np.concatenate([part.support.ids for part in parts]),
            np.concatenate([part.support.log_probs for part in parts]),
            np.concatenate([part.support.counts for part in parts]),
        ),
        np.concatenate([part.sampled for part in parts]),
        explicit,
        Realignment(
            coverage=np.zeros(0, np.float32),
            open_mass=np.concatenate([part.open_mass for part in parts]),
            lost_mass=np.concatenate([part.lost_mass for part in parts]),
            position_class=np.concatenate([part.position_class for part in parts]),
            chunk_index=chunk_index.astype(np.int32),
            chunk_log_likelihood=chunk_log_likelihood[chunks],
            mask_reason=np.concatenate([part.mask_reason for part in parts]),
        ),
    )
    wanted = NOTHING
    if context_free is not None:
        wanted = np.unique(np.concatenate([part.wanted for part in parts]))
    kept = rows if len(wanted) or request.extra_rounds else None
    opened = [part.opened for part in parts if part.opened is not None]
    return RealignedContinuation(scores, wanted, kept, _joined(opened) if opened else None)


def position_blocks(count: int, width: int) -> list[slice]:
    """Positions that are realigned at once, of ``count`` whose rows have ``width`` ids at most:
    in most requests all."""
    size = max(1, BLOCK_ENTRIES // max(1, width))
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


@dataclass(frozen=True)
class _Part:
    """Some positions of a continuation, as they are returned.

    Attributes:
        explicit: float64 [n, E], -inf where it is not known; None where none was asked for.
        opened: what the walk has left open; None where it is not needed.
    """

    support: Support
    sampled: Float64
    explicit: Float64 | None
    open_mass: Float32
    lost_mass: Float32
    position_class: UInt8
    mask_reason: UInt8
    chunk_index: Int32
    wanted: Int64
    opened: WalkResult | None


def _part(
    found: RealignedRows,
    asked: Int32 | None,
    own: Int32,
    top_k: int,
    start: int,
    *,
    keep_open: bool,
) -> _Part:
    """What is returned of positions from the continuation's ``start``-th on.

    Args:
        asked: int32 [n, E] or None, the explicit ids.
        own: int32 [n], the rollout's own tokens.
    """
    certified, walked = found.certified, found.walked
    explicit = None
    if asked is not None:
        explicit = _look_up(asked, certified.ids, certified.log_probs)
        explicit = np.where(asked == own[:, None], certified.sampled[:, None], explicit)
    opened = None
    if keep_open:
        left = replace(walked.open, position=walked.open.position + start)
        opened = replace(walked, settled=NOTHING_SETTLED, open=left)
    return _Part(
        support=Support(
            np.ascontiguousarray(certified.ids[:, :top_k]),
            np.ascontiguousarray(certified.log_probs[:, :top_k]),
            np.minimum(certified.counts, top_k).astype(np.int32),
        ),
        sampled=certified.sampled,
        explicit=explicit,
        open_mass=_probability(certified.open_mass),
        lost_mass=_probability(certified.lost_mass),
        position_class=found.position_class,
        mask_reason=found.mask_reason,
        chunk_index=found.chunk_index,
        wanted=walked.wanted,
        opened=opened,
    )


def _few_open(walked: WalkResult, is_wide: Bool, most: int) -> Entries:
    """What the walk has left open, with those ids of wide rows together at each position that
    have little of it by themselves: of the others a position has ``most`` at most. After one of
    these no row would be asked for by so much as ``LEAST_GAIN`` of this position's need.

    Args:
        is_wide: bool [V_T], of the teacher's tokens.
    """
    left, count = walked.open, len(walked.total)
    little = (left.token >= 0) & is_wide[left.token]
    opened = np.bincount(left.position, left.mass, count)
    little &= left.mass * most < opened[left.position]
    sums = np.zeros(count)
    np.add.at(sums, left.position[little], left.mass[little])
    place = np.flatnonzero(sums > 0)
    none = np.full(len(place), -1)
    together = Entries(place, none, sums[place], none, none, none, none)
    names = [one.name for one in fields(Entries)]
    each = {name: getattr(left, name)[~little] for name in names}
    return Entries(**{n: np.concatenate([each[n], getattr(together, n)]) for n in names})


def _joined(parts: list[WalkResult]) -> WalkResult:
    """What the walks of all positions have left open; nothing is settled."""

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    names = [one.name for one in fields(Entries)]
    opened = {n: np.concatenate([getattr(part.open, n) for part in parts]) for n in names}
    return WalkResult(
        settled=NOTHING_SETTLED,
        open=Entries(**opened),
        lost=joined("lost"),
        total=joined("total"),
        tail=joined("tail"),
        floor=joined("floor"),
        listed=joined("listed"),
        wide=joined("wide"),
        behind_space=joined("behind_space"),
        wanted=joined("wanted"),
    )


def _scores(
    request: RealignRequest,
    support: Support,
    sampled: Float64,
    explicit: Float64 | None,
    block: Realignment,
) -> ContinuationScores:
    """The parts that were asked for.

    Args:
        sampled: float64 [n]; -inf where it is not known.
        explicit: float64 [n, E]; -inf where it is not known.
        block: without its coverage.
    """
    probabilities = np.exp(support.log_probs.astype(np.float64))
    coverage = np.where(support.valid, probabilities, 0.0).sum(1)
    rest = 1.0 - coverage
    tail_valid = rest > LEAST_TAIL
    tail = np.log(np.where(tail_valid, rest, 1.0)).astype(np.float32)
    rows = Rows(
        support=support if request.top_k else None,
        sampled=_values(sampled) if request.sampled else None,
        log_tail=Values(tail, tail_valid) if request.log_tail else None,
        explicit=None if explicit is None else _values(explicit),
    )
    return ContinuationScores(
        rows=rows, realignment=replace(block, coverage=_probability(coverage))
    )


def _values(log_probs: Float64) -> Values:
    """Log-probabilities of which those that are -inf are not known."""
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
    wanted_keys = line + np.maximum(asked, 0)
    at = np.minimum(np.searchsorted(keys, wanted_keys), len(keys) - 1)
    found: Float64 = np.where((keys[at] == wanted_keys) & (asked >= 0), values[at], -np.inf)
    return found
