"""Reads a JSON body: size enforced while it arrives, nothing lenient."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from teacher_proto.codec.json_counts import JsonCounts, beyond
from teacher_proto.codec.strict_json import StrictJsonError, parse_json
from teacher_proto.errors import DeadlineError, InvalidRequestError, LsmError
from teacher_proto.types import ServerLimits

from teacher_server.http.models import Body, ScoreBody
from teacher_server.refusals.errors import refuse
from teacher_server.refusals.sizes import check_request_bytes

# Of one body. A parser makes an object out of two bytes and holds the interpreter while it
# does; as many values as 131,072 ids have are the most that neighbours can wait for.
MOST = JsonCounts(strings=65_536, objects=16_384, arrays=65_536, keys=32_768, values=2**17 + 2**13)
# With more errors than these in a body none of them is written out.
MAX_ERRORS = 1000
BODY = "the request's body"
DESCRIBED = "send what /openapi.json describes; /docs shows it"

B = TypeVar("B", bound=Body)


async def read_body(request: Request, limits: ServerLimits) -> bytes:
    """The body's bytes.

    Raises:
        InvalidRequestError: not declared as JSON, compressed, or over
            limits.max_request_bytes; reading stops there.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise refuse(
            f"the content type is {kind[:100]!r}",
            "Content-Type",
            "send application/json",
            "UNSUPPORTED_MEDIA_TYPE",
        )
    return await read_bounded(request, partial(check_request_bytes, limits=limits))


async def read_bounded(request: Request, check: Callable[[int], None]) -> bytes:
    """The body's bytes, as they are.

    Args:
        check: refuses a number of bytes; reading stops there.

    Raises:
        InvalidRequestError: compressed, cut off, or refused by ``check``.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise refuse(
            "compressed bodies are not read",
            "Content-Encoding",
            "send the body as it is",
            "UNSUPPORTED_MEDIA_TYPE",
        )
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit():
        check(int(declared))
    body = bytearray()
    try:
        async for chunk in request.stream():
            check(len(body) + len(chunk))
            body += chunk
    except ClientDisconnect:
        raise InvalidRequestError(
            "the connection ended before the body did", reason="CLIENT_CLOSED"
        ) from None
    return bytes(body)


async def arrived(reading: Awaitable[bytes], seconds: float) -> bytes:
    """The body, read as a whole within ``seconds``; raises DeadlineError when it was not."""
    try:
        async with asyncio.timeout(seconds):
            return await reading
    except LsmError:  # some are TimeoutErrors as well
        raise
    except TimeoutError:
        raise DeadlineError(
            f"the body did not arrive within {seconds} s", fix="send it faster"
        ) from None


def parse_body(body: bytes) -> Any:
    """The document; raises InvalidRequestError for anything RFC 8259 does not allow."""
    try:
        return parse_json(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _malformed(f"it is not UTF-8 (byte {error.start})") from None
    except StrictJsonError as error:
        raise _malformed(str(error)) from None


def check_counts(body: bytes) -> None:
    """Refuses a body that holds more than ``MOST``, before it is parsed."""
    kind = beyond(body.decode("utf-8", "replace"), MOST)
    if kind:
        raise refuse(
            f"it holds more {kind} than {getattr(MOST, kind)}",
            "the request's body",
            "split the group, or send it over gRPC, where arrays are bytes",
            "LIMIT_EXCEEDED",
        )


def parse_score_body(body: bytes) -> ScoreBody:
    """Raises InvalidRequestError naming the first field that is wrong."""
    check_counts(body)
    return validated(ScoreBody, parse_body(body))


def validated(model: type[B], document: Any, inside: str = "") -> B:
    """The document as ``model``; raises InvalidRequestError naming the first field that is
    wrong.

    Args:
        inside: the field that the document is.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        if error.error_count() > MAX_ERRORS:
            raise refuse(
                f"{error.error_count()} fields are wrong", inside or BODY, DESCRIBED
            ) from None
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        message = first["msg"]
        where = _path((inside, *first["loc"]) if inside else first["loc"])
        raise refuse(message[:1].lower() + message[1:], where, DESCRIBED) from None


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part[:100]}" if path else part[:100]
    return path or BODY


def _malformed(what: str) -> InvalidRequestError:
    return refuse(what, "the request's body", "send one JSON object", "MALFORMED_JSON")
