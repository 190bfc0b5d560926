"""Divergences of the student's and the teacher's distributions over the vocabulary. R rows,
V ids, nats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from teacher_proto.errors import LsmError
from torch import Tensor

from student_trainer.evaluation.results import ByPrompt, FullDivergence
from student_trainer.evaluation.rows import FullRows, Selection, student_hidden
from student_trainer.student.head import head_logits
from student_trainer.student.model import Student, not_finite


@dataclass(frozen=True)
class RowDivergence:
    """Divergences of R rows: float64 [R] in nats, and bool [R]."""

    reverse_kl: Tensor
    forward_kl: Tensor
    agrees: Tensor


def row_divergence(student_logits: Tensor, teacher_log_probs: Tensor) -> RowDivergence:
    """KL(pi || q), KL(q || pi) and arg-max agreement of each row, in float64.

    Both sides are normalised over the V ids that are given, so constants added to a row do
    not matter. Every entry must be finite.

    Args:
        student_logits: [R, V].
        teacher_log_probs: [R, V].
    """
    log_pi = torch.log_softmax(student_logits.double(), -1)
    log_q = torch.log_softmax(teacher_log_probs.double(), -1)
    log_ratio = log_pi - log_q
    return RowDivergence(
        reverse_kl=(log_pi.exp() * log_ratio).sum(-1),
        forward_kl=-(log_q.exp() * log_ratio).sum(-1),
        agrees=log_pi.argmax(-1) == log_q.argmax(-1),
    )


@torch.no_grad()
def full_divergence(
    student: Student,
    pieces: Sequence[Selection],
    teacher: Iterable[FullRows],
    ids: Tensor,
    batch_size: int,
) -> FullDivergence:
    """Means over the rows of all pieces.

    Args:
        ids: int64 [V], the ids to compare.
    """
    hidden = student_hidden(student, pieces, batch_size)
    reverse: list[float] = []
    forward: list[float] = []
    agrees: list[bool] = []
    of_prompt: list[str] = []
    start = dropped = 0
    for piece, theirs in zip(pieces, teacher, strict=True):
        states = hidden[start : start + len(piece.rows)]
        start += len(piece.rows)
        finite = torch.from_numpy(theirs.finite)
        dropped += int((~finite).sum())
        logits = head_logits(student.head, states)[finite.to(states.device)][:, ids]
        if not bool(torch.isfinite(logits).all()):
            raise not_finite(f"evaluation, held-out prompt {piece.prompt.prompt_id}")
        log_q = torch.from_numpy(theirs.log_probs).to(logits.device)[finite.to(logits.device)][
            :, ids
        ]
        found = row_divergence(logits, log_q)
        reverse += found.reverse_kl.tolist()
        forward += found.forward_kl.tolist()
        agrees += found.agrees.tolist()
        of_prompt += [piece.prompt.prompt_id] * len(found.agrees)
    if not reverse:
        raise LsmError(
            f"none of the teacher's {dropped} rows is finite over the whole vocabulary",
            where="evaluation",
            fix="look at the teacher: its logits are not finite, it forbids some ids, or it "
            "refuses the responses, which is warned of",
        )
    count = len(reverse)
    rows: dict[str, Sequence[float]] = {
        "reverse_kl": reverse,
        "forward_kl": forward,
        "agreement": agrees,
    }
    return FullDivergence(
        rows=count,
        dropped_rows=dropped,
        ids=len(ids),
        reverse_kl=math.fsum(reverse) / count,
        forward_kl=math.fsum(forward) / count,
        agreement=sum(agrees) / count,
        by_prompt=ByPrompt.of(of_prompt, rows),
    )
