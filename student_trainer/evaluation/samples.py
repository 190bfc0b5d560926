"""Responses as samples for people: their text, and what the teacher knows of each position."""

from __future__ import annotations

import json
from collections.abc import Sequence

from teacher_proto.types import (
    CLASSES_WITH_REASON,
    ChatMessage,
    ChatPrompt,
    ContinuationScores,
    PositionClass,
    TextPrompt,
)

from student_trainer.evaluation.results import Sample, SampledPosition
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.student.model import Student
from student_trainer.teacher.mask_reasons import reason_name


def sample(student: Student, rollout: Rollout, scores: ContinuationScores | None) -> Sample:
    """A response as a sample.

    Args:
        scores: of every row, of a teacher with another tokenizer; None where there are none.
    """
    ids = rollout.token_ids.tolist()
    if rollout.ended_by_token(student.terminators):
        ids = ids[:-1]
    return Sample(
        prompt_id=rollout.prompt.prompt_id,
        prompt=prompt_text(rollout.prompt),
        response=student.tokenizer.decode(ids, skip_special_tokens=False),
        tokens=rollout.own_length,
        finished=rollout.finished,
        positions=_positions(student, rollout.token_ids.tolist(), scores),
    )


def _positions(
    student: Student, ids: Sequence[int], scores: ContinuationScores | None
) -> tuple[SampledPosition, ...]:
    """What is known of each token; empty where the response is not realigned."""
    block = None if scores is None else scores.realignment
    if block is None:
        return ()
    told = [0] * len(ids) if block.mask_reason is None else block.mask_reason.tolist()
    texts = student.tokenizer.batch_decode([[token] for token in ids])
    return tuple(
        SampledPosition(
            text, PositionClass(kind).name, reason_name(why) if kind in CLASSES_WITH_REASON else ""
        )
        for text, kind, why in zip(texts, block.position_class.tolist(), told, strict=True)
    )


def prompt_text(prompt: PromptItem) -> str:
    """The prompt for a reader: the text of a single message, otherwise role by role."""
    source = prompt.source
    if isinstance(source, TextPrompt):
        return source.text
    if isinstance(source, ChatPrompt):
        if len(source.messages) == 1:
            return _said(source.messages[0])
        return "\n".join(f"{m.role}: {_said(m)}" for m in source.messages)
    return " ".join(str(i) for i in source.token_ids.tolist())


def _said(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    fields = message.as_read()
    return json.dumps({name: fields[name] for name in fields if name != "role"}, ensure_ascii=False)
