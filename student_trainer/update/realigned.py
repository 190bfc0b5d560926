"""How a trainer uses rows that are realigned from another tokenizer
(docs/realignment.md): which of them give a loss, which metrics are logged, and what the
chunks add."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from teacher_proto.errors import PoisonedReplyError
from teacher_proto.rows import required
from teacher_proto.types import (
    CLASSES_WITH_REASON,
    Bool,
    ContinuationScores,
    Float32,
    MaskReason,
    PositionClass,
    Realignment,
    Status,
    UInt8,
)

from student_trainer.rollout.base import Rollout
from student_trainer.teacher.link import TeacherLink
from student_trainer.teacher.mask_reasons import EXPLAINED, OTHER, metric_of
from student_trainer.update.metrics import Means

# A step beyond one of these causes a warning (docs/training.md).
LOW_COVERAGE = 0.8
HIGH_MASKED = 0.1
MASSES = ("coverage", "open_mass", "lost_mass", "masked_share", "coarse_share", "failed_share")
NAMED_REASONS = 3


def refuse_not_realigned(scores: ContinuationScores) -> None:
    """Raises PoisonedReplyError when a teacher that shares the tokenizer could not realign."""
    if scores.status is Status.NOT_REALIGNED:
        raise PoisonedReplyError(
            f"the teacher shares the tokenizer and could not realign: {scores.detail}"
        )


def usable_rows(scores: ContinuationScores, rows: int, *, sampled: bool) -> Bool:
    """bool [n]: False where the teacher gives no usable row for the position.

    Args:
        scores: of every row of a response.
        rows: n.
        sampled: whether a row needs the log-probability of its sampled token.
    """
    if scores.status is Status.NOT_REALIGNED:
        return np.zeros(rows, np.bool_)
    block = scores.realignment
    if block is None:
        return np.ones(rows, np.bool_)
    known: Bool = block.position_class != PositionClass.MASKED
    if sampled:
        known = known & required(scores.rows.sampled, "sampled token").valid
    return known


def full_rows(block: Realignment) -> Bool:
    """bool [n]: rows whose ids are the teacher's most likely ones: neither masked nor coarse."""
    return ~np.isin(block.position_class, CLASSES_WITH_REASON)


def add_realignment(means: Means, scores: ContinuationScores, own: Bool) -> None:
    """Adds a response to the ``realign_*`` metrics: masses are means over the positions that
    are neither masked nor coarse, shares are of all positions.

    Args:
        own: bool [n], the positions that count: those that the student wrote.
    """
    rows = int(own.sum())
    not_realigned = scores.status is Status.NOT_REALIGNED
    means.add("realign_failed_share", float(not_realigned), 1)
    block = scores.realignment
    if block is None and not not_realigned:
        return
    classes = (
        np.full(rows, PositionClass.MASKED, np.uint8)
        if block is None
        else block.position_class[own]
    )
    for kind in PositionClass:
        name = f"realign_{kind.name.lower()}_share"
        means.add(name, float((classes == kind).sum()), rows)
    told = None if block is None or block.mask_reason is None else block.mask_reason[own]
    for name, count in reasons_of(classes, told).items():
        means.add(metric_of(name), float(count), rows)
    if block is None:
        return
    known = full_rows(block) & own
    coarse = own & (block.position_class == PositionClass.COARSE)
    for name in ("coverage", "open_mass", "lost_mass"):
        values = getattr(block, name)[known]
        means.add(f"realign_{name}", float(values.sum(dtype=np.float64)), len(values))
    rest = 1 - block.coverage[coarse].astype(np.float64)
    means.add("realign_coarse_rest", float(rest.sum()), len(rest))


def reasons_of(classes: UInt8, told: UInt8 | None) -> dict[str, int]:
    """How many positions are masked or coarse for each reason of ``EXPLAINED``.

    Args:
        classes: uint8 [n], of PositionClass.
        told: uint8 [n], of ``Realignment.mask_reason``; None where nothing is told.
    """
    with_reason = int(np.isin(classes, CLASSES_WITH_REASON).sum())
    found = {} if told is None else {r.name: int((told == r).sum()) for r in MaskReason}
    return {name: found.get(name, 0) for name in EXPLAINED} | {
        OTHER: with_reason - sum(found.values())
    }


def low_coverage(line: Mapping[str, object], teacher: str = "") -> str:
    """A warning when a step's rows are poorly realigned, with its metrics; else empty.

    Args:
        line: the step's metrics line.
        teacher: the name of the one whose rows are looked at, of several; else empty.
    """
    if teacher:
        end = f"/{teacher}"
        its = {key.removesuffix(end): value for key, value in line.items() if key.endswith(end)}
        line = {**its, "step": line["step"]}
    whose = f"the rows of teacher {teacher}" if teacher else "the teacher's rows"
    coverage, masked = line.get("realign_coverage"), line.get("realign_masked_share")
    low = isinstance(coverage, float) and coverage < LOW_COVERAGE
    high = isinstance(masked, float) and masked > HIGH_MASKED
    if not (low or high):
        return ""
    masses = ", ".join(
        f"{name} {value:.3f}"
        for name in MASSES
        if isinstance(value := line.get(f"realign_{name}"), float)
    )
    return (
        f"step {line['step']}: {whose} are poorly realigned to the student's tokens "
        f"({masses}{_main_reasons(line)}). "
        "Open mass is not settled by the tokenizers; what is neither covered, open nor lost is "
        "beyond loss.top_k or not certified (docs/realignment.md)"
    )


def _main_reasons(line: Mapping[str, object]) -> str:
    """The most frequent reasons of a step with their shares of all positions, after a
    semicolon; empty where there is none."""
    shares = {name: line.get(metric_of(name)) for name in EXPLAINED}
    found = {name: share for name, share in shares.items() if isinstance(share, float) and share}
    most = sorted(found, key=lambda name: -found[name])[:NAMED_REASONS]
    told = ", ".join(f"{name} {found[name]:.3f}" for name in most)
    return f"; masked or coarse: {told}" if told else ""


def describe_realigned(scores: ContinuationScores, teacher: TeacherLink) -> str:
    """The level of the pair and the coverage of one response, as half a sentence."""
    if scores.realignment is None:
        return f"level {teacher.level.name}, could not be realigned: {scores.detail}"
    known = full_rows(scores.realignment)
    if not known.any():
        return f"level {teacher.level.name}"
    coverage = float(scores.realignment.coverage[known].mean())
    open_mass = float(scores.realignment.open_mass[known].mean())
    return f"level {teacher.level.name}, coverage {coverage:.2f}, open {open_mass:.2f}"


def chunks_known(
    block: Realignment,
    excluded: Bool,
    open_ends: Sequence[int] | NDArray[np.int64],
    own: Bool | None = None,
) -> Bool:
    """bool [C]: the chunks whose likelihood is known on both sides.

    Three kinds are left out: a chunk with a token that is not the student's ``own`` (bool [n];
    None where all are); a chunk with a token that is both ``excluded`` (bool [n]) and
    masked, such as a special token without a counterpart; and a chunk that holds one of
    ``open_ends``, the last tokens of stretches of the student that no token ended, because their
    text would have continued (``Rollout.open_ends``).
    """
    count = len(block.chunk_log_likelihood)
    known = np.zeros(count, np.bool_)
    known[block.chunk_index] = True
    if own is not None:
        known[block.chunk_index[~own]] = False
    masked = block.position_class == PositionClass.MASKED
    known[block.chunk_index[masked & excluded]] = False
    known[block.chunk_index[np.asarray(open_ends, np.int64)]] = False
    return known


def chunk_advantages(
    scores: ContinuationScores, rollout: Rollout, excluded: Bool, terminators: Collection[int]
) -> tuple[Float32, Bool]:
    """The advantage of each position's chunk: log q(chunk) - log pi_old(chunk).

    Args:
        scores: of every row of the response.
        excluded: bool [n], see ``chunks_known``.
        terminators: the ids that end a response.

    Returns:
        float32 [n], nats, and bool [n], whether it is known.
    """
    block = scores.realignment
    if block is None:
        count = len(rollout.token_ids)
        return np.zeros(count, np.float32), np.zeros(count, np.bool_)
    chunk, theirs = block.chunk_index, block.chunk_log_likelihood
    own = np.bincount(chunk, rollout.log_probs.astype(np.float64), len(theirs))
    known = chunks_known(block, excluded, rollout.open_ends(terminators), rollout.own)
    return (theirs - own)[chunk].astype(np.float32), known[chunk]
