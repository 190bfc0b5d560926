"""A reply against its request: what breaks the contract never reaches a loss.

Every check is one or two passes over whole arrays. Only when a pass fails are
the rows looked at again, to name the first bad one. The order among equal
log-probabilities is not checked: rounding to float32 may create ties.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from teacher_proto.errors import ContractMismatchError, PoisonedReplyError
from teacher_proto.rows import EXPLICIT, LOG_TAIL, SAMPLED, Rows, Support, Values, required
from teacher_proto.types import (
    CLASSES_WITH_REASON,
    Bool,
    Continuation,
    ContinuationScores,
    PositionClass,
    Realignment,
    ScoreReply,
    ScoreRequest,
    Status,
    TeacherInfo,
)

# Rounding lets a log-probability of a sure token end this far above 0 (nats).
LARGEST_LOG_PROB = 1e-4
# Rounding lets a mass end this far above 1, or mass and tail this far from 1.
MASS_TOLERANCE = 1e-3
# The same token's log-probability by two ways through the same logits (nats).
AGREEMENT = 1e-2
MASSES = ("coverage", "open_mass", "lost_mass")
FIX = "the teacher breaks the contract: check its version and report it to whoever runs it"


def check_reply(request: ScoreRequest, reply: ScoreReply, info: TeacherInfo | None = None) -> None:
    """Passes when the reply keeps the contract (docs/contract.md).

    Args:
        request: what was asked.
        reply: what came back.
        info: the teacher as it described itself; its identity and vocabulary are
            then checked too.

    Raises:
        ContractMismatchError: the teacher is another one than the request or
            ``info`` relies on.
        PoisonedReplyError: anything else; names continuation, row and field.
    """
    if reply.request_id != request.request_id:
        _poisoned(f"is {reply.request_id!r}, asked was {request.request_id!r}", "request_id")
    _check_identity(request, reply, info)
    if len(reply.results) != len(request.continuations):
        _poisoned(
            f"has {len(reply.results)} continuations, asked were {len(request.continuations)}",
            "results",
        )
    id_limit = _id_limit(request, info)
    pairs = zip(request.continuations, reply.results, strict=True)
    for index, (continuation, scores) in enumerate(pairs):
        where = f"results[{index}]"
        _check_parts(request, continuation, scores, where)
        if scores.status is Status.OK:
            _check_scores(request, continuation, scores, id_limit, where)
            _check_realignment(request, continuation, scores, info, where)


def _check_identity(request: ScoreRequest, reply: ScoreReply, info: TeacherInfo | None) -> None:
    digest = reply.identity.digest
    expected = request.expected_identity or (info.identity.digest if info else "")
    if (info is not None and digest != info.identity.digest) or (expected and digest != expected):
        raise ContractMismatchError(
            f"teacher {request.teacher!r} is now {digest or 'nameless'}, expected was {expected}",
            where="identity",
            fix="finish the run against the teacher it began with, or start a new run",
            reason="IDENTITY_CHANGED",
        )


def _id_limit(request: ScoreRequest, info: TeacherInfo | None) -> int:
    """Ids of a support lie below it."""
    limits = [2**31]
    if request.student_vocabulary_size is not None:
        limits.append(request.student_vocabulary_size)
    if info is not None and request.tokenizer_hash == info.identity.tokenizer_hash:
        limits.append(info.vocabulary_size)
    return min(limits)


def _check_parts(
    request: ScoreRequest, continuation: Continuation, scores: ContinuationScores, where: str
) -> None:
    """Every part is there when asked for, not there when not, and has its shape."""
    arrays = scores.rows.arrays()
    ok = scores.status is Status.OK
    rows = len(continuation.selected_positions) if ok else 0
    explicit = continuation.explicit_ids
    support = (rows, request.top_k) if ok and request.top_k > 0 else None
    counts = (rows,) if support else None
    sampled = (rows,) if ok and request.returns.sampled else None
    tail = (rows,) if ok and request.returns.log_tail else None
    pairs = explicit.shape if ok and explicit is not None else None
    shapes = {
        **dict.fromkeys(("top_ids", "top_log_probs"), support),
        "valid_counts": counts,
        **dict.fromkeys(SAMPLED, sampled),
        **dict.fromkeys(LOG_TAIL, tail),
        **dict.fromkeys(EXPLICIT, pairs),
    }
    for name, shape in shapes.items():
        values = arrays.get(name)
        if values is None and shape is not None:
            _poisoned("is missing though it was asked for", f"{where}.{name}")
        if values is not None and shape is None:
            reason = "was not asked for" if ok else f"is there with status {scores.status.name}"
            _poisoned(reason, f"{where}.{name}")
        if values is not None and values.shape != shape:
            _poisoned(f"has shape {values.shape}, must have {shape}", f"{where}.{name}")
    if not ok and scores.realignment is not None:
        _poisoned(f"is there with status {scores.status.name}", f"{where}.realignment")


def _check_scores(
    request: ScoreRequest,
    continuation: Continuation,
    scores: ContinuationScores,
    id_limit: int,
    where: str,
) -> None:
    rows = scores.rows
    mass: NDArray[np.float64] | None = None
    if rows.support is not None:
        mass = _check_support(rows.support, id_limit, where)
    if rows.sampled is not None:
        _check_values(rows.sampled, f"{where}.sampled_log_probs")
        if rows.support is not None and scores.realignment is None:
            _check_agreement(continuation, rows.support, rows.sampled, where)
    if rows.log_tail is not None:
        _check_values(rows.log_tail, f"{where}.log_tail")
        if mass is not None:
            tail = np.exp(rows.log_tail.values, dtype=np.float64)
            tail = np.where(rows.log_tail.valid, tail, 0.0)
            bad = np.abs(mass + tail - 1.0) > MASS_TOLERANCE
            _refuse_rows(bad, f"{where}.log_tail", "and the support's mass do not add up to 1")
    if rows.explicit is not None:
        name = f"{where}.explicit_log_probs"
        _check_values(rows.explicit, name)
        asked = required(continuation.explicit_ids, "explicit_ids")
        unasked = rows.explicit.valid & (asked < 0)
        _refuse_rows(unasked, name, "is valid in a slot that asked for nothing")


def _check_support(support: Support, id_limit: int, where: str) -> NDArray[np.float64]:
    """float64 [R]: mass of each row's support."""
    ids, log_probs, counts = support.ids, support.log_probs, support.counts
    rows, width = ids.shape
    if rows == 0:
        return np.zeros(0)
    bad = (counts < 0) | (counts > width)
    _refuse_rows(bad, f"{where}.valid_counts", f"is not in 0..{width}")
    full = bool((counts == width).all())
    valid: Bool = np.broadcast_to(np.True_, ids.shape)
    if not full:
        valid = support.valid
        _refuse_rows(~valid & (ids != -1), f"{where}.top_ids", "is not -1 after the valid slots")
        padding = ~valid & (log_probs != 0)
        _refuse_rows(padding, f"{where}.top_log_probs", "is not 0 after the valid slots")
        _check_values(Values(log_probs, valid), f"{where}.top_log_probs")
    elif not (log_probs[:, -1].min() > -np.inf and log_probs[:, 0].max() <= LARGEST_LOG_PROB):
        # With the order below, first and last slot bound every other.
        _check_values(Values(log_probs, valid), f"{where}.top_log_probs")
    descending = log_probs[:, 1:] <= log_probs[:, :-1]
    if not full:
        descending |= ~valid[:, 1:]
    if not descending.all():
        _check_values(Values(log_probs, valid), f"{where}.top_log_probs")
        unordered = np.pad(~descending, ((0, 0), (1, 0)))
        _refuse_rows(unordered, f"{where}.top_log_probs", "is above the slot before it")
    outside = ids.view(np.uint32) >= id_limit
    if not full:
        outside &= valid
    _refuse_rows(outside, f"{where}.top_ids", f"is not in 0..{id_limit - 1}")
    ordered = np.sort(ids, axis=1)
    twins = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    _refuse_rows(twins.any(axis=1), f"{where}.top_ids", "holds an id twice")
    weights = np.exp(log_probs)
    if not full:
        weights *= valid
    mass: NDArray[np.float64] = weights.sum(axis=1, dtype=np.float64)
    _refuse_rows(mass > 1 + MASS_TOLERANCE, f"{where}.top_log_probs", "add up to more than 1")
    return mass


def _check_values(part: Values, where: str) -> None:
    """Valid slots are log-probabilities, the others 0."""
    values, valid = part.values, part.valid
    _refuse_rows(np.isnan(values) & valid, where, "is NaN")
    _refuse_rows(np.isinf(values) & valid, where, "is infinite")
    _refuse_rows(valid & (values > LARGEST_LOG_PROB), where, "is a log-probability above 0")
    _refuse_rows(~valid & (values != 0), where, "is not 0 in a slot that is not valid")


def _check_agreement(continuation: Continuation, support: Support, own: Values, where: str) -> None:
    """A sampled token inside the support has the same log-probability there: rows
    that are off by one do not pass."""
    sampled = continuation.token_ids[continuation.selected_positions]
    row, slot = np.nonzero(support.ids == sampled[:, None])
    known = own.valid[row]
    gap = np.abs(support.log_probs[row, slot] - own.values[row])
    bad = np.zeros(len(sampled), np.bool_)
    bad[row[known & (gap > AGREEMENT)]] = True
    _refuse_rows(
        bad, f"{where}.sampled_log_probs", "differs from the same token's value in the support"
    )


def _check_realignment(
    request: ScoreRequest,
    continuation: Continuation,
    scores: ContinuationScores,
    info: TeacherInfo | None,
    where: str,
) -> None:
    block, result = scores.realignment, where
    where = f"{where}.realignment"
    if block is None:
        foreign = info is not None and request.tokenizer_hash != info.identity.tokenizer_hash
        if request.returns.realignment and foreign:
            _poisoned("is missing though it was asked for", where)
        return
    if not request.returns.realignment:
        _poisoned("was not asked for", where)
    rows = len(continuation.selected_positions)
    for name in (*MASSES, "position_class", "chunk_index", "mask_reason"):
        values = getattr(block, name)
        if values is None and name == "mask_reason":  # of an older server
            continue
        if values.shape != (rows,):
            _poisoned(f"has shape {values.shape}, must have ({rows},)", f"{where}.{name}")
    for name in MASSES:
        values = getattr(block, name)
        bad = ~((values >= -MASS_TOLERANCE) & (values <= 1 + MASS_TOLERANCE))
        _refuse_rows(bad, f"{where}.{name}", "is not a probability")
    chunks = block.chunk_log_likelihood
    outside = (block.chunk_index < 0) | (block.chunk_index >= len(chunks))
    _refuse_rows(outside, f"{where}.chunk_index", f"is not in 0..{len(chunks) - 1}")
    every = np.ones(len(chunks), np.bool_)
    _check_values(Values(chunks, every), f"{where}.chunk_log_likelihood")
    _check_coarse(request, scores.rows, block, result)


def _check_coarse(request: ScoreRequest, rows: Rows, block: Realignment, where: str) -> None:
    """Coarse rows are there only when asked for, and have ids and a tail; a row has a reason
    where it is masked or coarse."""
    coarse = block.position_class == PositionClass.COARSE
    if not request.returns.coarse:
        name = f"{where}.realignment.position_class"
        _refuse_rows(coarse, name, "is COARSE, which was not asked for")
    if rows.support is not None:
        empty = coarse & (rows.support.counts < 1)
        _refuse_rows(empty, f"{where}.valid_counts", "is 0 in a coarse row")
    if rows.log_tail is not None:
        untold = coarse & ~rows.log_tail.valid
        _refuse_rows(untold, f"{where}.log_tail", "is not valid in a coarse row")
    if block.mask_reason is not None:
        told = block.mask_reason != 0
        wanted = np.isin(block.position_class, CLASSES_WITH_REASON)
        name = f"{where}.realignment.mask_reason"
        _refuse_rows(wanted & ~told, name, "is 0 where the row is masked or coarse")
        _refuse_rows(told & ~wanted, name, "is not 0 where the row is neither masked nor coarse")


def _refuse_rows(bad: NDArray[Any], where: str, what: str) -> None:
    if bad.any():
        place = ", ".join(str(index) for index in np.argwhere(bad)[0])
        _poisoned(what, f"{where}[{place}]")


def _poisoned(what: str, where: str) -> NoReturn:
    raise PoisonedReplyError(what, where=where, fix=FIX)
