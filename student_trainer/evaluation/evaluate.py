"""Evaluation of a student against its teacher on held-out prompts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from teacher_proto.types import ContinuationScores, TeacherInfo

from student_trainer.evaluation.cache import cached_rows
from student_trainer.evaluation.divergence import full_divergence
from student_trainer.evaluation.frozen import (
    FRESH_STEP,
    evaluation_rollouts,
    frozen_prompts,
    spread_own,
)
from student_trainer.evaluation.realigned import (
    check_top_k,
    chunk_likelihood,
    realigned_divergence,
    score_whole,
)
from student_trainer.evaluation.results import (
    Evaluation,
    FrozenPositions,
    Lengths,
    TeacherDescription,
)
from student_trainer.evaluation.rows import (
    Selection,
    compared_ids,
    cut_blocks,
    full_rows,
    shared_ids,
)
from student_trainer.evaluation.samples import sample
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.turns.acting import Acting
from student_trainer.rollout.turns.engine import respond
from student_trainer.settings.evaluation import EvaluationSettings
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student
from student_trainer.teacher.link import TeacherLink


def evaluate(
    student: Student,
    teacher: TeacherLink,
    frozen: FrozenPositions,
    held_out: Sequence[PromptItem],
    settings: EvaluationSettings,
    rollout_settings: RolloutSettings,
    *,
    seed: int,
    cache: Path,
    acting: Acting | None,
) -> Evaluation:
    """Divergences, response lengths and sample texts. The divergences are over the whole
    vocabulary, or, when the teacher has another tokenizer, those of ``evaluation.realigned``.

    The fresh responses are drawn from the same random streams for every student, so that
    two evaluations differ by the student alone.

    Args:
        frozen: made by ``freeze_continuations`` before training.
        cache: directory of the teacher's frozen rows. Rows in it are used if they are of
            this teacher.
        acting: what plays episodes; None where no task acts. Only the student's own tokens of
            one are compared.

    Raises:
        ConfigurationError: a frozen prompt is not among ``held_out``, or the service does
            not return full distributions.
        LsmError: the student's logits are not finite, or no row is left.
    """
    started = time.monotonic()
    prompts = frozen_prompts(frozen, held_out, settings)
    asked = prompts if settings.rollouts else prompts[: settings.samples]
    drawing = evaluation_rollouts(settings, rollout_settings)
    fresh: list[Rollout] = []
    if asked:
        fresh = respond(student, asked, drawing, acting, seed=seed, step=FRESH_STEP)
    on_frozen = frozen_selections(frozen, prompts)
    counted = fresh if settings.rollouts else []
    whole = partial(_whole, digest=frozen.digest, cache=cache)
    measure = _realigned if teacher.realigned else whole
    found, scores = measure(student, teacher, on_frozen, counted, settings)
    scored = dict(enumerate(scores))
    return Evaluation(
        prompts=len(prompts),
        lengths=response_lengths(counted) if counted else None,
        samples=tuple(
            sample(student, rollout, scored.get(place))
            for place, rollout in enumerate(fresh[: settings.samples])
        ),
        frozen_digest=frozen.digest,
        teacher=describe_teacher(teacher.info),
        seconds=time.monotonic() - started,
        **found,
    )


def _whole(
    student: Student,
    teacher: TeacherLink,
    on_frozen: Sequence[Selection],
    fresh: Sequence[Rollout],
    settings: EvaluationSettings,
    digest: str,
    cache: Path,
) -> tuple[dict[str, Any], Sequence[ContinuationScores]]:
    """Fields of an Evaluation over the vocabulary that both sides share, and no scores."""
    ids = shared_ids(student, teacher)
    compared = compared_ids(student, ids)
    found: dict[str, Any] = {"frozen": None, "fresh": None}
    if on_frozen:
        pieces = cut_blocks(on_frozen)
        rows = cached_rows(teacher, pieces, ids, digest, cache)
        found["frozen"] = full_divergence(student, pieces, rows, compared, settings.batch_size)
    if chosen := fresh_selections(fresh, settings.most_rows):
        pieces = cut_blocks(chosen)
        rows = full_rows(teacher, pieces, ids)
        found["fresh"] = full_divergence(student, pieces, rows, compared, settings.batch_size)
    return found, ()


def _realigned(
    student: Student,
    teacher: TeacherLink,
    on_frozen: Sequence[Selection],
    fresh: Sequence[Rollout],
    settings: EvaluationSettings,
) -> tuple[dict[str, Any], Sequence[ContinuationScores]]:
    """Fields of an Evaluation across tokenizers, and the scores of the fresh responses."""
    check_top_k(teacher, settings.top_k)
    found: dict[str, Any] = {"frozen": None, "fresh": None}
    scores: list[ContinuationScores] = []
    if on_frozen:
        whole = [_as_rollout(selection) for selection in on_frozen]
        found["frozen_realigned"] = realigned_divergence(
            student, on_frozen, score_whole(teacher, whole, settings.top_k), settings.batch_size
        )
    if fresh:
        scores = score_whole(teacher, fresh, settings.top_k)
        chosen = spread_over(fresh, settings.most_rows)
        pairs = [(s, scored) for s, scored in zip(chosen, scores, strict=True) if len(s.rows)]
        if pairs:
            found["fresh_realigned"] = realigned_divergence(
                student, [s for s, _ in pairs], [r for _, r in pairs], settings.batch_size
            )
        found["likelihood"] = chunk_likelihood(student, fresh, scores, settings.batch_size)
    return found, scores


def _as_rollout(selection: Selection) -> Rollout:
    count = len(selection.response)
    return Rollout(selection.prompt, 0, selection.response, np.zeros(count, np.float32), True)


def describe_teacher(info: TeacherInfo) -> TeacherDescription:
    return TeacherDescription(
        name=info.name,
        model=info.model,
        engine=info.engine,
        identity=info.identity.digest,
        weights_digest=info.identity.weights_digest,
        dtype=info.identity.dtype,
        quantization=info.identity.quantization,
        tokenizer_hash=info.identity.tokenizer_hash,
        vocabulary_size=info.vocabulary_size,
    )


def frozen_selections(frozen: FrozenPositions, prompts: Sequence[PromptItem]) -> list[Selection]:
    """The frozen positions with their prompts' tokens."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    return [
        Selection(
            by_id[c.prompt_id] if c.place is None else prompts[c.place],
            np.array(c.token_ids, np.int32),
            np.array(c.rows, np.int32),
        )
        for c in frozen.continuations
    ]


def fresh_selections(fresh: Sequence[Rollout], count: int) -> list[Selection]:
    """``count`` positions of fresh responses, or all of them when there are fewer."""
    return [selection for selection in spread_over(fresh, count) if len(selection.rows)]


def spread_over(fresh: Sequence[Rollout], count: int) -> list[Selection]:
    """As ``fresh_selections``, but with one selection for each response, some of them empty."""
    rows = spread_own(fresh, min(count, sum(rollout.own_length for rollout in fresh)))
    return [
        Selection(rollout.prompt, rollout.token_ids, chosen)
        for rollout, chosen in zip(fresh, rows, strict=True)
    ]


def response_lengths(fresh: Sequence[Rollout]) -> Lengths:
    return Lengths(
        responses=len(fresh),
        mean=sum(rollout.own_length for rollout in fresh) / len(fresh),
        truncated_share=sum(not rollout.finished for rollout in fresh) / len(fresh),
    )
