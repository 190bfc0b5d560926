"""Errors <-> gRPC statuses, both ways by one table (docs/errors.md).

A status carries google.rpc.ErrorInfo (domain ``lsm-distill``, the error's
reason, metadata ``what``, ``where`` and ``fix``) and google.rpc.RetryInfo when
a retry of the same work can help.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from teacher_proto import errors
from teacher_proto.errors import LsmError

DOMAIN = "lsm-distill"
DETAILS_KEY = "grpc-status-details-bin"
# Every part of an error's text is cut, visibly, at this many bytes:
# a status travels in HTTP/2 headers, whose size is bounded.
LONGEST_TEXT = 600
CUT_MARK = " [...]"
# When a client may come back after an OverloadedError that names no time of its own.
OVERLOAD_RETRY_SECONDS = 1.0
INTERNAL_REASON = "INTERNAL"

# One row per error. Where a code has several rows, the reason that came with the
# status picks the row, and the first row is taken for reasons of a finer kind.
TABLE: tuple[tuple[grpc.StatusCode, type[LsmError]], ...] = (
    (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequestError),
    (grpc.StatusCode.INVALID_ARGUMENT, errors.ConfigurationError),
    (grpc.StatusCode.FAILED_PRECONDITION, errors.ContractMismatchError),
    (grpc.StatusCode.NOT_FOUND, errors.UnknownTeacherError),
    (grpc.StatusCode.UNAUTHENTICATED, errors.UnauthenticatedError),
    (grpc.StatusCode.PERMISSION_DENIED, errors.ForbiddenError),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.OverloadedError),
    (grpc.StatusCode.UNAVAILABLE, errors.TeacherUnavailableError),
    (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineError),
    (grpc.StatusCode.INTERNAL, errors.EngineError),
    (grpc.StatusCode.DATA_LOSS, errors.PoisonedReplyError),
    (grpc.StatusCode.UNKNOWN, errors.LsmError),
)

# Codes that a server, a proxy or gRPC itself gives without our details.
_PLAIN: dict[grpc.StatusCode, tuple[type[LsmError], str, str]] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        errors.InvalidRequestError,
        "MESSAGE_TOO_LARGE",
        "send fewer continuations or ask for a smaller top_k, or raise the message limits "
        "(limits.max_request_bytes and limits.max_reply_bytes of the server)",
    ),
    grpc.StatusCode.UNIMPLEMENTED: (
        errors.ContractMismatchError,
        "UNKNOWN_CALL",
        "check that the address is the gRPC port of a teacher server of the same version",
    ),
    grpc.StatusCode.CANCELLED: (
        errors.TeacherUnavailableError,
        "CANCELLED",
        "send the same request again",
    ),
}


# What grpc.aio puts in place of the server's status when it writes a stream's next message
# to a call that the server has just ended: whether the true status is seen is a race.
WRITE_FAILED = "Internal error from Core"


def to_rpc_status(error: BaseException) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """The status an error travels as.

    An exception that is not an LsmError becomes INTERNAL without any detail of itself.
    A subclass of an error in the table travels as that error.
    """
    if not isinstance(error, LsmError):
        error = errors.EngineError(
            "the server failed unexpectedly",
            fix="look for the request in the server's log",
            reason=INTERNAL_REASON,
        )
    code = next(code for code, kind in TABLE if isinstance(error, kind))
    retry_after = error.retry_after
    if retry_after is None and isinstance(error, errors.OverloadedError):
        retry_after = OVERLOAD_RETRY_SECONDS
    info = error_details_pb2.ErrorInfo(
        reason=_text(error.reason),
        domain=DOMAIN,
        metadata={
            "what": _text(error.what),
            "where": _text(error.where),
            "fix": _text(error.fix),
        },
    )
    status = status_pb2.Status(code=code.value[0], message=_text(str(error)))
    status.details.add().Pack(info, deterministic=True)
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo(retry_delay=_duration(retry_after))
        status.details.add().Pack(retry)
    return code, status


def from_rpc_error(error: grpc.RpcError) -> LsmError:
    """The error a failed call stands for.

    Without our details: RESOURCE_EXHAUSTED is gRPC's own for a message beyond a
    size bound and becomes an InvalidRequestError that is never retried; a call
    that the other side cancelled, or ended while it was being sent, becomes a
    TeacherUnavailableError.

    Args:
        error: what a call raised, of grpc or grpc.aio; it has a code.
    """
    call: Any = error
    code: grpc.StatusCode = call.code()
    details: str = call.details() or ""
    info, retry_after = _rich(call.trailing_metadata() or ())
    if info is not None:
        kinds = [kind for row, kind in TABLE if row is code] or [LsmError]
        named = [kind for kind in kinds if kind.default_reason == info.reason]
        return (named or kinds)[0](
            info.metadata.get("what", details),
            where=info.metadata.get("where", ""),
            fix=info.metadata.get("fix", ""),
            reason=info.reason,
            retry_after=retry_after,
        )
    what = f"{code.name}: {details}" if details else code.name
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after is not None:
        return errors.OverloadedError(what, retry_after=retry_after)
    if code in _PLAIN:
        plain_kind, reason, fix = _PLAIN[code]
        return plain_kind(what, reason=reason, fix=fix, retry_after=retry_after)
    if code is grpc.StatusCode.INTERNAL and details == WRITE_FAILED:
        return errors.TeacherUnavailableError(
            "the call ended before all of it was sent",
            fix="send the same request again",
        )
    kind = next((kind for row, kind in TABLE if row is code), LsmError)
    return kind(what, retry_after=retry_after)


def _rich(
    trailers: Iterable[tuple[str, Any]],
) -> tuple[error_details_pb2.ErrorInfo | None, float | None]:
    """Our ErrorInfo and the seconds of a RetryInfo, where the status has them."""
    found: error_details_pb2.ErrorInfo | None = None
    retry_after: float | None = None
    status = status_pb2.Status()
    try:
        for key, value in trailers:
            if key == DETAILS_KEY:
                status.ParseFromString(value)
        for detail in status.details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                found = info
            elif detail.Unpack(retry):
                seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
                retry_after = max(seconds, 0.0)
    except DecodeError:
        return None, None
    return found, retry_after


def _text(text: str) -> str:
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= LONGEST_TEXT:
        return data.decode()
    return data[:LONGEST_TEXT].decode("utf-8", "ignore") + CUT_MARK


def _duration(seconds: float) -> Duration:
    assert 0 <= seconds < math.inf, f"retry_after is {seconds}"
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
