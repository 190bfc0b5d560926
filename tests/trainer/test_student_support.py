"""The student's top-K: of the student that drew, at every token, within the teacher's ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from teacher_proto.types import ContinuationScores

from student_trainer.data import load_prompts
from student_trainer.rollout.base import Rollout
from student_trainer.rollout.generate import generate
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, load_student
from student_trainer.update.metrics import UpdateTotals
from student_trainer.update.student_support import with_student_support
from student_trainer.update.updater import Updater
from tests.support.replies import with_arrays
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_update import assert_close


def student_rows(student: Student, rollout: Rollout) -> torch.Tensor:
    """[n, V] logits by a plain forward of one sequence."""
    ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
    logits = student.causal_model(torch.from_numpy(ids)[None]).logits[0]
    return logits[len(rollout.prompt.token_ids) - 1 : -1]


@pytest.fixture
def rollouts(make_config: Callable[..., TrainConfig], student: Student) -> list[Rollout]:
    config = make_config()
    prompts = load_prompts(config.data, student.tokenizer).train[:3]
    return generate(student, prompts, config.rollout, seed=0, step=1)


@pytest.mark.parametrize("budget", [90, 4000])
@pytest.mark.parametrize("limit", [320, 200])
def test_ids_are_the_most_likely_of_every_row(
    student: Student, rollouts: list[Rollout], budget: int, limit: int
) -> None:
    found = with_student_support(
        student, rollouts, 6, limit=limit, micro_batch_tokens=budget, chunk_rows=7
    )
    for before, after in zip(rollouts, found, strict=True):
        assert before.support_ids is None
        assert np.array_equal(before.token_ids, after.token_ids)
        with torch.no_grad():
            rows = student_rows(student, after)[:, :limit]
        assert after.support_ids is not None
        assert after.support_ids.dtype == np.int32
        own = rows.gather(1, torch.from_numpy(after.support_ids.astype(np.int64)))
        torch.testing.assert_close(own, rows.topk(6, -1).values, rtol=1e-4, atol=1e-4)


def test_nothing_is_computed_where_it_is_not_asked_for(
    student: Student, rollouts: list[Rollout]
) -> None:
    same = with_student_support(
        student, rollouts, 0, limit=320, micro_batch_tokens=4000, chunk_rows=7
    )
    assert same == rollouts


def test_the_update_is_the_definition_on_the_students_support(
    make_config: Callable[..., TrainConfig], teacher: LocalTeacher, tiny_model_dir: Path
) -> None:
    config = make_config(loss={"support": "student", "top_k": 6})
    student = load_student(config.student)
    prompts = load_prompts(config.data, student.tokenizer).train[:3]
    drawn = generate(student, prompts, config.rollout, seed=0, step=1)
    asked = with_student_support(student, drawn, 6, limit=320, micro_batch_tokens=160, chunk_rows=9)
    scores: list[ContinuationScores] = []
    losses = []
    for rollout in asked:
        assert rollout.support_ids is not None
        ids = torch.from_numpy(rollout.support_ids.astype(np.int64))
        q = teacher.log_probs(rollout).gather(1, ids)
        scores.append(
            with_arrays(
                teacher.score([rollout], 2)[0],
                explicit_log_probs=q.numpy(),
                explicit_valid=np.ones(ids.shape, np.bool_),
            )
        )
        p = student_rows(student, rollout).gather(1, ids).log_softmax(-1)
        losses.append((p.exp() * (p - q.log_softmax(-1))).sum(-1))
    loss = torch.cat(losses).mean()
    loss.backward()
    module = student.module
    expected = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    updater = Updater(student, config)
    updater.optimizer.zero_grad()
    figures = UpdateTotals()
    updater.gradients(asked, scores.__getitem__, figures, 1)
    assert figures.losses == [pytest.approx(float(loss.detach()), abs=1e-6)]
    masters = updater.optimizer.masters.items()
    assert_close({n: m.grad for n, m in masters if m.grad is not None}, expected)
