"""Evaluation of a student whose teacher has another tokenizer.

A full distribution of the teacher over the student's tokens does not exist. Known are
rows on a support of certified ids, with the mass outside them, and the exact likelihood
of chunks of text (docs/realignment.md). R rows, K ids; nats unless stated otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from teacher_proto.errors import ConfigurationError, LsmError
from teacher_proto.rows import Support, required
from teacher_proto.types import Bool, ContinuationScores, Float32, Int32, PositionClass, Status
from torch import Tensor

from student_trainer.evaluation.results import ChunkLikelihood, RealignedDivergence
from student_trainer.evaluation.rows import BLOCK_ROWS, TEMPERATURE, Selection, student_hidden
from student_trainer.losses.divergences import forward_kl, renormalise, reverse_kl
from student_trainer.losses.normaliser import token_log_probs
from student_trainer.rollout.base import Rollout
from student_trainer.student.head import head_logits
from student_trainer.student.masking import token_bytes
from student_trainer.student.model import Student, not_finite
from student_trainer.teacher.link import TeacherLink
from student_trainer.update.realigned import chunks_known


def check_top_k(teacher: TeacherLink, top_k: int) -> None:
    """Raises ConfigurationError when the service does not return so many ids."""
    if top_k > teacher.info.max_top_k:
        raise ConfigurationError(
            f"{top_k} is more than the teacher takes (its largest K: {teacher.info.max_top_k})",
            where="evaluation.top_k",
            fix="lower it, or raise limits.max_top_k on the server",
        )


def score_whole(
    teacher: TeacherLink, responses: Sequence[Rollout], top_k: int
) -> list[ContinuationScores]:
    """The scores of every row of each response. The requests are sent together."""
    futures: list[Future[list[ContinuationScores]]] = [
        teacher.submit_rollouts([response], top_k, TEMPERATURE) for response in responses
    ]
    return [future.result()[0] for future in futures]


@dataclass(frozen=True)
class _Certified:
    """R rows that can be compared: their support, its coverage and the open mass."""

    support: Support
    coverage: Float32
    open_mass: Float32


@torch.no_grad()
def realigned_divergence(
    student: Student,
    selections: Sequence[Selection],
    scores: Sequence[ContinuationScores],
    batch_size: int,
) -> RealignedDivergence:
    """Divergences on the certified supports at the selected positions.

    Args:
        scores: of every row of each selection's response.

    Raises:
        LsmError: every position is masked, or the student's logits are not finite.
    """
    hidden = student_hidden(student, selections, batch_size)
    asked = sum(len(selection.rows) for selection in selections)
    sums: dict[str, list[float]] = {}
    start = 0
    for selection, scored in zip(selections, scores, strict=True):
        states = hidden[start : start + len(selection.rows)]
        start += len(selection.rows)
        usable = _usable(scored, len(selection.response))[selection.rows]
        chosen, places = selection.rows[usable], torch.from_numpy(np.flatnonzero(usable))
        for at in range(0, len(chosen), BLOCK_ROWS):
            piece = slice(at, at + BLOCK_ROWS)
            rows = _certified(scored, chosen[piece])
            logits = head_logits(student.head, states[places[piece].to(states.device)])
            for name, values in _compare(logits, rows).items():
                sums.setdefault(name, []).extend(values.tolist())
    if not sums:
        raise LsmError(
            f"none of {asked} positions could be realigned",
            where="evaluation",
            fix="compare the tokenizers (teacher-server tokenizers compare), or set "
            "evaluation.prompts to 0",
        )
    count = len(sums["coverage"])
    means = {name: math.fsum(values) / count for name, values in sums.items()}
    return RealignedDivergence(rows=count, masked_rows=asked - count, **means)


def _usable(scores: ContinuationScores, rows: int) -> Bool:
    """bool [n]: rows with a support of at least two ids."""
    if scores.status is not Status.OK or scores.realignment is None:
        return np.zeros(rows, np.bool_)
    known: Bool = scores.realignment.position_class != PositionClass.MASKED
    return known & (required(scores.rows.support, "support").counts >= 2)


def _certified(scores: ContinuationScores, rows: Int32) -> _Certified:
    block = required(scores.realignment, "realignment")
    return _Certified(
        support=required(scores.rows.at(rows).support, "support"),
        coverage=block.coverage[rows],
        open_mass=block.open_mass[rows],
    )


def _compare(logits: Tensor, rows: _Certified) -> dict[str, Tensor]:
    """The metrics of RealignedDivergence for each row, float64 [R], by name."""
    if not bool(torch.isfinite(logits).all()):
        raise not_finite("evaluation")
    device = logits.device
    valid = torch.from_numpy(rows.support.valid).to(device)
    ids = torch.from_numpy(rows.support.ids.astype(np.int64)).to(device)
    log_pi = torch.log_softmax(logits.double(), -1)
    own = log_pi.gather(1, ids.where(valid, 0))
    p = renormalise(own, valid)
    q = renormalise(torch.from_numpy(rows.support.log_probs).to(device).double(), valid)
    return {
        "reverse_kl": reverse_kl(p, q, valid),
        "forward_kl": forward_kl(p, q, valid),
        # Slot 0 is the teacher's most likely token: a row where an unsettled id could be
        # more likely is masked.
        "agreement": (log_pi.argmax(-1) == ids[:, 0]).double(),
        "student_mass": own.exp().where(valid, 0).sum(-1),
        "coverage": torch.from_numpy(rows.coverage).double(),
        "open_mass": torch.from_numpy(rows.open_mass).double(),
    }


@torch.no_grad()
def chunk_likelihood(
    student: Student,
    responses: Sequence[Rollout],
    scores: Sequence[ContinuationScores],
    batch_size: int,
    block_rows: int = BLOCK_ROWS,
) -> ChunkLikelihood | None:
    """Both sides' likelihood of the student's own answers; None when no chunk is known.

    Args:
        scores: of every row of each response.
    """
    pieces = token_bytes(student.tokenizer)
    specials = np.array(sorted(student.tokenizer.added_tokens_decoder), np.int32)
    every = [
        Selection(r.prompt, r.token_ids, np.arange(len(r.token_ids), dtype=np.int32))
        for r in responses
    ]
    hidden = student_hidden(student, every, batch_size)
    own, theirs, read, used, start = 0.0, 0.0, 0, 0, 0
    for response, scored in zip(responses, scores, strict=True):
        ids = response.token_ids
        states = hidden[start : start + len(ids)]
        start += len(ids)
        if scored.status is not Status.OK or scored.realignment is None:
            continue
        special = np.isin(ids, specials)
        ended = response.ended_by_token(student.terminators)
        known = chunks_known(scored.realignment, special, ended)
        inside = known[scored.realignment.chunk_index]
        sampled = torch.from_numpy(ids.astype(np.int64)).to(states.device)
        log_pi = token_log_probs(states, student.head, sampled, TEMPERATURE, block_rows)
        own += float(log_pi.double()[torch.from_numpy(inside).to(states.device)].sum())
        theirs += float(scored.realignment.chunk_log_likelihood[known].sum(dtype=np.float64))
        text = ids[inside & ~special].tolist()
        read += sum(len(pieces[token]) for token in text)
        used += int(known.sum())
    if not read:
        return None
    bits = -1 / (math.log(2) * read)
    return ChunkLikelihood(
        chunks=used,
        bytes=read,
        student_bits_per_byte=own * bits,
        teacher_bits_per_byte=theirs * bits,
    )
