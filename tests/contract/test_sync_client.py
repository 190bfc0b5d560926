"""The blocking client against a real server in another thread."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from teacher_proto.client import TeacherClient
from teacher_proto.errors import (
    ConfigurationError,
    DeadlineError,
    InvalidRequestError,
    TeacherUnavailableError,
)
from teacher_proto.types import Level, TokenizerUpload

from tests.support.compare import same
from tests.support.replies import SERVER, make_reply, make_request
from tests.support.scripted_teacher import ScriptedTeacher, serving_in_thread

LONG = 60.0


@pytest.fixture
def served() -> Iterator[tuple[ScriptedTeacher, str]]:
    with serving_in_thread() as pair:
        yield pair


@pytest.fixture
def teacher(served: tuple[ScriptedTeacher, str]) -> ScriptedTeacher:
    return served[0]


@pytest.fixture
def client(served: tuple[ScriptedTeacher, str]) -> Iterator[TeacherClient]:
    with TeacherClient(served[1], run="run-1") as client:
        yield client


def test_every_method(client: TeacherClient, teacher: ScriptedTeacher) -> None:
    assert same(client.get_teacher(timeout=LONG), SERVER)
    request = make_request()
    assert same(client.score(request, timeout=LONG), make_reply(request))
    upload = TokenizerUpload("run-1", "hash", b"{}")
    assert client.register_tokenizer(upload, timeout=LONG) == {"default": Level.CROSS}
    assert teacher.uploads == [upload]


def test_errors_are_those_of_the_asynchronous_client(
    client: TeacherClient, teacher: ScriptedTeacher
) -> None:
    teacher.script = [
        teacher.fail(TeacherUnavailableError("draining")),
        teacher.fail(InvalidRequestError("bad", where="top_k")),
        teacher.never(),
    ]
    with pytest.raises(InvalidRequestError) as caught:
        client.score(make_request(), timeout=LONG)
    assert caught.value.where == "top_k"
    with pytest.raises(DeadlineError):
        client.score(make_request(), timeout=0.2)
    assert len(teacher.requests) == 3


def test_many_threads_at_once(client: TeacherClient) -> None:
    requests = [make_request(request_id=f"request-{index}") for index in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda request: client.score(request, timeout=LONG), requests))
    for request, reply in zip(requests, replies, strict=True):
        assert same(reply, make_reply(request))


def test_submitted_work_runs_side_by_side(client: TeacherClient, teacher: ScriptedTeacher) -> None:
    teacher.script = [teacher.never()]
    stuck = client.submit(make_request(request_id="stuck"), timeout=LONG)
    while not teacher.requests:
        client.get_teacher(timeout=LONG)
    others = [client.submit(make_request(request_id=str(i)), timeout=LONG) for i in range(5)]
    assert [future.result(LONG).request_id for future in others] == list("01234")
    assert not stuck.done()
    assert stuck.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        stuck.result(LONG)
    while not teacher.cancelled.is_set():
        client.get_teacher(timeout=LONG)


def test_close_ends_what_is_in_flight(client: TeacherClient, teacher: ScriptedTeacher) -> None:
    teacher.script = [teacher.never()]
    future = client.submit(make_request(), timeout=LONG)
    while not teacher.requests:
        client.get_teacher(timeout=LONG)
    client.close()
    with pytest.raises(TeacherUnavailableError) as caught:
        future.result(0)
    assert caught.value.reason == "CLOSED"
    assert not client._thread.is_alive()
    with pytest.raises(TeacherUnavailableError, match="closed"):
        client.score(make_request(), timeout=LONG)
    client.close()


def test_close_of_a_client_that_never_called() -> None:
    client = TeacherClient("127.0.0.1:1", run="r")
    client.close()
    assert not client._thread.is_alive()


def test_callbacks_may_close_but_not_block(client: TeacherClient) -> None:
    caught: list[BaseException] = []
    done = threading.Event()

    def callback(_: object) -> None:
        try:
            client.score(make_request(), timeout=LONG)
        except ConfigurationError as error:
            caught.append(error)
        client.close()
        done.set()

    client.submit(make_request(), timeout=LONG).add_done_callback(callback)
    assert done.wait(LONG)
    assert "callback" in str(caught[0])
    client._thread.join(LONG)
    assert not client._thread.is_alive()


def test_replies_are_checked_against_the_teacher_that_was_described(
    client: TeacherClient, teacher: ScriptedTeacher
) -> None:
    narrow = dataclasses.replace(SERVER.teachers[0], vocabulary_size=2)
    teacher.info = dataclasses.replace(SERVER, teachers=(narrow,))
    client.get_teacher(timeout=LONG)
    with pytest.raises(ValueError, match=r"not in 0\.\.1"):
        client.score(make_request(), timeout=LONG)


FORKED = """
import os, sys
from teacher_proto.client import TeacherClient
from teacher_proto.errors import ConfigurationError
client = TeacherClient(sys.argv[1], run="r")
client.get_teacher(timeout=60)
child = os.fork()
if child == 0:
    try:
        client.get_teacher(timeout=60)
    except ConfigurationError as error:
        client.close()
        os._exit(42 if error.reason == "USED_AFTER_FORK" else 1)
    os._exit(2)
_, status = os.waitpid(child, 0)
client.get_teacher(timeout=60)
client.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


FORKED_LOOP = """
import asyncio, os, sys
from teacher_proto.client import AsyncTeacherClient
from teacher_proto.errors import ConfigurationError
client = AsyncTeacherClient(sys.argv[1], run="r")
child = os.fork()
if child == 0:
    try:
        asyncio.run(client.get_teacher(timeout=60))
    except ConfigurationError as error:
        os._exit(42 if error.reason == "USED_AFTER_FORK" else 1)
    os._exit(2)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("program", [FORKED, FORKED_LOOP], ids=["blocking", "asynchronous"])
def test_a_forked_child_is_told_to_make_its_own(
    served: tuple[ScriptedTeacher, str], program: str
) -> None:
    ended = subprocess.run([sys.executable, "-c", program, served[1]], timeout=120, check=False)
    assert ended.returncode == 42


FORGOTTEN = """
import sys
from teacher_proto.client import TeacherClient
client = TeacherClient(sys.argv[1], run="r")
client.get_teacher(timeout=60)
print("asked")
"""


def test_a_program_ends_though_its_client_was_never_closed(
    served: tuple[ScriptedTeacher, str],
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORGOTTEN, served[1]],
        timeout=120,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (0, "asked\n")
    assert "Traceback" not in ended.stderr
