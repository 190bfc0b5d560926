"""No single row ends a run: what one side refuses of a prompt or of a response is told before
the first step, or left out and counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import EngineError, InvalidRequestError
from teacher_proto.program.checks import Checks
from teacher_proto.types import ContinuationScores, ScoreReply, ScoreRequest, Status

from student_trainer.commands.doctor import examine
from student_trainer.data import PromptOrder, load_prompts
from student_trainer.data.progress import told
from student_trainer.distributed.world import ALONE, World
from student_trainer.loop import TrainingLoop
from student_trainer.rollout.engine import make_engine
from student_trainer.run.directory import RunDirectory, append_metrics
from student_trainer.settings.teacher import TeacherSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.reader import Judgement, Reader
from student_trainer.startup.start import Start
from student_trainer.startup.steps import STEPS
from student_trainer.startup.teacher import tokenizer
from student_trainer.student.model import Student, load_student
from student_trainer.teacher.left_out import REFUSED, is_left_out
from student_trainer.teacher.link import TeacherLink
from student_trainer.teacher.teachers import Teachers
from student_trainer.train import train
from student_trainer.update.updater import NothingUsableError
from tests.support.replies import make_reply
from tests.support.scripted_teacher import serving_in_thread
from tests.trainer.conftest import REFUSES
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.processes import Server
from tests.trainer.test_pipeline import of_scripted_teacher
from tests.trainer.test_run import in_directory
from tests.trainer.test_update import Case

MakeConfig = Callable[..., TrainConfig]
PLAIN = "the sun", "a day was", "The capital", "user asks", "a sun"


def write_chats(path: Path, texts: Any) -> Path:
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(make_config: MakeConfig, run_server: Server, tmp_path: Path) -> MakeConfig:
    def make(*texts: str, **sections: dict[str, Any]) -> TrainConfig:
        write_chats(tmp_path / "prompts.jsonl", texts)
        teacher = {"address": run_server.address, "name": "strict", **sections.pop("teacher", {})}
        every = {"every": 1, **sections.pop("checkpoint", {})}
        return make_config(teacher=teacher, checkpoint=every, **sections)

    return make


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def finding(config: TrainConfig, name: str) -> tuple[str, str]:
    """Status and detail of one of the doctor's checks; those after it are not made."""
    checks = Checks()
    with Start(config) as start:
        for step in STEPS:
            examine(checks, step, start)
            if step.name == name:
                break
    found = checks.findings[-1]
    return found.status, f"{found.detail} {found.fix}"


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ("my secret", "data.refused", "the teacher refuses 1 of 6 prompts"),
        ("a long day", "data.over_long", "the teacher reads as too long 1 of 6 prompts"),
    ],
)
def test_a_prompt_that_the_teacher_cannot_read_is_told_before_step_1_or_left_out(
    config: MakeConfig, tmp_path: Path, text: str, key: str, what: str
) -> None:
    texts = (*PLAIN[:2], text, *PLAIN[2:])
    strict = config(*texts)
    with pytest.raises(Exception, match=what) as caught:
        train(strict)
    assert "prompts.jsonl, line 3" in str(caught.value)
    assert f'{key} = "drop"' in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "before step 1"
    status, told_by_doctor = finding(strict, "readings")
    assert status == "failed"
    assert what in told_by_doctor
    section, _, name = key.partition(".")
    settings = config(*texts, **{section: {name: "drop"}}, run={"steps": 4})
    status, told_by_doctor = finding(settings, "readings")
    assert status == "ok"
    assert "left out 1 of 6 train prompts" in told_by_doctor
    assert "prompts.jsonl, line 3" in told_by_doctor
    run = train(settings)
    assert [line["refused_rollouts"] for line in lines(run)] == [0, 0, 0, 0]
    more = in_directory(settings, run, steps=5)
    train(more)
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5]


def test_a_run_that_such_a_prompt_had_ended_goes_on_without_it(
    config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a run of before the check: the step at which the prompt's turn comes is made."""
    texts = ("my secret", *PLAIN[:3])
    settings = config(*texts, rollout={"prompts_per_step": 4}, run={"steps": 1})
    student = load_student(settings.student)
    prompts = load_prompts(settings.data, student.tokenizer)
    with TeacherLink(settings.named_teachers["default"], student, run="test") as link:
        loop = TrainingLoop(
            settings,
            student,
            make_engine(student, settings.rollout),
            Teachers(settings, {"default": link}),
            prompts,
            RunDirectory(tmp_path / "run"),
        )
        line = loop.step()
        assert line["refused_rollouts"] == settings.rollout.group_size
        assert line["tokens_used"] > 0
        assert "2 of 8 responses are left out" in caplog.text
        assert "because the teacher refuses it: " in caplog.text
        assert "no secrets" in caplog.text
        loop.save()
    steps = {"rollout": {"prompts_per_step": 4}, "run": {"steps": 2}}
    run = train(config(*texts, data={"refused": "drop"}, **steps))
    assert [found["refused_rollouts"] for found in lines(run)] == [0], "step 1 had no line"


def test_held_out_prompts_that_the_teacher_cannot_read_are_left_out_of_the_evaluation(
    config: MakeConfig, tmp_path: Path
) -> None:
    held_out = write_chats(tmp_path / "held.jsonl", ["one secret", "a long day", "fine", "too"])
    sections: dict[str, Any] = {
        "data": {"held_out": str(held_out), "refused": "drop", "over_long": "drop"},
        "evaluation": {"prompts": 2, "frozen_rows": 0, "max_new_tokens": 8, "top_k": 16},
        "run": {"steps": 1},
    }
    run = train(config(*PLAIN, **sections))
    assert json.loads((run / "summary.json").read_text())["held_out_prompts"] == 2
    sections["evaluation"]["prompts"] = 3
    status, told_by_doctor = finding(config(*PLAIN, **sections), "readings")
    assert status == "failed"
    assert "it asks for 3 prompts and 2 are held out" in told_by_doctor


def test_a_response_that_is_too_long_in_the_teachers_tokens_is_left_out_and_counted(
    config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(
        *PLAIN,
        teacher={"name": "short"},
        data={"max_prompt_tokens": 24},
        rollout={"max_new_tokens": 32},
        run={"steps": 2},
    )
    run = train(settings)
    counted = [line["refused_rollouts"] for line in lines(run)]
    assert sum(counted) > 0, "the case is there"
    assert counted[0] < 6, "others of the step are learnt from"
    assert lines(run)[0]["tokens_used"] > 0
    assert "engine.max_length" in caplog.text
    assert "times as long in the teacher's tokens" in caplog.text


@pytest.mark.parametrize("name", ["short", "default"])
def test_responses_are_as_long_on_both_sides_of_one_tokenizer(
    config: MakeConfig, name: str
) -> None:
    """Prompts that the teacher's template makes longer say nothing of them."""
    with Start(config(*PLAIN, teacher={"name": name})) as start:
        start.student = load_student(start.config.student)
        tokenizer(start)
        longer = Judgement(longest=20, student_tokens=10, teacher_tokens=20)
        reader = Reader.of(start, "default")
        reader.judged = longer
        reader.warn_of_long_responses(room=24)
        assert reader.link.realigned == (name == "short")
        assert len([w for w in start.warnings if "2.00 times as long" in w]) == (name == "short")


@pytest.mark.parametrize(
    ("error", "of_a_row"),
    [
        (InvalidRequestError("no", where="prompt.chat"), True),
        (InvalidRequestError("no", where="continuations[0]", reason="LIMIT_EXCEEDED"), True),
        (InvalidRequestError("no", where="body", reason="REQUEST_TOO_LARGE"), True),
        (EngineError("no", reason="OUT_OF_MEMORY"), True),
        (EngineError("no"), False),
        (InvalidRequestError("no", where="top_k"), False),
    ],
)
def test_a_group_is_asked_again_response_by_response_where_one_is_refused(
    make_config: MakeConfig, student: Student, error: Exception, of_a_row: bool
) -> None:
    rollouts, identity, server = of_scripted_teacher(make_config, student)
    group = [replace(r, token_ids=r.token_ids[:n]) for n, r in enumerate(rollouts[:2], 3)]

    with serving_in_thread() as (teacher, address):
        refuse = teacher.fail(error)

        async def answer(request: ScoreRequest, context: Any) -> ScoreReply:
            if any(len(c.token_ids) == 4 for c in request.continuations):
                return await refuse(request, context)
            return make_reply(request, identity=identity)

        teacher.info = server
        teacher.script = [answer] * 4
        with TeacherLink(TeacherSettings(address=address), student, run="test") as link:
            future = link.submit_rollouts(group, 4, 1.0)
            if not of_a_row:
                with pytest.raises(type(error)):
                    future.result(60)
                return
            first, second = future.result(60)
    assert first.status is Status.OK
    assert is_left_out(second)


def test_refused_responses_of_a_teacher_with_the_same_tokenizer_are_left_out(
    make_config: MakeConfig, tiny_model_dir: Path
) -> None:
    case = Case(make_config(), LocalTeacher(tiny_model_dir))
    refused = ContinuationScores(Status.NOT_REALIGNED, f"{REFUSED}too long")
    case.scores[2] = refused
    figures, _ = case.gradients()
    assert figures.refused == 1
    assert figures.unusable == len(case.rollouts[2].token_ids)
    assert figures.used == figures.rows - figures.unusable
    case.scores = [refused] * len(case.rollouts)
    with pytest.raises(NothingUsableError, match="none of"):
        case.gradients()


def test_a_step_without_a_usable_row_changes_nothing_and_is_counted(
    config: MakeConfig, tmp_path: Path
) -> None:
    settings = config(
        "my secret", *PLAIN[:2],
        rollout={"prompts_per_step": 1}, run={"steps": 3}, optimizer={"schedule": "linear"},
    )  # fmt: skip
    student = load_student(settings.student)
    prompts = load_prompts(settings.data, student.tokenizer)
    order = PromptOrder(settings.run.seed, 3).take(0, 3)
    with TeacherLink(settings.named_teachers["default"], student, run="test") as link:
        loop = TrainingLoop(
            settings,
            student,
            make_engine(student, settings.rollout),
            Teachers(settings, {"default": link}),
            prompts,
            RunDirectory(tmp_path / "run"),
        )
        made = [loop.step() for _ in range(3)]
    empty = order.index(0)
    assert [line["empty_updates"] for line in made] == [int(n == empty) for n in range(3)]
    assert made[empty]["loss"] is None
    assert made[empty]["grad_norm"] is None
    assert loop.state.updates == 3, "the learning rate goes on"


class Told(World):
    """Another rank, which rank 0 tells of two steps."""

    def from_first(self, value: object) -> object:
        assert value is None, "rank 0 alone reads"
        return 2


def test_steps_without_a_usable_row_are_counted_over_a_resume(
    config: MakeConfig, tmp_path: Path
) -> None:
    settings = config(
        "my secret", "a secret", rollout={"prompts_per_step": 1}, run={"steps": 3}
    )  # fmt: skip
    student = load_student(settings.student)
    prompts = load_prompts(settings.data, student.tokenizer)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    with TeacherLink(settings.named_teachers["default"], student, run="test") as link:

        def made(world: World = ALONE) -> TrainingLoop:
            engine = make_engine(student, settings.rollout)
            teachers = Teachers(settings, {"default": link})
            return TrainingLoop(settings, student, engine, teachers, prompts, run, world=world)

        loop = made()
        for _ in range(2):
            append_metrics(run.metrics, loop.step())
        with pytest.raises(NothingUsableError):
            loop.step()
        assert loop.updater.updates == loop.state.updates == 2
        loop.save_unless_saved()
        again = made()
        again.restore(run.checkpoints / "step-000002")
        with pytest.raises(NothingUsableError):
            again.step()
        # Another rank is told, and does not read what it may see late.
        run.metrics.write_text("not JSON, to a rank that reads it\n")
        other = made(Told(rank=1))
        other.restore(run.checkpoints / "step-000002")
        assert other._empty_steps == 2


def test_a_step_is_empty_when_all_its_updates_are(config: MakeConfig, tmp_path: Path) -> None:
    texts = ["the sun", "the sun"]
    texts[PromptOrder(0, 2).take(0, 1)[0]] = "my secret"
    settings = config(
        *texts,
        rollout={"prompts_per_step": 2},
        run={"steps": 1, "seed": 0},
        optimizer={"updates_per_batch": 2},
    )
    student = load_student(settings.student)
    prompts = load_prompts(settings.data, student.tokenizer)
    with TeacherLink(settings.named_teachers["default"], student, run="test") as link:
        loop = TrainingLoop(
            settings,
            student,
            make_engine(student, settings.rollout),
            Teachers(settings, {"default": link}),
            prompts,
            RunDirectory(tmp_path / "run"),
        )
        line = loop.step()
    assert (line["empty_updates"], loop.state.updates) == (1, 2)
    assert line["loss"] is not None


def test_a_row_that_the_students_template_refuses_is_an_error_or_left_out(
    config: MakeConfig, student_model_dir: Path, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(REFUSES + (student_model_dir / "chat_template.jinja").read_text())
    own = {"chat_template": str(template)}
    texts = (*PLAIN[:2], "my secret", *PLAIN[2:])
    status, detail = finding(config(*texts, student=own), "data")
    assert status == "failed"
    assert "line 3: the chat template failed: no secrets" in detail
    assert 'data.refused = "drop"' in detail
    settings = config(*texts, student=own, data={"refused": "drop"}, run={"steps": 1})
    status, detail = finding(settings, "data")
    assert "5 prompts to train on, 0 held out, 1 dropped" in detail


def test_an_empty_prompt_is_an_error_or_left_out_and_counted(
    config: MakeConfig, tmp_path: Path, student_model_dir: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    own = {"chat_template": str(template)}
    texts = (*PLAIN[:2], "", *PLAIN[2:])
    status, detail = finding(config(*texts, student=own), "data")
    assert status == "failed"
    assert "line 3: the prompt is empty" in detail
    assert 'data.refused = "drop"' in detail
    dropping = {"refused": "drop"}
    settings = config(*texts, student=own, data=dropping, run={"steps": 1})
    status, detail = finding(settings, "data")
    assert "5 prompts to train on, 0 held out, 1 dropped" in detail
    status, detail = finding(config("", "", student=own, data=dropping), "data")
    assert "all 2 are empty or refused by the chat template" in detail


def test_leaving_prompts_out_moves_no_other_prompt() -> None:
    every = PromptOrder(3, 7).take(0, 21)
    some = PromptOrder(3, 7, left_out=frozenset({2, 5})).take(0, 21)
    assert not {2, 5} & set(some)
    assert [b for a, b in zip(every, some, strict=True) if a not in (2, 5)] == [
        a for a in every if a not in (2, 5)
    ]
    assert PromptOrder(3, 7, left_out=frozenset({2, 5})).take(9, 4) == some[9:13]


def test_long_reading_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert list(told(range(3), "rows are read", every=0.0)) == [0, 1, 2]
        assert list(told(range(3), "rows", total=3, every=1e9)) == [0, 1, 2]
    assert caplog.messages == ["1 rows are read", "2 rows are read"]
