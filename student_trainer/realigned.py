"""What a trainer makes of rows that were carried over from another tokenizer
(docs/realignment.md): which of them give a loss, what is logged, what chunks tell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from teacher_proto.errors import PoisonedReplyError
from teacher_proto.types import Bool, ContinuationScores, Float32, PositionClass, Status

from student_trainer.metrics import Means
from student_trainer.rollout.base import Rollout

# A step beyond one of these is warned of (docs/training.md).
LOW_COVERAGE = 0.8
HIGH_MASKED = 0.1


def refuse_not_realigned(scores: ContinuationScores) -> None:
    """Raises PoisonedReplyError where a teacher that shares the tokenizer gave up."""
    if scores.status is Status.NOT_REALIGNED:
        raise PoisonedReplyError(
            f"the teacher shares the tokenizer and could not realign: {scores.detail}"
        )


def judged(scores: ContinuationScores, rows: int, *, sampled: bool) -> Bool:
    """bool [n]: False where the teacher has no verdict on the position.

    Args:
        scores: of every row of a response.
        rows: n.
        sampled: the verdict needed is on the sampled token, not a support.
    """
    if scores.status is Status.NOT_REALIGNED:
        return np.zeros(rows, np.bool_)
    block = scores.realignment
    if block is None:
        return np.ones(rows, np.bool_)
    known: Bool = block.position_class != PositionClass.MASKED
    if sampled:
        assert scores.sampled_valid is not None
        known = known & scores.sampled_valid
    return known


def add_figures(means: Means, scores: ContinuationScores, rows: int) -> None:
    """Adds a response's ``realign_*`` figures: masses over positions that are not
    masked, shares over all of them."""
    not_realigned = scores.status is Status.NOT_REALIGNED
    means.add("realign_failed_share", float(not_realigned), 1)
    block = scores.realignment
    if block is None and not not_realigned:
        return
    classes = (
        np.full(rows, PositionClass.MASKED, np.uint8) if block is None else block.position_class
    )
    for kind in PositionClass:
        name = f"realign_{kind.name.lower()}_share"
        means.add(name, float((classes == kind).sum()), rows)
    if block is None:
        return
    known = classes != PositionClass.MASKED
    for name in ("coverage", "open_mass", "lost_mass"):
        values = getattr(block, name)[known]
        means.add(f"realign_{name}", float(values.sum(dtype=np.float64)), len(values))


def low_coverage(line: Mapping[str, object]) -> str:
    """What is wrong with the realignment of a step, with its figures; empty when nothing is.

    Args:
        line: the step's metrics.
    """
    coverage, masked = line.get("realign_coverage"), line.get("realign_masked_share")
    low = isinstance(coverage, float) and coverage < LOW_COVERAGE
    high = isinstance(masked, float) and masked > HIGH_MASKED
    if not (low or high):
        return ""
    figures = ", ".join(
        f"{name} {value:.3f}"
        for name in ("coverage", "open_mass", "lost_mass", "masked_share", "failed_share")
        if isinstance(value := line.get(f"realign_{name}"), float)
    )
    return (
        f"step {line['step']}: the teacher's rows tell little in the student's tokens ({figures}). "
        "Open mass near 0 means that loss.top_k is small; else the two tokenizers do not fit "
        "this text (docs/realignment.md)"
    )


def chunk_advantages(
    scores: ContinuationScores, rollout: Rollout, ordinary: Bool
) -> tuple[Float32, Bool]:
    """What a position's chunk says about it: log q(chunk) - log pi_old(chunk).

    Args:
        scores: of every row of the response.
        ordinary: bool [n], False where a token's likelihood is not comparable (the
            settings mask it, or it is special); its whole chunk is left out.

    Returns:
        float32 [n] nats and bool [n], where it is known. A response that was cut ends
        in a chunk whose text would have gone on, which is left out too.
    """
    count = len(rollout.token_ids)
    block = scores.realignment
    if block is None:
        return np.zeros(count, np.float32), np.zeros(count, np.bool_)
    chunk = block.chunk_index
    chunks = len(block.chunk_log_likelihood)
    own = np.bincount(chunk, rollout.log_probs.astype(np.float64), chunks)
    advantage = block.chunk_log_likelihood - own
    known = np.bincount(chunk, ~ordinary, chunks) == 0
    if not rollout.finished:
        known[chunk[-1]] = False
    return advantage[chunk].astype(np.float32), known[chunk]
