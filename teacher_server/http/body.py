"""Reads a JSON body: charged and bounded while it arrives, nothing lenient."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from teacher_proto.codec.json_counts import JsonCounts, beyond
from teacher_proto.codec.strict_json import StrictJsonError, parse_json
from teacher_proto.errors import DeadlineError, InvalidRequestError, LsmError
from teacher_proto.types import ServerLimits

from teacher_server.http.models import Body, ScoreBody
from teacher_server.queue.budget import ByteBudget, Hold, Owner, no_room
from teacher_server.refusals.errors import refuse
from teacher_server.refusals.sizes import check_request_bytes
from teacher_server.scoring.context import Bytes

# Of one body. A parser makes an object out of two bytes and holds the interpreter while it
# does; as many values as 131,072 ids have are the most that neighbours can wait for.
MOST = JsonCounts(strings=65_536, objects=16_384, arrays=65_536, keys=32_768, values=2**17 + 2**13)
# What a body without a length is charged with at first; twice as much each time it is
# more, up to what its call may have.
UNDECLARED = 64 * 1024
# With more errors than these in a body none of them is written out.
MAX_ERRORS = 1000
BODY = "the request's body"
DESCRIBED = "send what /openapi.json describes; /docs shows it"

B = TypeVar("B", bound=Body)


class Charge:
    """What one call holds of the bytes in flight, from its body until its reply has left.

    A body is charged before it is read: at once where its length is declared, as it
    arrives where it is not. ``aclose`` frees everything.
    """

    def __init__(self, budget: ByteBudget, owner: Owner, deadline: float) -> None:
        """``deadline``: of whatever waits for room, ``time.monotonic``."""
        self._budget = budget
        self._owner = owner
        self._deadline = deadline
        self._stack = AsyncExitStack()
        self._hold: Hold | None = None

    async def read(self, request: Request, check: Callable[[int], None], most: int) -> Bytes:
        """The body's bytes, as they are.

        Args:
            check: refuses a number of bytes; reading stops there.
            most: bytes that ``check`` lets pass; a body without a length holds no more.

        Raises:
            InvalidRequestError: compressed, cut off, or refused by ``check``.
            DeadlineError: there was no room, or the body did not arrive in time.
            OverloadedError: there is no room for more of a body without a length, or small
                ones waited for that of one that arrived slowly.
        """
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise refuse(
                "compressed bodies are not read",
                "Content-Encoding",
                "send the body as it is",
                "UNSUPPORTED_MEDIA_TYPE",
            )
        declared = request.headers.get("content-length", "")
        size = int(declared) if declared.isascii() and declared.isdigit() else None
        check(size or 0)
        hold = self._hold = await self._enter(min(UNDECLARED, most) if size is None else size)
        try:
            async with asyncio.timeout_at(self._deadline) as limit:
                with hold.arriving(lambda: limit.reschedule(time.monotonic())):
                    body = await self._arrive(request, hold, check, most)
        except LsmError:  # some are TimeoutErrors as well
            raise
        except TimeoutError:
            if hold.gave_way:
                raise no_room("a body that arrives slowly, while others wait") from None
            raise DeadlineError(
                "the body did not arrive within the time of the request", fix="send it faster"
            ) from None
        except ClientDisconnect:
            raise InvalidRequestError(
                "the connection ended before the body did", reason="CLIENT_CLOSED"
            ) from None
        hold.body = len(body)
        hold.settle(hold.body)
        return body

    async def read_json(self, request: Request, limits: ServerLimits) -> Bytes:
        """As ``read``, of a body that is declared as JSON and within the limits."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise refuse(
                f"the content type is {kind[:100]!r}",
                "Content-Type",
                "send application/json",
                "UNSUPPORTED_MEDIA_TYPE",
            )
        check = partial(check_request_bytes, limits=limits)
        return await self.read(request, check, limits.max_request_bytes)

    async def expect(self, size: int) -> None:
        """Waits until there is room for a reply of ``size`` bytes beside the request.

        Raises:
            DeadlineError: there was none until the deadline.
        """
        assert self._hold is not None
        await self._hold.expect(size)

    def grow(self, size: int) -> bool:
        """As ``expect``, without a wait; False where there is no room now."""
        assert self._hold is not None
        return self._hold.grow(size)

    def answer(self, reply: Bytes) -> Response:
        """The response, which holds the reply's bytes, and they alone, until it has left.

        They are charged whether there is room for them or not: nothing that was computed waits.
        """
        assert self._hold is not None
        self._hold.settle(len(reply))
        return _Held(reply, self)

    async def aclose(self) -> None:
        await self._stack.aclose()

    async def _enter(self, size: int) -> Hold:
        hold = self._budget.hold(self._owner, size, self._deadline)
        return await self._stack.enter_async_context(hold)

    @staticmethod
    async def _arrive(
        request: Request, hold: Hold, check: Callable[[int], None], most: int
    ) -> Bytes:
        # As long as what is charged: a buffer that grew with each part would be copied again
        # and again, on the event loop.
        body = bytearray(hold.claim.size)
        filled = 0
        async for chunk in request.stream():
            size = filled + len(chunk)
            check(size)
            if size > len(body):
                hold.enlarge(max(size, min(2 * hold.claim.size, most)))
                body += bytes(hold.claim.size - len(body))
            body[filled:size] = chunk
            filled = size
        del body[filled:]
        return body


class _Held(Response):
    """A JSON document whose bytes are freed when it has left, or cannot leave any more."""

    media_type = "application/json"

    def __init__(self, body: Bytes, charge: Charge) -> None:
        super().__init__(body)
        self._charge = charge

    def render(self, content: Any) -> Any:
        return content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._charge.aclose()


def parse_body(body: Bytes) -> Any:
    """The document; raises InvalidRequestError for anything RFC 8259 does not allow."""
    try:
        return parse_json(body)
    except StrictJsonError as error:
        raise refuse(
            str(error), "the request's body", "send one JSON object", "MALFORMED_JSON"
        ) from None


def check_counts(body: Bytes) -> None:
    """Refuses a body that holds more than ``MOST``, before it is parsed."""
    kind = beyond(body, MOST)
    if kind:
        raise refuse(
            f"it holds more {kind} than {getattr(MOST, kind)}",
            "the request's body",
            "split the group, or send it over gRPC, where arrays are bytes",
            "LIMIT_EXCEEDED",
        )


def parse_score_body(body: Bytes) -> ScoreBody:
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
