"""Rows of both sides over the whole vocabulary at chosen positions, in blocks of [rows, V].

The teacher's rows come from the service, with K as large as the vocabulary. Row t is the
distribution of token t given everything before it, so the student's row is the head
applied to the hidden state of the token before it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.rows import required
from teacher_proto.types import Bool, ContinuationScores, Float32, Int32, Status
from torch import Tensor

from student_trainer.rollout.base import PromptItem
from student_trainer.student.model import Student, lay_out, read_layout
from student_trainer.teacher.left_out import is_left_out
from student_trainer.teacher.link import TeacherLink

log = logging.getLogger(__name__)

BLOCK_ROWS = 64
CONCURRENT_REQUESTS = 4
TEMPERATURE = 1.0


@dataclass(frozen=True)
class Selection:
    """Positions of one response.

    Attributes:
        response: int32 [n].
        rows: int32 [R], strictly increasing, in [0, n); R >= 1.
    """

    prompt: PromptItem
    response: Int32
    rows: Int32


@dataclass(frozen=True)
class FullRows:
    """The teacher's distributions over the whole vocabulary, for one block of rows.

    Attributes:
        log_probs: float32 [R, V].
        finite: bool [R], whether all values of the row are finite.
    """

    log_probs: Float32
    finite: Bool


def cut_blocks(selections: Sequence[Selection]) -> list[Selection]:
    """The same positions in the same order, in pieces of at most ``BLOCK_ROWS`` rows."""
    return [
        Selection(s.prompt, s.response, s.rows[start : start + BLOCK_ROWS])
        for s in selections
        for start in range(0, len(s.rows), BLOCK_ROWS)
    ]


def shared_ids(student: Student, teacher: TeacherLink) -> int:
    """How many ids both vocabularies have, up to the student's last token.

    Raises:
        ConfigurationError: the service does not return so many ids at once.
    """
    ids = min(student.drawn_below, teacher.info.vocabulary_size)
    if teacher.info.max_top_k < ids:
        raise ConfigurationError(
            f"full distributions have {ids} ids and teacher {teacher.info.name!r} returns at most "
            f"{teacher.info.max_top_k} (its limits.max_top_k)",
            where="evaluation.frozen_rows",
            fix=f"raise limits.max_top_k to {ids} on the server, or set evaluation.prompts to 0",
        )
    return ids


def compared_ids(student: Student, ids: int) -> Tensor:
    """int64: those of the first ``ids`` ids that the student can draw."""
    kept = torch.ones(student.vocabulary_size, dtype=torch.bool, device=student.device)
    if student.undrawn is not None:
        kept[student.undrawn] = False
    return torch.nonzero(kept[:ids]).squeeze(-1)


def full_rows(teacher: TeacherLink, pieces: Sequence[Selection], ids: int) -> Iterator[FullRows]:
    """The teacher's rows of each piece, in order. A few requests are sent at a time. Rows of
    responses that the teacher refuses are not finite; how many they are is logged.

    Args:
        pieces: of at most ``BLOCK_ROWS`` positions each.
        ids: V; only the first V ids of the vocabulary are compared.

    Raises:
        LsmError: as ``TeacherLink.score_rows``.
    """

    def score(piece: Selection) -> ContinuationScores:
        # Tokens after the last row cannot change the rows, so they are left out.
        response = piece.response[: int(piece.rows[-1]) + 1]
        return teacher.score_rows(piece.prompt, response, piece.rows, ids, TEMPERATURE)

    refused, why = 0, ""
    with ThreadPoolExecutor(CONCURRENT_REQUESTS, thread_name_prefix="teacher-rows") as pool:
        under_way: deque[Future[ContinuationScores]] = deque()
        try:
            for place in range(len(pieces)):
                while len(under_way) < CONCURRENT_REQUESTS and place + len(under_way) < len(pieces):
                    under_way.append(pool.submit(score, pieces[place + len(under_way)]))
                scores, count = under_way.popleft().result(), len(pieces[place].rows)
                if is_left_out(scores):
                    refused, why = refused + count, why or scores.detail
                yield dense(scores, count, ids)
        finally:
            for future in under_way:
                future.cancel()
    if refused:
        log.warning(
            "evaluation: %d rows are left out (dropped_rows), the first because %s", refused, why
        )


def dense(scores: ContinuationScores, rows: int, ids: int) -> FullRows:
    """The rows of a support of every id, in the order of ids; -inf where the teacher has no
    value."""
    if scores.status is not Status.OK:
        return FullRows(np.full((rows, ids), -np.inf, np.float32), np.zeros(rows, np.bool_))
    support = required(scores.rows.support, "support")
    # An extra column takes the slots that are not valid.
    table = np.full((rows, ids + 1), -np.inf, np.float32)
    columns = np.where(support.valid, support.ids, ids)
    np.put_along_axis(table, columns.astype(np.int64), support.log_probs, 1)
    log_probs = np.ascontiguousarray(table[:, :ids])
    return FullRows(log_probs, np.logical_and.reduce(np.isfinite(log_probs), axis=1))


@torch.no_grad()
def student_hidden(student: Student, selections: Sequence[Selection], batch_size: int) -> Tensor:
    """The hidden states [R, H] that the head turns into the selected rows, in order."""
    training = student.module.training
    student.module.eval()
    parts = []
    try:
        for start in range(0, len(selections), batch_size):
            batch = selections[start : start + batch_size]
            # The last selected row needs only the tokens before it.
            sequences = [
                np.concatenate([s.prompt.token_ids, s.response[: int(s.rows[-1])]]) for s in batch
            ]
            prompts = [len(s.prompt.token_ids) for s in batch]
            layout = lay_out(student, sequences, prompts)
            states = read_layout(student, layout)
            for places, prompt, selection in zip(layout.places, prompts, batch, strict=True):
                before = torch.from_numpy(places[selection.rows.astype(np.int64) + prompt - 1])
                parts.append(states[before.to(states.device)])
    finally:
        student.module.train(training)
    return torch.cat(parts)
