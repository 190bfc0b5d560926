"""The table of errors and statuses, both ways, over a real server."""

from __future__ import annotations

import pickle
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from teacher_proto import codec, errors
from teacher_proto.errors import EngineError, LsmError, OverloadedError
from teacher_proto.status import (
    CUT_MARK,
    DETAILS_KEY,
    OVERLOAD_RETRY_SECONDS,
    TABLE,
    WRITE_FAILED,
    from_rpc_error,
    to_rpc_status,
)
from teacher_proto.v1 import score_pb2, service_pb2_grpc

from tests.support.replies import make_request
from tests.support.scripted_teacher import ScriptedTeacher, serving


def subclasses(kind: type[LsmError]) -> set[type[LsmError]]:
    return {kind, *(inner for direct in kind.__subclasses__() for inner in subclasses(direct))}


# Those of the module itself: other programs' own kinds travel as their parents.
KINDS = sorted(
    (kind for kind in subclasses(LsmError) if kind.__module__ == errors.__name__),
    key=lambda kind: kind.__name__,
)


async def received(teacher: ScriptedTeacher, step: Any) -> LsmError:
    """What a client makes of the status that ``step`` ends the call with."""
    teacher.script.append(step)
    async with serving(teacher) as address, grpc.aio.insecure_channel(address) as channel:
        stub: Any = service_pb2_grpc.TeacherScoringServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Score(codec.encode_request(make_request()))
    return from_rpc_error(caught.value)


def test_every_error_has_a_row() -> None:
    assert {kind for _, kind in TABLE} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_error_arrives_as_itself(kind: type[LsmError]) -> None:
    teacher = ScriptedTeacher()
    retry_after = 0.25 if kind is OverloadedError else None
    sent = kind("what ü", where="continuations[0]", fix="do", retry_after=retry_after)
    got = await received(teacher, teacher.fail(sent))
    assert type(got) is kind
    assert (got.what, got.where, got.fix) == ("what ü", "continuations[0]", "do")
    assert (got.reason, got.retry_after) == (kind.default_reason, retry_after)


async def test_a_reason_and_a_retry_time_of_its_own() -> None:
    teacher = ScriptedTeacher()
    sent = EngineError("x", reason="OUT_OF_MEMORY", retry_after=1.5)
    got = await received(teacher, teacher.fail(sent))
    assert isinstance(got, EngineError)
    assert (got.reason, got.retry_after) == ("OUT_OF_MEMORY", 1.5)


def test_an_overload_always_says_when_to_come_back() -> None:
    _, status = to_rpc_status(OverloadedError("full"))
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.seconds == OVERLOAD_RETRY_SECONDS


def test_unexpected_exceptions_tell_nothing() -> None:
    code, status = to_rpc_status(KeyError("/etc/secret"))
    assert code is grpc.StatusCode.INTERNAL
    assert b"secret" not in status.SerializeToString()


def test_errors_of_other_modules_travel_as_their_parent() -> None:
    class Finer(errors.InvalidRequestError):
        default_reason = "FINER"

    code, status = to_rpc_status(Finer("x"))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FINER")


async def test_long_texts_are_cut_visibly_and_still_arrive() -> None:
    teacher = ScriptedTeacher()
    huge = "\u4e2d" * 100_000
    got = await received(teacher, teacher.fail(LsmError(huge, where=huge, fix=huge)))
    for part in (got.what, got.where, got.fix):
        assert part.endswith(CUT_MARK)
        assert part.startswith("\u4e2d" * 100)


async def test_statuses_without_our_details() -> None:
    expected: dict[grpc.StatusCode, tuple[type[LsmError], str]] = {
        grpc.StatusCode.RESOURCE_EXHAUSTED: (errors.InvalidRequestError, "MESSAGE_TOO_LARGE"),
        grpc.StatusCode.UNIMPLEMENTED: (errors.ContractMismatchError, "UNKNOWN_CALL"),
        grpc.StatusCode.CANCELLED: (errors.TeacherUnavailableError, "CANCELLED"),
        grpc.StatusCode.UNAVAILABLE: (errors.TeacherUnavailableError, "TEACHER_UNAVAILABLE"),
        grpc.StatusCode.INVALID_ARGUMENT: (errors.InvalidRequestError, "INVALID_REQUEST"),
        grpc.StatusCode.UNKNOWN: (LsmError, "RUNTIME"),
        grpc.StatusCode.ABORTED: (LsmError, "RUNTIME"),
    }
    for code, (kind, reason) in expected.items():
        teacher = ScriptedTeacher()
        got = await received(teacher, teacher.abort(code, "why"))
        assert (type(got), got.reason, got.retry_after) == (kind, reason, None), code
        assert got.what == f"{code.name}: why"


async def test_an_upload_that_the_server_ends_early_is_worth_another_attempt() -> None:
    # grpc.aio's own words for it, from a channel whose write fails.
    failure = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), WRITE_FAILED
    )
    got = from_rpc_error(failure)
    assert (type(got), got.where) == (errors.TeacherUnavailableError, "")
    other = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "else"
    )
    assert type(from_rpc_error(other)) is EngineError


async def test_details_that_cannot_be_read_are_left_aside() -> None:
    async def garbage(request: Any, context: Any) -> None:
        trailers = ((DETAILS_KEY, b"\xff\xff\xff"),)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "x", trailers)

    got = await received(ScriptedTeacher(), garbage)
    assert type(got) is errors.TeacherUnavailableError


async def test_details_of_another_domain_are_not_ours() -> None:
    async def foreign(request: Any, context: Any) -> None:
        status = status_pb2.Status(code=13, message="x")
        info = error_details_pb2.ErrorInfo(domain="else", reason="R", metadata={"what": "y"})
        status.details.add().Pack(info)
        trailers = ((DETAILS_KEY, status.SerializeToString()),)
        await context.abort(grpc.StatusCode.INTERNAL, "x", trailers)

    got = await received(ScriptedTeacher(), foreign)
    assert (type(got), got.what) == (EngineError, "INTERNAL: x")


async def test_a_request_beyond_the_servers_bound_is_never_worth_a_retry() -> None:
    teacher = ScriptedTeacher()
    async with (
        serving(teacher, max_request_bytes=1000) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub: Any = service_pb2_grpc.TeacherScoringServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Score(score_pb2.ScoreRequest(run="x" * 2000))
    got = from_rpc_error(caught.value)
    assert isinstance(got, errors.InvalidRequestError)
    assert (got.reason, got.retry_after) == ("MESSAGE_TOO_LARGE", None)
    assert teacher.requests == []


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling(kind: type[LsmError]) -> None:
    error = kind("what", where="where", fix="fix", reason="REASON", retry_after=2.5)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  (between our own processes)
    assert type(again) is kind
    assert vars(again) == vars(error)
    assert str(again) == str(error) == "where: what. Fix: fix"
