"""Rollouts of a real tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from teacher_proto.errors import LsmError

from student_trainer.data import load_prompts
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.generate import generate
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, load_student
from tests.trainer.local_teacher import LocalTeacher

ROLLOUT = RolloutSettings(group_size=3, max_new_tokens=24, batch_size=4, temperature=0.8)


@pytest.fixture
def prompts(make_config: Callable[..., TrainConfig], student: Student) -> list[PromptItem]:
    return load_prompts(make_config().data, student.tokenizer).train


@pytest.fixture(params=["continuous batching", "padded batches"], autouse=True)
def padded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of writing."""
    if request.param == "padded batches":
        monkeypatch.setattr("student_trainer.rollout.generate.why_padded", lambda student: "so")
    return bool(request.param == "padded batches")


def tokens(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.token_ids.tolist() for rollout in rollouts]


def test_order_and_ends(student: Student, prompts: list[PromptItem]) -> None:
    rollouts = generate(student, prompts, ROLLOUT, seed=0, step=1)
    assert [r.prompt for r in rollouts] == [p for p in prompts for _ in range(3)]
    assert [r.index for r in rollouts] == [0, 1, 2] * len(prompts)
    for rollout in rollouts:
        stops = np.isin(rollout.token_ids, student.terminators)
        assert not stops[:-1].any()
        assert rollout.finished == bool(stops[-1])
        assert rollout.finished or len(rollout.token_ids) == 24
        assert len(rollout.log_probs) == len(rollout.token_ids)
    finished = [rollout.finished for rollout in rollouts]
    assert any(finished), "the case needs a response that ends"
    assert not all(finished), "the case needs a response that is cut"


def test_batch_composition_does_not_matter(student: Student, prompts: list[PromptItem]) -> None:
    together = generate(student, prompts, ROLLOUT, seed=0, step=1)
    for place in range(len(prompts)):
        settings = ROLLOUT.model_copy(update={"batch_size": 1})
        alone = generate(student, prompts[place : place + 1], settings, seed=0, step=1)
        assert tokens(alone) == tokens(together[3 * place : 3 * place + 3])
    assert tokens(generate(student, prompts, ROLLOUT, seed=0, step=2)) != tokens(together)
    assert tokens(generate(student, prompts, ROLLOUT, seed=1, step=1)) != tokens(together)


def test_log_probs_are_a_plain_forwards_at_rollout_temperature(
    student: Student, prompts: list[PromptItem], student_model_dir: Path
) -> None:
    plain = LocalTeacher(student_model_dir)
    for rollout in generate(student, prompts, ROLLOUT, seed=0, step=1):
        rows = plain.log_probs(rollout, temperature=0.8)
        ids = torch.from_numpy(rollout.token_ids.astype(np.int64))[:, None]
        expected = rows.gather(-1, ids)[:, 0]
        np.testing.assert_allclose(rollout.log_probs, expected, atol=2e-5)


def test_every_token_is_in_the_nucleus(
    student: Student, prompts: list[PromptItem], student_model_dir: Path
) -> None:
    plain = LocalTeacher(student_model_dir)
    narrow = ROLLOUT.model_copy(update={"top_p": 0.3})
    for rollout in generate(student, prompts, narrow, seed=0, step=1):
        probabilities = plain.log_probs(rollout, temperature=0.8).exp()
        own = probabilities.gather(
            -1, torch.from_numpy(rollout.token_ids.astype(np.int64))[:, None]
        )
        before = torch.where(probabilities > own, probabilities, 0).sum(-1)
        assert (before < 0.3 + 1e-5).all()


def test_the_models_own_generation_settings_do_not_apply(
    student_model_dir: Path, prompts: list[PromptItem], student: Student
) -> None:
    expected = tokens(generate(student, prompts, ROLLOUT, seed=0, step=1))
    other = load_student(StudentSettings(model=str(student_model_dir), device="cpu"))
    own = other.causal_model.generation_config
    own.update(repetition_penalty=1.5, top_k=2, temperature=0.1, min_new_tokens=5)
    assert tokens(generate(other, prompts, ROLLOUT, seed=0, step=1)) == expected
    assert other.causal_model.generation_config is own
    assert own.repetition_penalty == 1.5


def test_a_repeated_prompt_goes_on_counting(student: Student, prompts: list[PromptItem]) -> None:
    twice = generate(student, [prompts[0], prompts[1], prompts[0]], ROLLOUT, seed=0, step=1)
    assert [r.index for r in twice] == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert tokens(twice[:3]) != tokens(twice[6:])


def test_a_response_is_given_out_when_it_ends(
    student: Student, prompts: list[PromptItem], padded: bool
) -> None:
    given: list[list[tuple[int, Rollout]]] = []
    whole = generate(student, prompts, ROLLOUT, seed=0, step=1, ended=given.append)
    places = [place for some in given for place, _ in some]
    assert sorted(places) == list(range(len(whole))), "each once"
    assert all(rollout is whole[place] for some in given for place, rollout in some)
    for some in given:
        assert [p for p, _ in some] == sorted(p for p, _ in some)
    if not padded:
        assert len(given) > 5
        return
    for some in given:
        assert len({(p // 4, len(r.token_ids)) for p, r in some}) == 1, "what ends at one token"
    batches = [[len(some[0][1].token_ids) for some in given if some[0][0] // 4 == b]
               for b in range(5)]  # fmt: skip
    assert all(lengths == sorted(lengths) for lengths in batches), "as soon as it ends"
    assert any(len(lengths) > 1 for lengths in batches)


def test_a_student_that_is_not_finite_is_refused(
    student: Student, prompts: list[PromptItem]
) -> None:
    with torch.no_grad():
        student.head.weight[5] = torch.nan
    with pytest.raises(LsmError, match="not finite"):
        generate(student, prompts, ROLLOUT, seed=0, step=1)
