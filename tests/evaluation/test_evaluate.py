"""Evaluation against a float64 reference, through a real teacher process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError, LsmError
from teacher_proto.rows import Rows, Support
from teacher_proto.types import ContinuationScores, Int32, Status
from transformers import AutoModelForCausalLM

from student_trainer.evaluation import (
    Evaluation,
    FrozenPositions,
    evaluate,
    freeze_continuations,
    load_evaluation,
    save_evaluation,
)
from student_trainer.evaluation.divergence import row_divergence
from student_trainer.evaluation.rows import dense
from student_trainer.rollout.base import PromptItem
from student_trainer.settings.evaluation import EvaluationSettings
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student, hidden_states
from student_trainer.teacher.link import TeacherLink

SETTINGS = EvaluationSettings(prompts=8, frozen_rows=256, max_new_tokens=40, batch_size=3)
ROLLOUT = RolloutSettings(temperature=1.0, top_p=0.9)


class Through:
    """A real link that counts what is asked and may change what comes back."""

    def __init__(self, link: TeacherLink, change: Any = None) -> None:
        self.link, self.change = link, change
        self.info, self.realigned = link.info, link.realigned
        self.wire_prompt = link.wire_prompt
        self.rows_asked: list[tuple[int, int]] = []

    def score_rows(
        self, prompt: PromptItem, response: Int32, rows: Int32, top_k: int, temperature: float
    ) -> ContinuationScores:
        self.rows_asked.append((len(rows), top_k))
        if self.change is not None:
            return self.change(self.link, prompt, response, rows, top_k, temperature)
        return self.link.score_rows(prompt, response, rows, top_k, temperature)


def run(
    student: Student,
    link: Any,
    frozen: FrozenPositions,
    held_out: list[PromptItem],
    cache: Path,
    settings: EvaluationSettings = SETTINGS,
) -> Evaluation:
    return evaluate(
        student, link, frozen, held_out, settings, ROLLOUT, seed=0, cache=cache, acting=None
    )


def log_probs64(folder: Path, prompt: Int32, response: tuple[int, ...]) -> torch.Tensor:
    """[n, V] by transformers alone, in float64: row t is what comes after t tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = torch.tensor([[*prompt.tolist(), *response]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    first = len(prompt) - 1
    return torch.log_softmax(logits[first : first + len(response)], -1)


def test_equals_the_brute_force_reference(
    tiny_model_dir: Path,
    noisy_model_dir: Path,
    noisy_student: Student,
    link: TeacherLink,
    held_out: list[PromptItem],
    tmp_path: Path,
) -> None:
    frozen = freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 0, None)
    found = run(noisy_student, link, frozen, held_out, tmp_path)
    prompts = {p.prompt_id: p.token_ids for p in held_out}
    reverse, forward, agree = [], [], []
    for c in frozen.continuations:
        log_pi = log_probs64(noisy_model_dir, prompts[c.prompt_id], c.token_ids)
        log_q = log_probs64(tiny_model_dir, prompts[c.prompt_id], c.token_ids)
        for t in c.rows:
            reverse.append(float((log_pi[t].exp() * (log_pi[t] - log_q[t])).sum()))
            forward.append(float((log_q[t].exp() * (log_q[t] - log_pi[t])).sum()))
            agree.append(int(log_pi[t].argmax()) == int(log_q[t].argmax()))
    assert found.frozen is not None
    assert (found.frozen.rows, found.frozen.dropped_rows, found.frozen.ids) == (256, 0, 320)
    assert found.frozen.reverse_kl == pytest.approx(np.mean(reverse), abs=1e-5)
    assert found.frozen.forward_kl == pytest.approx(np.mean(forward), abs=1e-5)
    assert found.frozen.agreement == np.mean(agree)
    assert found.frozen.reverse_kl > 0.01
    assert found.fresh is not None
    assert found.fresh.rows == 256
    assert found.lengths is not None
    assert found.lengths.responses == 8
    assert [s.prompt for s in found.samples][:2] == ["The teacher reads", "A short answer is"]
    assert found.teacher.identity == link.info.identity.digest
    assert not noisy_student.module.training


def test_a_student_equal_to_its_teacher_diverges_by_nothing(
    same_student: Student, link: TeacherLink, held_out: list[PromptItem], tmp_path: Path
) -> None:
    frozen = freeze_continuations(same_student, held_out, SETTINGS, ROLLOUT, 0, None)
    found = run(same_student, link, frozen, held_out, tmp_path)
    for part in (found.frozen, found.fresh):
        assert part is not None
        assert abs(part.reverse_kl) < 1e-6
        assert abs(part.forward_kl) < 1e-6
        assert part.agreement == 1.0


def test_a_row_too_early_is_seen(
    same_student: Student, link: TeacherLink, held_out: list[PromptItem], tmp_path: Path
) -> None:
    def early(
        real: TeacherLink, prompt: PromptItem, response: Int32, rows: Int32, *rest: Any
    ) -> ContinuationScores:
        return real.score_rows(prompt, response, np.unique(np.maximum(rows - 1, 0)), *rest)

    frozen = freeze_continuations(same_student, held_out, SETTINGS, ROLLOUT, 0, None)
    # Row 0 has none before it; the rest has one each.
    frozen = dataclasses.replace(
        frozen,
        continuations=tuple(
            dataclasses.replace(c, rows=tuple(r for r in c.rows if r > 0) or (1,))
            for c in frozen.continuations
            if len(c.token_ids) > 1
        ),
    )
    settings = SETTINGS.model_copy(update={"rollouts": False, "samples": 0})
    found = run(same_student, Through(link, early), frozen, held_out, tmp_path, settings)
    assert found.frozen is not None
    assert found.frozen.reverse_kl > 0.1
    assert found.frozen.agreement < 0.9


def test_shorter_answers_leave_the_frozen_positions_alone(
    noisy_student: Student, link: TeacherLink, held_out: list[PromptItem], tmp_path: Path
) -> None:
    frozen = freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 0, None)
    before = run(noisy_student, link, frozen, held_out, tmp_path)
    # A head that ends every answer at once: its logit there is 60 after every prompt.
    with torch.no_grad():
        last = [hidden_states(noisy_student, [p.token_ids])[0, -1] for p in held_out]
        target = torch.full((len(last), 1), 60.0)
        solution = torch.linalg.lstsq(torch.stack(last), target, driver="gelsd").solution[:, 0]
        noisy_student.head.weight[noisy_student.terminators[0]] = solution
    asked = Through(link)
    after = run(noisy_student, asked, frozen, held_out, tmp_path)
    assert before.lengths is not None
    assert after.lengths is not None
    assert before.lengths.mean > 5
    assert after.lengths.mean == 1.0
    assert after.lengths.truncated_share == 0.0
    assert before.frozen is not None
    assert after.frozen is not None
    assert after.frozen_digest == before.frozen_digest == frozen.digest
    assert after.frozen.rows == before.frozen.rows == 256
    assert after.frozen.reverse_kl > before.frozen.reverse_kl
    assert after.fresh is not None
    assert after.fresh.rows == 8
    # The teacher's frozen rows were there already: one small reply for its identity.
    assert asked.rows_asked[0] == (1, 1)
    assert sum(rows for rows, _ in asked.rows_asked) == 1 + 8


def test_rows_of_another_teacher_are_not_used(
    noisy_student: Student, link: TeacherLink, held_out: list[PromptItem], tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"rollouts": False, "samples": 2})
    frozen = freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 0, None)
    first = run(noisy_student, link, frozen, held_out, tmp_path, settings)
    owner = tmp_path / "teacher_rows.json"
    owner.write_text(owner.read_text().replace(link.info.identity.digest, "another"))
    np.save(tmp_path / "teacher_rows.npy", np.zeros((256, 320), np.float32))
    asked = Through(link)
    again = run(noisy_student, asked, frozen, held_out, tmp_path, settings)
    assert sum(rows for rows, _ in asked.rows_asked) == 256
    assert again.frozen == first.frozen
    assert again.fresh is None
    assert again.lengths is None
    assert len(again.samples) == 2


def test_rows_without_a_full_distribution_are_counted_and_left_out(
    noisy_student: Student, link: TeacherLink, held_out: list[PromptItem], tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"rollouts": False, "samples": 0})
    frozen = freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 0, None)
    whole = run(noisy_student, link, frozen, held_out, tmp_path / "a", settings).frozen
    lost = []

    def first_fails(real: TeacherLink, prompt: PromptItem, *rest: Any) -> ContinuationScores:
        if prompt.prompt_id == "p0":
            lost.append(len(rest[1]))
            return ContinuationScores(status=Status.NON_FINITE)
        return real.score_rows(prompt, *rest)

    part = run(
        noisy_student, Through(link, first_fails), frozen, held_out, tmp_path / "b", settings
    )
    assert whole is not None
    assert part.frozen is not None
    assert part.frozen.dropped_rows == sum(lost) > 0
    assert part.frozen.rows + part.frozen.dropped_rows == whole.rows
    assert part.frozen.reverse_kl != whole.reverse_kl

    def all_fail(*_: Any) -> ContinuationScores:
        return ContinuationScores(status=Status.NON_FINITE)

    with pytest.raises(LsmError, match="none of the teacher's 256 rows"):
        run(noisy_student, Through(link, all_fail), frozen, held_out, tmp_path / "c", settings)


def test_rows_of_a_response_that_the_teacher_refuses_are_counted_and_left_out(
    noisy_student: Student,
    link: TeacherLink,
    held_out: list[PromptItem],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such as one with an id that has no row at the teacher."""
    settings = SETTINGS.model_copy(update={"rollouts": False, "samples": 0})
    frozen = freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 0, None)

    def beyond(
        real: TeacherLink, prompt: PromptItem, response: Int32, *rest: Any
    ) -> ContinuationScores:
        if prompt.prompt_id == held_out[0].prompt_id:
            response = np.full_like(response, 357)
        return real.score_rows(prompt, response, *rest)

    refuses = Through(link, beyond)
    lost = sum(len(c.rows) for c in frozen.continuations if c.prompt_id == held_out[0].prompt_id)
    for _ in range(2):  # the second time from the cache
        found = run(noisy_student, refuses, frozen, held_out, tmp_path, settings).frozen
        assert found is not None
        assert (found.rows, found.dropped_rows) == (256 - lost, lost)
        assert lost > 0
    assert refuses.rows_asked[-2:] == [(1, 1), (1, 1)], "of the first piece that is not refused"
    assert f"{lost} rows are left out (dropped_rows)" in caplog.text
    assert "357" in caplog.text


def test_a_student_that_is_not_finite_is_an_error(
    noisy_student: Student, link: TeacherLink, held_out: list[PromptItem], tmp_path: Path
) -> None:
    frozen = freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 0, None)
    with torch.no_grad():
        noisy_student.head.weight[7] = float("nan")
    with pytest.raises(LsmError, match="student's logits are not finite") as caught:
        run(noisy_student, link, frozen, held_out, tmp_path)
    assert caught.value.reason == "NON_FINITE"


def test_a_sample_shows_the_token_that_completed_a_stop_string(
    same_student: Student, link: TeacherLink, held_out: list[PromptItem], tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"frozen_rows": 0, "max_new_tokens": 60})
    rollout = ROLLOUT.model_copy(update={"stop_strings": ("e", "t", "a", " ")})
    frozen = freeze_continuations(same_student, held_out, settings, rollout, 0, None)
    found = evaluate(
        same_student, link, frozen, held_out, settings, rollout, seed=0, cache=tmp_path, acting=None
    )
    ended = [sample.response for sample in found.samples if sample.finished]
    assert ended
    assert all(any(string in response for string in rollout.stop_strings) for response in ended)


def test_a_service_without_full_distributions_is_refused(
    noisy_student: Student, link: TeacherLink, held_out: list[PromptItem], tmp_path: Path
) -> None:
    frozen = freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 0, None)
    link.info = dataclasses.replace(link.info, max_top_k=64)
    with pytest.raises(ConfigurationError, match=r"limits\.max_top_k to 320"):
        run(noisy_student, link, frozen, held_out, tmp_path)


def test_other_held_out_prompts_are_refused(
    noisy_student: Student, link: TeacherLink, held_out: list[PromptItem], tmp_path: Path
) -> None:
    frozen = freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 0, None)
    with pytest.raises(ConfigurationError, match="not those of the frozen evaluation"):
        run(noisy_student, link, frozen, held_out[::-1], tmp_path)


def test_files_give_back_what_was_written(
    noisy_student: Student, link: TeacherLink, held_out: list[PromptItem], tmp_path: Path
) -> None:
    frozen = freeze_continuations(noisy_student, held_out, SETTINGS, ROLLOUT, 0, None)
    found = run(noisy_student, link, frozen, held_out, tmp_path)
    save_evaluation(found, tmp_path / "before.json")
    assert load_evaluation(tmp_path / "before.json") == found


def test_full_rows_by_id() -> None:
    scores = ContinuationScores(
        rows=Rows(
            support=Support(
                np.array([[2, 0, 1], [1, 2, -1]], np.int32),
                np.array([[-0.5, -1.0, -2.0], [-0.1, -3.0, 0.0]], np.float32),
                np.array([3, 2], np.int32),
            ),
        )
    )
    rows = dense(scores, 2, 3)
    assert rows.finite.tolist() == [True, False]
    assert rows.log_probs[0].tolist() == [-1.0, -2.0, -0.5]
    assert rows.log_probs[1].tolist() == pytest.approx([-np.inf, -0.1, -3.0])


def test_divergence_by_hand() -> None:
    pi = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]], dtype=torch.float64)
    found = row_divergence(pi.log() + 7.0, q.log())
    assert found.reverse_kl[0].item() == pytest.approx(0.25 * np.log(2))
    assert found.forward_kl[0].item() == pytest.approx(0.25 * np.log(2))
    assert found.reverse_kl[1].item() == pytest.approx(0.2 * np.log(0.5) + 0.8 * np.log(4 / 3))
    assert found.agrees.tolist() == [False, True]
