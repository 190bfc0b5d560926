"""The first tokens of a response are scored and learnt from, and the teacher reads no more."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from student_trainer.data import load_prompts
from student_trainer.pipeline import Batch, Pipeline
from student_trainer.rollout.engine import make_engine
from student_trainer.rollout.generate import generate
from student_trainer.settings.rollout import ScoringSettings
from student_trainer.settings.teacher import TeacherSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start, make
from student_trainer.startup.steps import STEPS
from student_trainer.student.model import load_student
from student_trainer.teacher.link import TeacherLink
from student_trainer.teacher.teachers import Teachers
from student_trainer.train import train
from student_trainer.update.estimator import estimator_notes
from tests.trainer.conftest import write_prompts
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.processes import Server
from tests.trainer.test_pipeline import Recorder
from tests.trainer.test_run import resumed_exactly
from tests.trainer.test_update import Case, assert_close, reference

MakeConfig = Callable[..., TrainConfig]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 1.0])
def test_a_share_counts_as_it_is_written(share: float) -> None:
    settings = ScoringSettings(scored_share=share)
    exact = Fraction(str(share))
    for length in range(1, 200):
        assert settings.scored(length) == -((-exact * length) // 1)


def test_the_smaller_of_both_counts_and_something_is_always_scored() -> None:
    both = ScoringSettings(scored_share=0.5, max_scored_tokens=4)
    assert [both.scored(n) for n in (1, 2, 3, 7, 8, 9, 100)] == [1, 1, 2, 4, 4, 4, 4]
    assert [ScoringSettings().scored(n) for n in (1, 100)] == [1, 100]
    assert ScoringSettings(scored_share=1e-9).scored(5) == 1


@pytest.mark.parametrize(
    "scoring",
    [
        {"scored_share": 0},
        {"scored_share": 1.5},
        {"scored_share": -0.1},
        {"scored_share": float("nan")},
        {"max_scored_tokens": 0},
    ],
)
def test_what_would_leave_nothing_is_refused(
    make_config: MakeConfig, scoring: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match=rf"scoring\.{next(iter(scoring))}"):
        make_config(scoring=scoring)


def test_the_teacher_is_asked_for_the_first_tokens_alone(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    config = make_config(scoring={"scored_share": 0.3}, rollout={"max_new_tokens": 40})
    case = Case(config, teacher)
    recorder, other = Recorder(teacher), Recorder(teacher)
    prompts = [rollout.prompt for rollout in case.rollouts[::2]]

    def filled(config: TrainConfig, link: Any) -> Batch:
        engine = make_engine(case.student, config.rollout)
        teachers = Teachers(config, {"default": link})
        return Pipeline(config, case.student, engine, teachers, prompts).fill(1, 0, 0)

    batch = filled(config, recorder)
    whole = filled(make_config(rollout={"max_new_tokens": 40}), other)
    for rollout, same, part in zip(batch.rollouts, whole.rollouts, batch.parts, strict=True):
        np.testing.assert_array_equal(rollout.token_ids, same.token_ids, "written as before")
        count = -(-3 * len(rollout.token_ids) // 10)
        np.testing.assert_array_equal(part.token_ids, rollout.token_ids[:count])
        np.testing.assert_array_equal(part.log_probs, rollout.log_probs[:count])
        assert (part.length, part.finished) == (len(rollout.token_ids), rollout.finished)
        assert not part.ended_by_token(range(320)), "its text goes on"
    sent = sorted(tuple(r.token_ids) for group in recorder.sent for r in group)
    assert sent == sorted(tuple(part.token_ids) for part in batch.parts)
    assert any(rollout.ended_by_token(case.student.terminators) for rollout in batch.rollouts)


def test_the_loss_is_that_of_the_first_tokens(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = Case(make_config(), teacher)
    case.rollouts = [r.first(1 + len(r.token_ids) // 3) for r in case.rollouts]
    case.scores = teacher.score(case.rollouts, 16)
    figures, gradients = case.gradients()
    loss, expected = reference(
        load_student(case.config.student), case.rollouts, case.scores, "token"
    )
    assert figures.losses == [pytest.approx(loss, abs=1e-6)]
    assert_close(gradients, expected)


def test_a_part_of_an_answer_that_ends_with_a_terminator_has_not_ended(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = Case(make_config(), teacher)
    end = case.student.terminators[0]
    tokens = np.array([7, end, 9, end], np.int32)
    whole = replace(case.rollouts[0], token_ids=tokens, log_probs=np.zeros(4, np.float32),
                    nucleus_mass=None, finished=True)  # fmt: skip
    assert whole.ended_by_token({end})
    assert not whole.first(2).ended_by_token({end})
    assert whole.first(4) is whole


def test_the_start_says_that_a_share_leaves_out_how_a_response_ends(
    make_config: MakeConfig,
) -> None:
    (note,) = estimator_notes(make_config(scoring={"scored_share": 0.5}))
    assert "when to stop" in note
    for scoring in ({}, {"scored_share": 1.0}, {"max_scored_tokens": 3}):
        assert estimator_notes(make_config(scoring=scoring)) == []


@pytest.mark.parametrize("scored", [None, 30])
def test_what_the_teacher_can_read_bounds_what_is_scored(
    make_config: MakeConfig, run_server: Server, tmp_path: Path, scored: int | None
) -> None:
    """The teacher ``short`` reads 56 tokens; the responses have up to 100."""
    write_prompts(tmp_path / "prompts.jsonl", ["the sun", "a day"])
    config = make_config(
        teacher={"address": run_server.address, "name": "short"},
        data={"max_prompt_tokens": 20},
        rollout={"max_new_tokens": 100},
        loss={"kind": "lsm", "top_k": 4},
        scoring={} if scored is None else {"max_scored_tokens": scored},
    )
    steps = [step for step in STEPS if step.name != "held out"]
    with Start(config) as start:
        if scored is None:
            with pytest.raises(Exception, match="its longest sequence: 56"):
                make(steps, start)
        else:
            make(steps, start)


def computed(server: Server) -> int:
    """Tokens that went through the teacher so far, as the service counts them."""
    with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    name = 'lsm_teacher_computed_tokens_total{teacher="default"}'
    found = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return sum(int(float(number)) for number in found)  # there is none before the first request


def test_the_service_computes_at_most_031_of_the_response_tokens(
    make_config: MakeConfig, run_server: Server, tiny_model_dir: Path, tmp_path: Path
) -> None:
    figures = {}
    for name, scoring in (("whole", {}), ("part", {"scored_share": 0.3})):
        config = make_config(
            tiny_model_dir,
            teacher={"address": run_server.address},
            scoring=scoring,
            run={"steps": 1, "output_dir": str(tmp_path / name)},
            rollout={"max_new_tokens": 200, "batch_size": 6},
            optimizer={"micro_batch_tokens": 600},
            pipeline={"send": "group"},
        )
        before = computed(run_server)
        (line,) = map(json.loads, (train(config) / "metrics.jsonl").read_text().splitlines())
        figures[name] = (computed(run_server) - before, line)
    (whole, all_of_it), (part, line) = figures["whole"], figures["part"]
    written = all_of_it["tokens"]
    assert written > 600
    prompts = whole - (written - 6)  # the last token of a response is never read
    assert 0 < prompts < 200
    assert "teacher_tokens_saved" not in all_of_it
    assert line["teacher_tokens_saved"] == written - line["tokens"]
    assert line["response_length_mean"] == all_of_it["response_length_mean"] == written / 6
    of_responses = (part - prompts) / written
    assert of_responses <= 0.31
    assert part < 0.5 * whole, "with the prompts"
    print(f"{of_responses:.4f} of {written} response tokens, {part / whole:.4f} with prompts")


@pytest.mark.parametrize("across", [False, True], ids=["one tokenizer", "across"])
def test_a_run_that_scores_in_part_resumes_exactly(
    make_config: MakeConfig,
    run_server: Server,
    foreign_student_dir: Path,
    student_model_dir: Path,
    tmp_path: Path,
    across: bool,
) -> None:
    sections: dict[str, Any] = {"loss": {"kind": "lsm", "support": "union", "top_k": 8}}
    if across:
        sections["loss"] = {"kind": "lsm", "top_k": 16, "masked_chunks": True}
    config = make_config(
        foreign_student_dir if across else student_model_dir,
        teacher={"address": run_server.address},
        checkpoint={"every": 1},
        pipeline={"staleness": 1},
        scoring={"scored_share": 0.5, "max_scored_tokens": 8},
        **sections,
    )
    run = resumed_exactly(config, tmp_path)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["teacher_tokens_saved"] > 0 for line in lines)
    assert all(line["tokens"] <= 6 * 8 for line in lines)


def test_rows_of_a_text_that_is_cut_are_those_of_the_whole_but_for_its_end(
    make_config: MakeConfig, run_server: Server, foreign_student_dir: Path
) -> None:
    """Across tokenizers: the chunks before the last one of the part are the whole's."""
    config = make_config(foreign_student_dir, rollout={"max_new_tokens": 40})
    student = load_student(config.student)
    prompts = load_prompts(config.data, student.tokenizer).train[:2]
    rollouts = generate(student, prompts, config.rollout, seed=0, step=1)
    settings = TeacherSettings(address=run_server.address)
    with TeacherLink(settings, student, run="test") as link:
        assert link.realigned
        for rollout in (r for r in rollouts if len(r.token_ids) > 8):
            part = rollout.first(len(rollout.token_ids) // 2)
            whole, cut = (link.submit_rollouts([r], 16, 1.0).result(60)[0] for r in (rollout, part))
            one, other = whole.realignment, cut.realignment
            assert one is not None
            assert other is not None
            settled = other.chunk_index < other.chunk_index[-1]
            count = int(settled.sum())
            assert 0 < count < len(part.token_ids)
            np.testing.assert_array_equal(one.chunk_index[:count], other.chunk_index[:count])
            np.testing.assert_allclose(
                one.chunk_log_likelihood[: other.chunk_index[-1]],
                other.chunk_log_likelihood[: other.chunk_index[-1]],
                atol=1e-4,
            )
