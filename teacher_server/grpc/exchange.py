"""A call's messages and its reply: read and sent in time, and within the budget of bytes.

gRPC reads a message whole, however large it is, as soon as it is asked for one; before that
it takes 64 KiB of it. Every method is therefore served as a stream, whose messages are asked
for one by one, once the caller is known and its bytes are charged. Nothing of this shows on
the wire.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import grpc
from teacher_proto.channel import MIB
from teacher_proto.errors import DeadlineError, InvalidRequestError, TeacherUnavailableError

from teacher_server.access.guard import Caller
from teacher_server.config import LimitSettings
from teacher_server.grpc.connections import Connections
from teacher_server.lifecycle import RETRY_HINT
from teacher_server.queue.budget import ByteBudget, Hold
from teacher_server.refusals.sizes import check_request_bytes

# A message that is not there after so many seconds arrives slowly, and is charged with all
# that it may be; until then it is charged as a small one, which nearly all are.
SLOW_AFTER = 0.25
# Nothing of a message shows before all of it is there. The seconds of limits.body_seconds
# and limits.write_seconds are for so many bytes of it, and as many again for each more.
PACE = 16 * MIB

Context = grpc.aio.ServicerContext[bytes, bytes]


class Exchange:
    """One call, from its first message to its reply; ``async with`` frees what it holds.

    Attributes:
        started: when the call arrived, ``time.monotonic``.
        deadline: of the caller, ``time.monotonic``; infinite when there is none.
        hold: its bytes; a reply's are expected from it once the message was read.
    """

    def __init__(
        self,
        caller: Caller,
        context: Context,
        budget: ByteBudget,
        limits: LimitSettings,
        connections: Connections,
        draining: asyncio.Future[None],
    ) -> None:
        """``draining`` is done when no message is waited for any more."""
        self.caller = caller
        self.context = context
        self.started = time.monotonic()
        remaining = context.time_remaining()
        self.deadline = math.inf if remaining is None else self.started + max(0.0, remaining)
        self._budget = budget
        self._limits = limits
        self._connections = connections
        self._draining = draining
        self._stack = AsyncExitStack()
        self.hold: Hold
        self._charged = min(limits.max_request_bytes, budget.queue.small)

    async def __aenter__(self) -> Self:
        """Raises DeadlineError: there was no room for a message until the deadline."""
        hold = self._budget.hold(self.caller.owner, self._charged, self.deadline)
        self.hold = await self._stack.enter_async_context(hold)
        self._connections.calls[self.caller.peer] += 1
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connections.calls[self.caller.peer] -= 1
        await self._stack.aclose()

    async def read(self) -> bytes:
        """The call's one message.

        Raises:
            InvalidRequestError: the call holds no message, or it is over
                limits.max_request_bytes.
            DeadlineError: it did not arrive in time.
            TeacherUnavailableError: it had not arrived when the server began to shut down.
            OverloadedError: there is no room for one that arrives slowly, or is large.
        """
        message = await self._message(self._limits.max_request_bytes)
        if message is None:
            raise InvalidRequestError("the call holds no message", fix="send the request")
        size = self.hold.body = len(message)
        if size > self._limits.max_request_bytes:
            check_request_bytes(size, self._limits.server_limits())
        if size > self._charged:
            self._enlarge(size)
        return message

    async def next(self) -> bytes | None:
        """The call's next message, of any size; None after the last one.

        Raises:
            DeadlineError, TeacherUnavailableError, OverloadedError: as ``read``.
        """
        return await self._message(self._limits.max_request_bytes)

    async def parts(self, most: int) -> AsyncIterator[bytes]:
        """The call's messages, which hold ``most`` bytes altogether.

        Raises:
            DeadlineError, TeacherUnavailableError: as ``read``.
            OverloadedError: there is no room for as much.
        """
        self._enlarge(most)
        while (message := await self._message(most)) is not None:
            yield message

    async def send(self, reply: bytes) -> None:
        """Sends the reply and waits until the caller's side has taken it.

        A caller that does not take it in time loses its connection: nothing else makes
        gRPC let go of the bytes. The call then ends as one that was cancelled.
        """
        seconds = self._limits.write_seconds * max(1.0, len(reply) / PACE)
        try:
            async with asyncio.timeout(seconds):
                await self.context.write(reply)
        except TimeoutError:
            self._connections.cut(self.caller.peer, "unread_reply")
            raise asyncio.CancelledError from None
        except grpc.aio.InternalError:  # the caller is gone
            raise asyncio.CancelledError from None

    def _enlarge(self, size: int) -> None:
        if size > self._charged:
            self.hold.enlarge(size)
            self._charged = size

    async def _message(self, most: int) -> bytes | None:
        """The next message, charged as ``most`` when it is slow; None after the last one."""
        limits = self._limits
        seconds = limits.body_seconds * max(1.0, limits.max_request_bytes / PACE)
        first = min(SLOW_AFTER, seconds)
        reading = asyncio.ensure_future(self.context.read())
        try:
            await asyncio.wait((reading,), timeout=first)
            if not reading.done():
                self._enlarge(most)
                await asyncio.wait(
                    (reading, self._draining),
                    timeout=seconds - first,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            if not reading.done() and self._draining.done():
                raise TeacherUnavailableError(
                    "the server is shutting down and the message had not arrived whole",
                    fix="try again: the server may come back, or another replica may answer",
                    reason="DRAINING",
                    retry_after=RETRY_HINT,
                )
            if not reading.done():
                raise DeadlineError(
                    f"the message did not arrive whole within {seconds:g} s "
                    f"(limits.body_seconds={limits.body_seconds:g})",
                    where="the request's body",
                    fix="send it faster, or raise limits.body_seconds on the server",
                    reason="BODY_TOO_SLOW",
                )
            message: Any = reading.result()
        finally:
            reading.cancel()
        return None if message is grpc.aio.EOF else message
