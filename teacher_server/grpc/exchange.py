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
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

import grpc
from teacher_proto.channel import MIB
from teacher_proto.errors import DeadlineError, InvalidRequestError, TeacherUnavailableError

from teacher_server.access.guard import Caller
from teacher_server.grpc.connections import Connections
from teacher_server.lanes import LIGHT_BYTES
from teacher_server.lifecycle import RETRY_HINT
from teacher_server.queue.budget import SLOW_AFTER, ByteBudget, Hold, no_room
from teacher_server.refusals.sizes import check_request_bytes
from teacher_server.settings.limits import LimitSettings

# Nothing of a message shows before all of it is there. The seconds of limits.body_seconds
# and limits.write_seconds are for so many bytes of it, and as many again for each more.
PACE = 16 * MIB

# After the last message, for gRPC to tell that there is none because the caller left.
END_SECONDS = 0.05

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
        # Of a message: all of it has to be there.
        self._seconds = limits.body_seconds * max(1.0, limits.max_request_bytes / PACE)
        self._stack = AsyncExitStack()
        self.hold: Hold

    async def __aenter__(self) -> Self:
        """Raises DeadlineError: there was no room for a message until the deadline."""
        first = min(self._limits.max_request_bytes, self._budget.queue.unread)
        calls, peer = self._connections.calls, self.caller.peer
        calls[peer] += 1  # who waits for room is calling
        try:
            hold = self._budget.hold(self.caller.owner, first, self.deadline, unread=True)
            self.hold = await self._stack.enter_async_context(hold)
        except BaseException:
            calls[peer] -= 1
            raise
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
            asyncio.CancelledError: the caller left before it was whole.
        """
        message = await self._message(self._limits.max_request_bytes)
        if message is None:
            raise InvalidRequestError("the call holds no message", fix="send the request")
        size = self.hold.body = len(message)
        if size > self._limits.max_request_bytes:
            check_request_bytes(size, self._limits.server_limits())
        self.hold.settle(size)
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
            DeadlineError, TeacherUnavailableError: as ``read``; DeadlineError as well when
                there was no room for as much until the deadline.
        """
        await self.hold.enter(most)
        while (message := await self._message(most)) is not None:
            yield message

    async def send(self, reply: bytes) -> None:
        """Sends the reply and waits until the caller's side has taken it.

        A caller that does not take it in time loses its connection: nothing else makes
        gRPC let go of the bytes. The call then ends as one that was cancelled.
        """
        held = self.hold.claim.size
        if held < len(reply) or held > LIGHT_BYTES:
            self.hold.settle(len(reply))
        seconds = self._limits.write_seconds * max(1.0, len(reply) / PACE)
        self._connections.answered.add(self.caller.peer)
        try:
            async with asyncio.timeout(seconds):
                await self.context.write(reply)
        except TimeoutError:
            self._connections.cut(self.caller.peer, "unread_reply")
            raise asyncio.CancelledError from None
        except grpc.aio.InternalError:  # the caller is gone
            raise asyncio.CancelledError from None

    async def _message(self, most: int) -> bytes | None:
        """The next message, of ``most`` bytes, once it is charged; None after the last one.

        One that is slow is charged with ``most``, and may arrive while it waits for that. It
        gives way when small ones wait for its room.
        """
        reading: asyncio.Future[Any] = asyncio.ensure_future(self.context.read())
        try:
            await asyncio.wait((reading,), timeout=SLOW_AFTER)
            if not reading.done():
                await self._slow(reading, most)
            message = reading.result()
            if message is grpc.aio.EOF:
                await asyncio.sleep(END_SECONDS)  # gRPC cancels a call that was reset
                return None
            size = len(message)
            if self.hold.claim.size < size <= self._limits.max_request_bytes:
                await self._large(size)
            return cast(bytes, message)
        finally:
            reading.cancel()

    async def _slow(self, reading: asyncio.Future[Any], most: int) -> None:
        """Returns when the message is there; it waits for room for ``most`` bytes meanwhile."""
        seconds = self._seconds - SLOW_AFTER
        async with self._charging(most, slow_after=0.0) as (_, gave_way):
            await _first(seconds, reading, self._draining, gave_way)
        if reading.done():
            return
        if gave_way.done():
            raise no_room("a message that arrives slowly, while others wait")
        if self._draining.done():
            raise TeacherUnavailableError(
                "the server is shutting down and the message had not arrived whole",
                fix="try again: the server may come back, or another replica may answer",
                reason="DRAINING",
                retry_after=RETRY_HINT,
            )
        raise DeadlineError(
            f"the message did not arrive whole within {self._seconds:g} s "
            f"(limits.body_seconds={self._limits.body_seconds:g})",
            where="the request's body",
            fix="send it faster, or raise limits.body_seconds on the server",
            reason="BODY_TOO_SLOW",
        )

    async def _large(self, size: int) -> None:
        """Returns when a message that is there has room."""
        async with self._charging(size, SLOW_AFTER) as waiting:
            await _first(self._seconds, *waiting)
        if self.hold.claim.size < size:
            raise no_room(f"a message of {size} bytes")

    @asynccontextmanager
    async def _charging(
        self, size: int, slow_after: float
    ) -> AsyncIterator[tuple[asyncio.Future[None], asyncio.Future[None]]]:
        """While the block runs, waits for room for ``size`` bytes and gives way to small ones;
        (done when there is room, done when it has to give way)."""
        gave_way = asyncio.get_running_loop().create_future()
        charging = asyncio.ensure_future(self.hold.charge(size))
        try:
            with self.hold.arriving(partial(gave_way.set_result, None), slow_after):
                yield charging, gave_way
        finally:
            charging.cancel()
            await asyncio.wait((charging,))


async def _first(seconds: float, *futures: asyncio.Future[Any]) -> None:
    """Until one of them is done, at most so long."""
    await asyncio.wait(futures, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
