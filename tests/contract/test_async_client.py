"""The asynchronous client against a real server that follows a script."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from teacher_proto import codec
from teacher_proto.client import AsyncTeacherClient
from teacher_proto.client.async_client import SERVICE
from teacher_proto.errors import (
    ConfigurationError,
    ContractMismatchError,
    DeadlineError,
    EngineError,
    InvalidRequestError,
    LsmError,
    OverloadedError,
    PoisonedReplyError,
    TeacherUnavailableError,
)
from teacher_proto.types import Continuation, Level, ScoreReply, Segment, TokenizerUpload

from tests.support.compare import same
from tests.support.replies import IDENTITY, SERVER, ids, make_reply, make_request, with_arrays
from tests.support.scripted_teacher import ScriptedTeacher, serving

LONG = 60.0


@pytest.fixture
def teacher() -> ScriptedTeacher:
    return ScriptedTeacher()


@pytest.fixture
async def client(teacher: ScriptedTeacher) -> AsyncIterator[AsyncTeacherClient]:
    async with (
        serving(teacher) as address,
        AsyncTeacherClient(address, run="run-1") as client,
    ):
        yield client


async def test_scores_and_information(client: AsyncTeacherClient) -> None:
    assert same(await client.get_teacher(timeout=LONG), SERVER)
    request = make_request()
    assert same(await client.score(request, timeout=LONG), make_reply(request))


async def test_a_request_without_a_run_is_sent_for_the_clients(
    teacher: ScriptedTeacher, client: AsyncTeacherClient
) -> None:
    await client.score(make_request(run=""), timeout=LONG)
    await client.score(make_request(run="own"), timeout=LONG)
    assert [codec.decode_request(data).run for data in teacher.requests] == ["run-1", "own"]


@pytest.mark.parametrize(
    "error",
    [
        TeacherUnavailableError("draining"),
        OverloadedError("full", retry_after=0.01),
        EngineError("restarting", retry_after=0.01),
    ],
)
async def test_the_same_bytes_are_sent_until_they_are_answered(
    teacher: ScriptedTeacher, client: AsyncTeacherClient, error: LsmError
) -> None:
    teacher.script = [teacher.fail(error)] * 3
    request = make_request()
    assert same(await client.score(request, timeout=LONG), make_reply(request))
    assert len(teacher.requests) == 4
    assert len(set(teacher.requests)) == 1


async def test_a_call_that_the_server_cancelled_is_sent_again(
    teacher: ScriptedTeacher, client: AsyncTeacherClient
) -> None:
    teacher.script = [teacher.abort(grpc.StatusCode.CANCELLED)]
    await client.score(make_request(), timeout=LONG)
    assert len(teacher.requests) == 2


async def test_never_sooner_than_the_server_asked(
    teacher: ScriptedTeacher, client: AsyncTeacherClient
) -> None:
    arrivals = []

    async def overloaded(request: Any, context: Any) -> None:
        arrivals.append(asyncio.get_running_loop().time())
        await teacher.fail(OverloadedError("full", retry_after=0.2))(request, context)

    async def answer(request: Any, context: Any) -> ScoreReply:
        arrivals.append(asyncio.get_running_loop().time())
        return make_reply(request)

    teacher.script = [overloaded, answer]
    await client.score(make_request(), timeout=LONG)
    assert arrivals[1] - arrivals[0] >= 0.2


async def test_a_retry_that_would_come_too_late_is_not_waited_for(
    teacher: ScriptedTeacher, client: AsyncTeacherClient
) -> None:
    teacher.script = [teacher.fail(OverloadedError("full", retry_after=1000.0))]
    with pytest.raises(OverloadedError, match="full") as caught:
        await client.score(make_request(), timeout=LONG)
    assert caught.value.retry_after == 1000.0
    assert len(teacher.requests) == 1


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequestError("x", where="top_k"),
        ContractMismatchError("x", reason="UNKNOWN_TOKENIZER"),
        EngineError("x"),
        DeadlineError("too late", where="queue"),
        KeyError("x"),
    ],
)
async def test_what_a_retry_cannot_mend_is_sent_once(
    teacher: ScriptedTeacher, client: AsyncTeacherClient, error: Exception
) -> None:
    teacher.script = [teacher.fail(error)]
    kind = type(error) if isinstance(error, LsmError) else EngineError
    with pytest.raises(kind) as caught:
        await client.score(make_request(), timeout=LONG)
    assert isinstance(caught.value, LsmError)
    assert caught.value.where == (getattr(error, "where", "") or client.address)
    assert len(teacher.requests) == 1


async def test_no_more_attempts_than_allowed(teacher: ScriptedTeacher) -> None:
    teacher.script = [teacher.fail(TeacherUnavailableError("draining"))] * 3
    async with (
        serving(teacher) as address,
        AsyncTeacherClient(address, run="r", max_attempts=2) as client,
    ):
        with pytest.raises(TeacherUnavailableError, match="draining"):
            await client.score(make_request(), timeout=LONG)
    assert len(teacher.requests) == 2


async def test_the_deadline_ends_the_call_on_both_sides(
    teacher: ScriptedTeacher, client: AsyncTeacherClient
) -> None:
    teacher.script = [teacher.never()]
    with pytest.raises(DeadlineError, match=r"within 0\.2 s"):
        await client.score(make_request(), timeout=0.2)
    await asyncio.wait_for(teacher.cancelled.wait(), LONG)
    assert len(teacher.requests) == 1


async def test_cancelling_a_call_cancels_it_on_the_server(
    teacher: ScriptedTeacher, client: AsyncTeacherClient
) -> None:
    teacher.script = [teacher.never()]
    call = asyncio.create_task(client.score(make_request(), timeout=LONG))
    await asyncio.wait_for(teacher.arrived.wait(), LONG)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(teacher.cancelled.wait(), LONG)


async def test_close_ends_calls_in_flight_and_calls_that_wait(
    teacher: ScriptedTeacher, client: AsyncTeacherClient
) -> None:
    teacher.script = [
        teacher.never(),
        teacher.fail(OverloadedError("full", retry_after=LONG / 2)),
    ]
    first = asyncio.create_task(client.score(make_request(), timeout=LONG))
    await asyncio.wait_for(teacher.arrived.wait(), LONG)
    teacher.arrived.clear()
    second = asyncio.create_task(client.score(make_request(), timeout=LONG))
    await asyncio.wait_for(teacher.arrived.wait(), LONG)
    await client.close()
    for call in (first, second):
        with pytest.raises(TeacherUnavailableError) as caught:
            await call
        assert caught.value.reason == "CLOSED"
    with pytest.raises(TeacherUnavailableError, match="closed"):
        await client.get_teacher(timeout=LONG)
    await client.close()


async def test_nobody_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        async with AsyncTeacherClient(address, run="r") as client:
            with pytest.raises(TeacherUnavailableError, match="no teacher answers") as caught:
                await client.get_teacher(timeout=0.3)
    assert caught.value.where == address
    assert "teacher-server serve" in caught.value.fix


async def test_something_listens_and_never_speaks() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with AsyncTeacherClient(address, run="r") as client:
            with pytest.raises(TeacherUnavailableError, match="no connection") as caught:
                await client.get_teacher(timeout=0.3)
    assert caught.value.where == address
    assert "teacher-server serve" in caught.value.fix


async def test_a_call_outlives_a_restart_of_the_server(teacher: ScriptedTeacher) -> None:
    teacher.script = [teacher.never()]
    async with serving(teacher) as address:
        client = AsyncTeacherClient(address, run="r")
        call = asyncio.create_task(client.score(make_request(), timeout=LONG))
        await asyncio.wait_for(teacher.arrived.wait(), LONG)
    async with serving(teacher, port=int(address.rpartition(":")[2])):
        assert same(await call, make_reply(make_request()))
    assert teacher.requests == [teacher.requests[0]] * 2
    await client.close()


async def test_poisoned_replies_are_refused(
    teacher: ScriptedTeacher, client: AsyncTeacherClient
) -> None:
    def poison(reply: ScoreReply) -> ScoreReply:
        values = np.array([np.nan, -1.0, -1.0], np.float32)
        bad = with_arrays(reply.results[0], sampled_log_probs=values)
        return dataclasses.replace(reply, results=(bad, reply.results[1]))

    teacher.script = [teacher.change(poison)]
    with pytest.raises(PoisonedReplyError, match="NaN") as caught:
        await client.score(make_request(), timeout=LONG)
    assert caught.value.where == "results[0].sampled_log_probs[0]"
    assert len(teacher.requests) == 1


async def test_a_teacher_that_changed_is_noticed_until_it_is_asked_again(
    teacher: ScriptedTeacher, client: AsyncTeacherClient
) -> None:
    other = dataclasses.replace(IDENTITY, digest="d2")
    await client.get_teacher(timeout=LONG)
    change = teacher.change(lambda reply: dataclasses.replace(reply, identity=other))
    teacher.script = [change, change]
    with pytest.raises(ContractMismatchError, match="d2"):
        await client.score(make_request(), timeout=LONG)
    changed = dataclasses.replace(SERVER.teachers[0], identity=other)
    teacher.info = dataclasses.replace(SERVER, teachers=(changed,))
    await client.get_teacher(timeout=LONG)
    assert (await client.score(make_request(), timeout=LONG)).identity == other


async def test_bytes_that_are_no_reply() -> None:
    async def garbage(request: bytes, context: Any) -> bytes:
        return b"\xff\xff\xff"

    server = grpc.aio.server()
    handlers = {"Score": grpc.unary_unary_rpc_method_handler(garbage)}
    service = grpc.method_handlers_generic_handler(SERVICE.lstrip("/"), handlers)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncTeacherClient(f"127.0.0.1:{port}", run="r") as client:
        with pytest.raises(PoisonedReplyError, match="not a teacher_proto"):
            await client.score(make_request(), timeout=LONG)
        with pytest.raises(ContractMismatchError, match="UNIMPLEMENTED"):
            await client.get_teacher(timeout=LONG)
    await server.stop(None)


async def test_messages_beyond_a_size_bound_are_sent_once_at_most(
    teacher: ScriptedTeacher,
) -> None:
    big = make_request(continuations=(Continuation((Segment(ids(*[1] * 1000)),)),))
    async with serving(teacher, max_request_bytes=2000) as address:
        async with AsyncTeacherClient(address, run="r", max_request_bytes=1000) as client:
            with pytest.raises(InvalidRequestError, match="1000 at most"):
                await client.score(big, timeout=LONG)
        async with AsyncTeacherClient(address, run="r") as client:
            with pytest.raises(InvalidRequestError, match="larger than max") as caught:
                await client.score(big, timeout=LONG)
            assert caught.value.reason == "MESSAGE_TOO_LARGE"
            assert teacher.requests == []
        async with AsyncTeacherClient(address, run="r", max_reply_bytes=100) as client:
            with pytest.raises(InvalidRequestError, match="larger than max"):
                await client.score(make_request(), timeout=LONG)
            assert len(teacher.requests) == 1


async def test_tokenizers_are_uploaded_whole_on_every_attempt(
    teacher: ScriptedTeacher, client: AsyncTeacherClient
) -> None:
    teacher.script = [teacher.fail(TeacherUnavailableError("draining"))]
    upload = TokenizerUpload("", "hash", bytes(range(256)) * 10_000)
    levels = await client.register_tokenizer(upload, timeout=LONG)
    assert levels == {"default": Level.CROSS}
    assert teacher.uploads == [dataclasses.replace(upload, run="run-1")]


FORGOTTEN = ContractMismatchError("unknown", reason="UNKNOWN_TOKENIZER")


async def test_a_forgotten_tokenizer_is_registered_again_once_for_all_that_wait(
    teacher: ScriptedTeacher, client: AsyncTeacherClient
) -> None:
    upload = TokenizerUpload("", "t1", b"file")
    await client.register_tokenizer(upload, timeout=LONG)
    refused = 0
    together = asyncio.Event()

    async def refuse(request: Any, context: Any) -> None:
        nonlocal refused
        refused += 1
        if refused == 3:
            together.set()
        await together.wait()
        await teacher.fail(FORGOTTEN)(request, context)

    async def accept(request: Any, context: Any) -> None:
        return None

    # Three requests are refused; the next call is the upload, then all three again.
    teacher.script = [refuse, refuse, refuse, accept]
    replies = await asyncio.gather(
        *(client.score(make_request(request_id=f"r{i}"), timeout=LONG) for i in range(3))
    )
    assert [reply.request_id for reply in replies] == ["r0", "r1", "r2"]
    assert teacher.uploads == [dataclasses.replace(upload, run="run-1")] * 2
    assert len(teacher.requests) == 6


async def test_a_server_that_goes_on_forgetting_ends_with_the_deadline_or_the_attempts(
    teacher: ScriptedTeacher,
) -> None:
    async def forget(request: Any, context: Any) -> None:
        if request is not None:
            teacher.script = [upload, forget]
            await teacher.fail(FORGOTTEN)(request, context)

    async def upload(request: Any, context: Any) -> None:
        return None

    async with serving(teacher) as address:
        for attempts, timeout in ((3, LONG), (None, 1.0)):
            teacher.script, teacher.uploads = [], []
            async with AsyncTeacherClient(address, run="r", max_attempts=attempts) as client:
                await client.register_tokenizer(TokenizerUpload("", "t1", b"file"), timeout=LONG)
                teacher.script = [forget]
                with pytest.raises((ContractMismatchError, DeadlineError)):
                    await client.score(make_request(), timeout=timeout)
            assert len(teacher.uploads) == 3 if attempts else len(teacher.uploads) > 2


@pytest.mark.parametrize("address", ["", "localhost", ":50051", "localhost:"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigurationError, match="host:port"):
        AsyncTeacherClient(address, run="r")


async def test_arguments(client: AsyncTeacherClient) -> None:
    with pytest.raises(ConfigurationError, match="1 or more"):
        AsyncTeacherClient("localhost:1", run="r", max_attempts=0)
    for seconds in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidRequestError, match="must be > 0"):
            await client.get_teacher(timeout=seconds)


def test_a_client_stays_on_its_loop() -> None:
    client = AsyncTeacherClient("127.0.0.1:1", run="r", max_attempts=1)

    async def ask() -> None:
        await client.get_teacher(timeout=0.3)

    with asyncio.Runner() as first, asyncio.Runner() as second:
        with pytest.raises(TeacherUnavailableError):
            first.run(ask())
        with pytest.raises(ConfigurationError, match="event loop"):
            second.run(ask())
        first.run(client.close())
