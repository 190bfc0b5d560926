"""Evaluation of a student whose teacher has another tokenizer.

A full distribution of the teacher over the student's tokens does not exist. Known are
rows on a support of certified ids, with the mass outside them, and the exact likelihood
of chunks of text (docs/realignment.md). R rows, K ids; nats unless stated otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from teacher_proto.errors import ConfigurationError, LsmError
from teacher_proto.rows import required
from teacher_proto.types import Bool, ContinuationScores, Int32, PositionClass, Status
from torch import Tensor

from student_trainer.evaluation.results import (
    OF_FULL_ROWS,
    ByPrompt,
    ChunkLikelihood,
    CoarseDivergence,
    RealignedDivergence,
)
from student_trainer.evaluation.rows import BLOCK_ROWS, TEMPERATURE, Selection, student_hidden
from student_trainer.losses.parts.divergences import forward_kl, renormalise, reverse_kl
from student_trainer.losses.parts.normaliser import token_log_probs
from student_trainer.rollout.base import Rollout
from student_trainer.student.head import head_logits
from student_trainer.student.masking import token_bytes
from student_trainer.student.model import Student, not_finite
from student_trainer.teacher.link import TeacherLink
from student_trainer.teacher.requests import LARGEST_K
from student_trainer.update.realigned import chunks_known, full_rows


def check_top_k(teacher: TeacherLink, top_k: int) -> None:
    """Raises ConfigurationError when the service does not return so many ids."""
    if top_k > teacher.info.max_top_k:
        raise ConfigurationError(
            f"{top_k} is more than {teacher.called} takes ({LARGEST_K}: {teacher.info.max_top_k})",
            where="evaluation.top_k",
            fix="lower it, or raise limits.max_top_k on the server",
        )


def score_whole(
    teacher: TeacherLink, responses: Sequence[Rollout], top_k: int
) -> list[ContinuationScores]:
    """The scores of every row of each response, coarse ones among them whatever the loss does
    with them. The requests are sent together."""
    futures: list[Future[list[ContinuationScores]]] = [
        teacher.submit_rollouts([response], top_k, TEMPERATURE, log_tail=True, coarse=True)
        for response in responses
    ]
    return [future.result()[0] for future in futures]


@torch.no_grad()
def realigned_divergence(
    student: Student,
    selections: Sequence[Selection],
    scores: Sequence[ContinuationScores],
    batch_size: int,
) -> RealignedDivergence:
    """Divergences on the certified supports at the selected positions, coarse ones apart.

    Args:
        scores: of every row of each selection's response.

    Raises:
        LsmError: no position can be compared, or the student's logits are not finite.
    """
    hidden = student_hidden(student, selections, batch_size)
    asked = sum(len(selection.rows) for selection in selections)
    sums: dict[str, list[float]] = {}
    coarse_sums: dict[str, list[float]] = {}
    of_prompt: list[str] = []
    start = 0
    for selection, scored in zip(selections, scores, strict=True):
        states = hidden[start : start + len(selection.rows)]
        start += len(selection.rows)
        full, coarse = comparable_rows(scored, len(selection.response))
        for kept, compare, into in (
            (full, _compare, sums),
            (coarse, _compare_coarse, coarse_sums),
        ):
            usable = kept[selection.rows]
            chosen, places = selection.rows[usable], torch.from_numpy(np.flatnonzero(usable))
            if into is sums:
                of_prompt += [selection.prompt.prompt_id] * len(chosen)
            for at in range(0, len(chosen), BLOCK_ROWS):
                piece = slice(at, at + BLOCK_ROWS)
                logits = head_logits(student.head, states[places[piece].to(states.device)])
                if not bool(torch.isfinite(logits).all()):
                    raise not_finite("evaluation")
                for name, values in compare(logits, scored, chosen[piece]).items():
                    into.setdefault(name, []).extend(values.tolist())
    count, coarse_count = len(sums.get("coverage", ())), len(coarse_sums.get("reverse_kl", ()))
    if not (count or coarse_count):
        raise LsmError(
            f"none of {asked} positions could be realigned",
            where="evaluation",
            fix="compare the tokenizers (teacher-server tokenizers compare), or set "
            "evaluation.prompts to 0",
        )
    means: dict[str, float | None] = dict.fromkeys(OF_FULL_ROWS)
    return RealignedDivergence(
        rows=count,
        masked_rows=asked - count - coarse_count,
        coarse_rows=coarse_count,
        coarse=CoarseDivergence(**_means(coarse_sums)) if coarse_count else None,
        by_prompt=ByPrompt.of(of_prompt, sums) if count else None,
        **(means | _means(sums)),
    )


def _means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: math.fsum(of_rows) / len(of_rows) for name, of_rows in values.items()}


def comparable_rows(scores: ContinuationScores, rows: int) -> tuple[Bool, Bool]:
    """bool [n], twice: full rows of at least two ids; and those that are compared on their ids
    and the rest: coarse rows, and full ones of a single id that leaves a rest."""
    block = scores.realignment
    if scores.status is not Status.OK or block is None:
        return np.zeros(rows, np.bool_), np.zeros(rows, np.bool_)
    counts = required(scores.rows.support, "support").counts
    coarse: Bool = block.position_class == PositionClass.COARSE
    full, has_rest = full_rows(block), required(scores.rows.log_tail, "log_tail").valid
    single = full & (counts == 1) & has_rest
    return full & (counts >= 2), single | (coarse & (counts >= 1))


def _sides(logits: Tensor, scores: ContinuationScores, rows: Int32) -> _Sides:
    support = required(scores.rows.at(rows).support, "support")
    device = logits.device
    valid = torch.from_numpy(support.valid).to(device)
    ids = torch.from_numpy(support.ids.astype(np.int64)).to(device)
    log_pi = torch.log_softmax(logits.double(), -1)
    return _Sides(
        ids=ids,
        valid=valid,
        log_pi=log_pi,
        own=log_pi.gather(1, ids.where(valid, 0)),
        log_q=torch.from_numpy(support.log_probs).to(device).double(),
    )


@dataclass(frozen=True)
class _Sides:
    """Both sides of R rows.

    Attributes:
        ids, valid: int64 and bool [R, K], the certified ids.
        log_pi: float64 [R, V], the student.
        own, log_q: float64 [R, K], the student and the teacher at these ids.
    """

    ids: Tensor
    valid: Tensor
    log_pi: Tensor
    own: Tensor
    log_q: Tensor


def _compare(logits: Tensor, scores: ContinuationScores, rows: Int32) -> dict[str, Tensor]:
    """The metrics of RealignedDivergence for each row, float64 [R], by name."""
    at, block = _sides(logits, scores, rows), required(scores.realignment, "realignment")
    p, q = renormalise(at.own, at.valid), renormalise(at.log_q, at.valid)
    return {
        "reverse_kl": reverse_kl(p, q, at.valid),
        "forward_kl": forward_kl(p, q, at.valid),
        # Slot 0 is the teacher's most likely token: a row where an unsettled id could be
        # more likely is masked or coarse.
        "agreement": (at.log_pi.argmax(-1) == at.ids[:, 0]).double(),
        "student_mass": at.own.exp().where(at.valid, 0).sum(-1),
        "coverage": torch.from_numpy(block.coverage[rows]).double(),
        "open_mass": torch.from_numpy(block.open_mass[rows]).double(),
    }


def _compare_coarse(logits: Tensor, scores: ContinuationScores, rows: Int32) -> dict[str, Tensor]:
    """The metrics of CoarseDivergence for each row, float64 [R], by name."""
    at = _sides(logits, scores, rows)
    tail = required(scores.rows.log_tail, "log_tail").values[rows]
    count, width = at.log_pi.shape
    # One more column takes the invalid slots.
    inside = torch.zeros(count, width + 1, dtype=torch.bool, device=logits.device)
    inside = inside.scatter(1, at.ids.where(at.valid, width), True)[:, :width]
    own_rest = at.log_pi.masked_fill(inside, -torch.inf).logsumexp(-1, keepdim=True)
    rest = torch.from_numpy(tail).to(logits.device).double()[:, None]
    p, q = torch.cat([at.own, own_rest], -1), torch.cat([at.log_q, rest], -1)
    every = torch.cat([at.valid, torch.ones_like(at.valid[:, :1])], -1)
    return {
        "reverse_kl": reverse_kl(p, q, every),
        "forward_kl": forward_kl(p, q, every),
        "student_rest": own_rest.exp()[:, 0],
        "teacher_rest": rest.exp()[:, 0],
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
    own: list[float] = []
    theirs: list[float] = []
    read: list[int] = []
    of_prompt: list[str] = []
    used = start = 0
    for response, scored in zip(responses, scores, strict=True):
        ids = response.token_ids
        states = hidden[start : start + len(ids)]
        start += len(ids)
        if scored.status is not Status.OK or scored.realignment is None:
            continue
        special = np.isin(ids, specials)
        open_ends = response.open_ends(student.terminators)
        known = chunks_known(scored.realignment, special, open_ends, response.own)
        inside = known[scored.realignment.chunk_index]
        sampled = torch.from_numpy(ids.astype(np.int64)).to(states.device)
        log_pi = token_log_probs(states, student.head, sampled, TEMPERATURE, block_rows)
        own.append(float(log_pi.double()[torch.from_numpy(inside).to(states.device)].sum()))
        likelihood = scored.realignment.chunk_log_likelihood[known]
        theirs.append(float(likelihood.sum(dtype=np.float64)))
        text = ids[inside & ~special].tolist()
        read.append(sum(len(pieces[token]) for token in text))
        of_prompt.append(response.prompt.prompt_id)
        used += int(known.sum())
    count = sum(read)
    if not count:
        return None
    bits = {
        "student_bits_per_byte": [-nats / math.log(2) for nats in own],
        "teacher_bits_per_byte": [-nats / math.log(2) for nats in theirs],
    }
    return ChunkLikelihood(
        chunks=used,
        bytes=count,
        student_bits_per_byte=math.fsum(bits["student_bits_per_byte"]) / count,
        teacher_bits_per_byte=math.fsum(bits["teacher_bits_per_byte"]) / count,
        by_prompt=ByPrompt.of(of_prompt, bits, read),
    )
