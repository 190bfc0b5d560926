"""One request's body and response: uvicorn's own, with the bounds of time and bytes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from starlette.types import Message, Receive, Send
from teacher_proto.errors import DeadlineError, LsmError
from uvicorn.protocols.http.flow_control import CLOSE_HEADER, FlowControl
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from teacher_server.http.connection.head import malformed
from teacher_server.http.connection.host import CALLER_KEY, Host
from teacher_server.http.connection.table import Entry, Rank

# What a chunked body may spend on its framing beside one part in FRAMING of its data. Each
# chunk costs the interpreter the same, however small it is.
FREE_FRAMING = 64 * 1024
FRAMING = 32
# Bytes of a body that are parsed at once. Where the length is declared, they cost as much as
# one; chunks cost each. So of a body in chunks a piece has few lines, two of which are a
# chunk's, or few bytes, and such bodies take turns.
PIECE = 64 * 1024
LINES, FEW = 128, 512
# How the line of the last chunk begins, after the end of another one. A chunk's line ends at
# both bytes; the lines that may follow the last chunk end at a line feed as well.
LAST_CHUNK = b"\r\n0"
# Pieces of a body that nobody asked for, which are passed over before the response.
SKIPPED = 4
# Bytes that are written at once.
SLICE = 64 * 1024
WHERE = "the request's body"


class Carrier(Protocol):
    """The connection that carries an exchange; ``unread`` is what has arrived of it."""

    host: Host
    entry: Entry
    flow: FlowControl
    loop: asyncio.AbstractEventLoop
    unread: bytearray

    def parse(self, data: bytes) -> None: ...
    def left(self) -> bool: ...
    def abort(self) -> None: ...


class Exchange:
    """What the application calls to read one request's body and to answer it.

    Attributes:
        failure: why the body cannot be read on.
    """

    def __init__(
        self, connection: Carrier, cycle: RequestResponseCycle, receive: Receive, send: Send
    ) -> None:
        """``receive``, ``send``: uvicorn's."""
        self._connection = connection
        self._cycle = cycle
        self._receive = receive
        self._send = send
        self._chunked = any(name == b"transfer-encoding" for name, _ in cycle.scope["headers"])
        self._in_line = False
        self._fed = self._data = 0
        self._before, self._may_end = LAST_CHUNK[:2], False
        self._wanted = False
        self.failure: LsmError | None = None

    async def receive(self) -> Message:
        """The next part of the body, or that the caller is gone.

        Raises:
            InvalidRequestError: the body is not framed as HTTP has it.
            DeadlineError: none of it arrived for ``limits.body_seconds``.
        """
        if self.failure is not None:
            raise self.failure
        if not self._cycle.more_body:
            return await self._receive()
        await asyncio.sleep(0)  # others have their turn
        self._wanted = True
        self.feed()
        seconds = self._connection.host.limits.body_seconds
        self._move(Rank.WAITS)
        try:
            async with asyncio.timeout(seconds):
                message = await self._receive()
        except TimeoutError:
            self.failure = DeadlineError(
                f"no more of it arrived for {seconds:g} s (limits.body_seconds)",
                where=WHERE,
                fix="send the body without pauses",
                reason="BODY_TOO_SLOW",
            )
        finally:
            self._wanted = False
            self._move(Rank.BUSY)
        if self.failure is not None:
            raise self.failure
        return message

    async def send(self, message: Message) -> None:
        """Sends the head or a part of the body; returns when the system has taken it."""
        if message["type"] == "http.response.start":
            await self._written()  # of the responses before
            self._skip_body()
            if self._cycle.more_body or not self._cycle.keep_alive:
                headers = [pair for pair in message["headers"] if pair[0].lower() != b"connection"]
                message = {**message, "headers": [*headers, CLOSE_HEADER]}
            await self._send(message)
            return
        part = {"type": "http.response.body"}
        body = message.get("body", b"")
        in_turns = len(body) > SLICE and self._is_public
        for begin in range(0, len(body), SLICE):
            piece = part | {"body": body[begin : begin + SLICE], "more_body": True}
            await self._send_slice(piece, charged=in_turns)
            if begin + SLICE < len(body):
                await self._others_have_their_turn()
        if not message.get("more_body", False):
            await self._send(part | {"more_body": False})

    def feed(self) -> None:
        """Lets uvicorn read some of what has arrived, if the application waits for it."""
        if not self._chunked:
            self._take_turn()
        elif not self._in_line:
            self._in_line = True
            self._connection.host.framing.add(self._take_turn)

    def fail(self, error: LsmError) -> None:
        """The body cannot be read on: whoever waits for it is told so."""
        self.failure = error
        self._cycle.message_event.set()

    def _take_turn(self) -> None:
        self._in_line = False
        waiting = self._wanted and not self._cycle.body
        if waiting and self._chunked and self._connection.left():
            self._connection.abort()  # nobody waits for what the chunks would cost
        elif waiting and self._parse_piece() and self._chunked:
            self.feed()  # the piece may have been framing alone

    def _parse_piece(self) -> bool:
        """Whether there was something to parse."""
        cycle, unread = self._cycle, self._connection.unread
        if not cycle.more_body or self.failure is not None or not unread:
            return False
        size = self._few_lines() if self._chunked else PIECE
        piece = bytes(unread[:size])
        self._before = (self._before + piece[-2:])[-2:]
        del unread[:size]
        before = len(cycle.body)
        self._connection.parse(piece)
        self._fed += len(piece)
        self._data += len(cycle.body) - before
        framing = self._fed - self._data
        if cycle.more_body and framing > FREE_FRAMING + self._data // FRAMING:
            what = f"its framing takes {framing} bytes beside {self._data} bytes of data"
            error = malformed(what, WHERE)
            error.fix = "send a Content-Length, or chunks of 1024 bytes and more"
            self.fail(error)
        return True

    def _few_lines(self) -> int:
        """Bytes of the next piece of a body in chunks, which may hold line feeds as data."""
        unread = self._connection.unread
        self._may_end = self._may_end or LAST_CHUNK in self._before + unread[:PIECE]
        line = b"\n" if self._may_end else b"\r\n"
        size = PIECE
        while size > FEW and unread.count(line, 0, size) > LINES:
            size //= 2
        return size

    def _skip_body(self) -> None:
        """Passes over a body that nobody asked for, as far as it has arrived."""
        for _ in range(SKIPPED):
            if not self._parse_piece():
                break
        self._cycle.body.clear()

    async def _send_slice(self, message: Message, *, charged: bool) -> None:
        with self._connection.host.sending.charged() if charged else contextlib.nullcontext():
            await self._send(message)  # it waits for nothing: what came before is written
        await self._written()

    async def _others_have_their_turn(self) -> None:
        """Before the next slice: a caller who reads fast lets nobody wait."""
        if not self._is_public:
            await asyncio.sleep(0)
            return
        turn: asyncio.Future[None] = self._connection.loop.create_future()

        def come() -> None:
            if not turn.done():
                turn.set_result(None)

        self._connection.host.sending.add(come)
        await turn

    @property
    def _is_public(self) -> bool:
        """Whether this is answered to everybody: what the pages are made of, and health."""
        return CALLER_KEY not in self._cycle.scope

    async def _written(self) -> None:
        """Returns when the system has taken everything, or the connection has ended.

        A caller who reads nothing of it for ``limits.write_seconds`` loses the connection.
        """
        connection = self._connection
        if not connection.flow.write_paused:
            return
        self._move(Rank.WAITS)
        try:
            async with asyncio.timeout(connection.host.limits.write_seconds):
                await connection.flow.drain()
        except TimeoutError:
            connection.host.cut("unread_reply")
            connection.abort()
        self._move(Rank.BUSY)

    def _move(self, rank: Rank) -> None:
        self._connection.host.table.move(self._connection.entry, rank)
