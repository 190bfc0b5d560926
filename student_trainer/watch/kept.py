"""Responses of a step as records for people: what both sides say of each token
(docs/watching.md#kept-responses)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import (
    CLASSES_WITH_REASON,
    ContinuationScores,
    Float32,
    PositionClass,
    Status,
)

from student_trainer.evaluation.samples import prompt_text
from student_trainer.rollout.base import Rollout
from student_trainer.student.model import Student
from student_trainer.teacher.mask_reasons import reason_name
from student_trainer.watch.row_losses import RowLosses

FORMAT = 1
# Of the teacher's support so many ids are kept, and so many positions are named as the worst.
TOP = 8
WORST_POSITIONS = 5


def worst_first(
    student: Student,
    step: int,
    written_after: int,
    rollouts: Sequence[Rollout],
    scores: Sequence[ContinuationScores],
    losses: RowLosses,
    places: Sequence[int],
    count: int,
) -> list[dict[str, Any]]:
    """Records of the ``count`` responses with the largest mean loss, the largest first. Those
    without any row that has a loss come last.

    Args:
        rollouts: of the step, as far as they are scored.
        scores, losses: one for each of ``rollouts``.
        places: of ``rollouts``, among all of the step.
    """
    means = [_mean(losses.of(place)) for place in range(len(rollouts))]
    order = sorted(range(len(rollouts)), key=lambda p: (means[p] is None, -(means[p] or 0.0), p))
    return [
        {
            "format": FORMAT,
            "step": step,
            "written_after": written_after,
            "place": places[place],
            **record(student, rollouts[place], scores[place], losses.of(place)),
        }
        for place in order[:count]
    ]


def by_loss(record: Mapping[str, Any]) -> tuple[bool, float, int]:
    """Sorts records of one step as ``worst_first`` does."""
    loss = record["loss"]
    return loss is None, -(loss or 0.0), record["place"]


def record(
    student: Student, rollout: Rollout, scores: ContinuationScores, losses: Float32
) -> dict[str, Any]:
    """One response as JSON values. Lists have one value for each token; None where there is
    none.

    Args:
        losses: float32 [n], NaN where a row has none.
    """
    ids = rollout.token_ids.tolist()
    known = scores.status is Status.OK
    return {
        "teacher": rollout.prompt.teacher,
        "origin": rollout.origin,
        "prompt_id": rollout.prompt.prompt_id,
        "prompt": prompt_text(rollout.prompt),
        "prompt_ids": rollout.prompt.token_ids.tolist(),
        "text": student.tokenizer.decode(ids, skip_special_tokens=False),
        "finished": rollout.finished,
        **_episode(rollout),
        "written": rollout.length,
        "refused": "" if known else scores.detail or scores.status.name,
        "loss": _mean(losses),
        "worst": worst_positions(losses),
        "ids": ids,
        "texts": student.tokenizer.batch_decode([[one] for one in ids]),
        "losses": _numbers(losses),
        "student_log_probs": _numbers(rollout.log_probs),
        "teacher_log_probs": _numbers(teacher_log_probs(rollout, scores)),
        **_support(student, scores, len(ids)),
        **_realignment(scores, len(ids)),
    }


def _episode(rollout: Rollout) -> dict[str, Any]:
    """Of a response that was written turn by turn: the tokens that the student wrote, and how it
    went."""
    episode = rollout.episode
    if episode is None or rollout.own is None:
        return {}
    return {
        "own": rollout.own.tolist(),
        "turns": episode.turns,
        "ended": episode.ended,
        "score": episode.judgement.score,
    }


def worst_positions(losses: Float32) -> list[int]:
    """The positions of the largest losses, the largest first."""
    order = np.argsort(-np.nan_to_num(losses, nan=-np.inf), kind="stable")[:WORST_POSITIONS]
    return [int(place) for place in order if np.isfinite(losses[place])]


def teacher_log_probs(rollout: Rollout, scores: ContinuationScores) -> NDArray[np.float64]:
    """float64 [n], nats: of each token; NaN where the teacher was not asked for it and it is not
    in its support."""
    found: NDArray[np.float64] = np.full(len(rollout.token_ids), np.nan)
    if scores.status is not Status.OK:
        return found
    support, sampled = scores.rows.support, scores.rows.sampled
    if support is not None:
        here = support.valid & (support.ids == rollout.token_ids[:, None])
        rows, slots = np.nonzero(here)
        found[rows] = support.log_probs[rows, slots]
    if sampled is not None:
        found = np.where(sampled.valid, sampled.values, found)
    return found


def _support(student: Student, scores: ContinuationScores, count: int) -> dict[str, Any]:
    """The teacher's most likely ids, and the mass of all that it returned."""
    support = scores.rows.support if scores.status is Status.OK else None
    if support is None:
        return {"support_mass": [None] * count, "top_ids": [], "top_log_probs": [], "top_texts": []}
    sizes = np.minimum(support.counts, TOP).tolist()
    ids = [row[:size].tolist() for row, size in zip(support.ids, sizes, strict=True)]
    texts = {one for row in ids for one in row}
    said = dict(zip(texts, student.tokenizer.batch_decode([[t] for t in texts]), strict=True))
    mass = np.exp(np.where(support.valid, support.log_probs, -np.inf)).sum(-1)
    mass = np.where(support.counts > 0, mass, np.nan)  # of a row that was not asked for
    return {
        "support_mass": _numbers(mass),
        "top_ids": ids,
        "top_log_probs": [
            _numbers(row[:size]) for row, size in zip(support.log_probs, sizes, strict=True)
        ],
        "top_texts": [[said[one] for one in row] for row in ids],
    }


def _realignment(scores: ContinuationScores, count: int) -> dict[str, Any]:
    """Of a teacher with another tokenizer: the class of each position, its chunk, and why it is
    masked or coarse."""
    block = scores.realignment if scores.status is Status.OK else None
    if block is None:
        return {}
    told = [0] * count if block.mask_reason is None else block.mask_reason.tolist()
    kinds = block.position_class.tolist()
    return {
        "classes": [PositionClass(kind).name for kind in kinds],
        "reasons": [
            reason_name(why) if kind in CLASSES_WITH_REASON else ""
            for kind, why in zip(kinds, told, strict=True)
        ],
        "chunks": block.chunk_index.tolist(),
        "coverage": _numbers(block.coverage),
    }


def _mean(losses: Float32) -> float | None:
    known = losses[np.isfinite(losses)]
    return round(float(known.mean()), 5) if len(known) else None


def _numbers(values: Any) -> list[float | None]:
    return [round(float(v), 5) if np.isfinite(v) else None for v in values]
