"""The start asks every teacher the same twice, and says or refuses that the answers differ."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto import codec
from teacher_proto.errors import ContractMismatchError
from teacher_proto.rows import required
from teacher_proto.types import ScoreReply, ScoreRequest
from teacher_proto.v1 import score_pb2

from student_trainer.data import load_prompts
from student_trainer.settings.teacher import TeacherSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.repeats import repeats
from student_trainer.startup.start import Start
from student_trainer.student.model import Student, load_student
from student_trainer.teacher import replicas
from student_trainer.teacher.teachers import Teachers
from tests.support.replies import make_reply
from tests.support.scripted_teacher import ScriptedTeacher, serving_in_thread
from tests.trainer.processes import Server, serve
from tests.trainer.test_pipeline import of_scripted_teacher

MakeConfig = Callable[..., TrainConfig]


def moved(reply: ScoreReply, by: float) -> ScoreReply:
    """The reply with other log-probabilities."""
    (found,) = reply.results
    sampled = required(found.rows.sampled, "sampled token")
    support = required(found.rows.support, "support")
    tail = required(found.rows.log_tail, "log_tail")
    log_probs = support.log_probs - np.float32(by)
    rest = np.log1p(-np.exp(log_probs.astype(np.float64)).sum(-1)).astype(np.float32)
    rows = replace(
        found.rows,
        sampled=replace(sampled, values=sampled.values - np.float32(by)),
        support=replace(support, log_probs=log_probs),
        log_tail=replace(tail, values=rest),
    )
    return replace(reply, results=(replace(found, rows=rows),))


class Room:
    """A start whose teacher follows a script."""

    def __init__(self, start: Start, teacher: ScriptedTeacher, identity: Any) -> None:
        self.start = start
        self.teacher = teacher
        self.identity = identity

    def answer(self, by: float = 0.0) -> Any:
        async def step(request: ScoreRequest, context: Any) -> ScoreReply:
            return moved(make_reply(request, identity=self.identity), by)

        return step


@pytest.fixture
def room(make_config: MakeConfig, student: Student) -> Callable[..., Any]:
    @contextmanager
    def made(*, deterministic: bool) -> Iterator[Room]:
        rollouts, identity, server = of_scripted_teacher(make_config, student)
        infos = tuple(replace(one, deterministic=deterministic) for one in server.teachers)
        with serving_in_thread() as (teacher, address):
            teacher.info = replace(server, teachers=infos)
            config = make_config(teacher={"address": address}, loss={"top_k": 4})
            prompts = load_prompts(config.data, student.tokenizer)
            known = rollouts[0].token_ids  # ids that the scripted teacher has
            train = [replace(prompt, token_ids=known) for prompt in prompts.train]
            with Start(config) as start, Teachers.connect(config, student) as teachers:
                start.teachers = teachers
                start.prompts = replace(prompts, train=train)
                yield Room(start, teacher, identity)

    return made


@pytest.mark.parametrize("deterministic", [True, False])
def test_equal_answers_are_told_and_are_computed_twice(room: Any, deterministic: bool) -> None:
    with room(deterministic=deterministic) as here:
        here.teacher.script = [here.answer(), here.answer()]
        assert repeats(here.start) == "16 tokens scored twice lie 0 nats apart"
        assert here.start.warnings == []
        sent = [codec.decode_request(score_pb2.ScoreRequest.FromString(one))
                for one in here.teacher.requests]  # fmt: skip
        first, second = sent
        assert first.request_id != second.request_id, "else the service answers what it kept"
        assert replace(first, request_id="").continuations[0].token_ids.tolist() == (
            second.continuations[0].token_ids.tolist()
        )


def test_answers_that_differ_are_warned_of_with_their_difference(room: Any) -> None:
    with room(deterministic=False) as here:
        here.teacher.script = [here.answer(), here.answer(0.25)]
        assert "lie 0.25 nats apart" in repeats(here.start)
        (warning,) = here.start.warnings
        assert "scored again differ by up to 0.25 nats" in warning


def test_a_teacher_that_says_to_be_deterministic_and_is_not_is_refused(room: Any) -> None:
    with room(deterministic=True) as here:
        here.teacher.script = [here.answer(), here.answer(1e-6)]
        with pytest.raises(ContractMismatchError, match="says that it is deterministic") as caught:
            repeats(here.start)
        assert caught.value.reason == "SCORES_DISAGREE"
        assert caught.value.where == "teacher.name"


def test_every_address_of_the_service_is_asked(room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with room(deterministic=False) as here, serving_in_thread() as (replica, second):
        replica.info = here.teacher.info
        first = here.start.config.named_teachers["default"].address
        silent = "127.0.0.1:1"
        monkeypatch.setattr(replicas, "addresses", lambda settings: [first, second, silent])
        here.teacher.script = [here.answer() for _ in range(3)]
        replica.script = [here.answer(0.5)]
        found = repeats(here.start)
        assert found == "16 tokens scored 4 times at 2 addresses lie 0.5 nats apart"
        assert [f"{silent}, an address" in w for w in here.start.warnings] == [True, False]
        other = replace(here.identity, digest="other")

        async def another(request: ScoreRequest, context: Any) -> ScoreReply:
            return make_reply(request, identity=other)

        here.teacher.script = [here.answer() for _ in range(3)]
        replica.script = [another]
        with pytest.raises(ContractMismatchError, match="is now other, expected was"):
            repeats(here.start)


def test_a_replica_learns_a_tokenizer_that_is_not_the_teachers(
    make_config: MakeConfig,
    run_server: Server,
    foreign_student_dir: Path,
    other_tokenizer_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is registered at the address that the run is connected to, and nowhere else yet."""
    named = {"address": run_server.address, "name": "other"}
    config = make_config(model=foreign_student_dir, teacher=named)
    student = load_student(config.student)
    with (
        serve(tmp_path / "replica", other=other_tokenizer_model_dir) as replica,
        Start(config) as start,
        Teachers.connect(config, student) as teachers,
    ):
        both = [run_server.address, replica.address]
        monkeypatch.setattr(replicas, "addresses", lambda settings: both)
        start.teachers = teachers
        start.prompts = load_prompts(config.data, student.tokenizer)
        assert "scored 4 times at 2 addresses lie 0 nats apart" in repeats(start)
    assert start.warnings == []


def test_addresses_are_those_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        assert (host, port) == ("teachers.test", 50051)
        return [(0, 0, 0, "", ("10.0.0.1", port)), (0, 0, 0, "", ("fd00::1", port, 0, 0)),
                (0, 0, 0, "", ("10.0.0.1", port))]  # fmt: skip

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    several = TeacherSettings(address="teachers.test:50051")
    assert replicas.addresses(several) == ["10.0.0.1:50051", "[fd00::1]:50051"]
    encrypted = several.model_copy(update={"tls": True})
    assert replicas.addresses(encrypted) == ["teachers.test:50051"]
    assert replicas.addresses(TeacherSettings(address="127.0.0.1:9")) == ["127.0.0.1:9"]
