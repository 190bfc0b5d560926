"""uvicorn's HTTP/1.1 protocol, with bounds on what a caller may send and how long it may take."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from typing import Any, cast

import h11
from starlette.types import Receive, Scope, Send
from teacher_proto.errors import LsmError, OverloadedError
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from teacher_server.access.certificates import certificate_names
from teacher_server.access.peers import has_left
from teacher_server.failures import forget_frames, is_ending
from teacher_server.http.connection import exchange
from teacher_server.http.connection.exchange import Exchange
from teacher_server.http.connection.head import malformed, take_head
from teacher_server.http.connection.host import CALLER_KEY, NAMES_KEY, Host
from teacher_server.http.connection.table import Entry, Rank
from teacher_server.http.connection.transport import Flow, closed_by

log = logging.getLogger(__name__)

# Bytes that are kept of what was not asked for yet, beside one read of the socket. They are
# of no budget.
MOST_UNREAD = 16 * 1024
# How long, and for how many bytes, a caller who is still sending is listened to after its
# answer: closing at once would take the answer away from it.
LINGER_SECONDS = 2.0
LINGER_BYTES = 1024 * 1024
# Bytes of a chunk's own line, at most.
LONGEST_LINE = 16 * 1024
RETRY_SECONDS = 1.0


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """uvicorn sees whole heads, and a body when the application asks for it.

    uvicorn's keep-alive timer is the one timer: of a head, of the time between two requests,
    and of the end.

    Attributes:
        unread: what has arrived and uvicorn was not given yet.
    """

    def __init__(self, host: Host, entry: Entry, lost: Callable[[Entry], None]) -> None:
        super().__init__(host.config, host.state, {})
        self._application = cast(Any, self.app)
        self.app = cast(Any, self._serve)
        self.host = host
        self.entry = entry
        self.unread = bytearray()
        self._lost = lost
        self._socket: asyncio.Transport | None = None  # until it is made
        self._names: tuple[str, ...] = ()
        self._exchange: Exchange | None = None
        self._asked = False
        self._lingering: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        with self.host.opening.charged():
            self._open(transport)

    def _open(self, transport: asyncio.Transport) -> None:
        self._socket = transport
        super().connection_made(
            closed_by(transport, self._close, lambda: self._lingering is not None)
        )
        self.flow = Flow(self.transport, lambda: len(self.unread) <= MOST_UNREAD)
        # Whatever the system does not take at once is seen as not written. With TLS that may be
        # so already: the handshake's own last bytes.
        transport.set_write_buffer_limits(high=1, low=0)
        tls = transport.get_extra_info("ssl_object")
        self._names = certificate_names(tls.getpeercert()) if tls is not None else ()
        self._expect(self.host.limits.header_seconds)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.host.buffer

    def buffer_updated(self, nbytes: int) -> None:
        first = contextlib.nullcontext() if self._asked else self.host.opening.charged()
        with first:
            self.data_received(bytes(self.host.buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._lingering -= len(data)
            if self._lingering < 0:
                self.abort()
            return
        waited = self._idle and self._asked and not self.unread
        self.unread += data
        if len(self.unread) > MOST_UNREAD:
            self.flow.pause_reading()
        if self._exchange is not None:
            self._exchange.feed()
        elif self._idle:
            if waited:
                self._expect(self.host.limits.header_seconds)
            self._begin()
        self._asked = True

    def parse(self, data: bytes) -> None:
        """What uvicorn makes of the next bytes."""
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.unread.clear()
        self._lost(self.entry)

    def left(self) -> bool:
        """Whether the caller has closed its end, before all that it sent was read."""
        return self._socket is None or has_left(self._socket.get_extra_info("socket"))

    def abort(self) -> None:
        """Ends the connection at once."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        if self._socket is not None:
            self._socket.abort()

    def shutdown(self) -> None:
        """Ends the connection once what it carries is answered."""
        if self._lingering is None:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls while it handles an error of h11's."""
        if self._exchange is not None:
            self._exchange.fail(malformed("it is not framed as HTTP/1.1 has it", exchange.WHERE))
        else:
            self._refuse(malformed(str(sys.exception()).partition(": bytearray")[0]))

    def on_response_complete(self) -> None:
        self._exchange = None
        if not self.transport.is_closing():
            self.host.table.rest(self.entry, let_in=CALLER_KEY in self.scope)
            # The next head is looked at before a parser sees it.
            self.unread[:0] = self.conn.trailing_data[0]
            self.conn = h11.Connection(h11.SERVER, LONGEST_LINE)
        super().on_response_complete()
        if self.unread and not self.transport.is_closing():
            self._expect(self.host.limits.header_seconds)
            self._begin()

    def timeout_keep_alive_handler(self) -> None:
        if self._lingering is not None:
            self.abort()
            return
        if self.unread:
            self.host.cut("slow_headers")
        elif not self._asked:
            self.host.cut("silent")
        super().timeout_keep_alive_handler()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _begin(self) -> None:
        """Starts the next request if its head has arrived."""
        try:
            head = take_head(self.unread)
        except LsmError as error:
            self._refuse(error)
            return
        if head is None:
            return
        self.parse(head)
        if not self._idle:
            self.host.table.move(self.entry, Rank.BUSY)
            if self.cycle.more_body:  # read when the application asks for it
                self.flow.pause_reading()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, as uvicorn calls it."""
        cycle = self.cycle
        exchange = self._exchange = Exchange(self, cycle, receive, send)
        scope[NAMES_KEY] = self._names
        refusal = self._no_room(scope["path"])
        if refusal is not None:
            self.host.refused(self.client, refusal)
            await self.host.answer(refusal)(scope, exchange.receive, exchange.send)
            return
        try:
            await self._application(scope, exchange.receive, exchange.send)
        except BaseException as error:
            if is_ending(error):
                self.abort()
            elif not cycle.response_started:  # else the application has told of it
                log.error("a request ended with %s", type(error).__name__, exc_info=error)
                failure = LsmError("the server failed on this request", reason="INTERNAL")
                await self.host.answer(failure)(scope, exchange.receive, exchange.send)
        finally:
            forget_frames(exchange.failure)  # they may hold what was read of the body

    def _no_room(self, path: str) -> LsmError | None:
        """The refusal of what a connection beyond the bounds may not ask for."""
        if not self.entry.reserved or path in self.host.public:
            return None
        if self.host.table.promote(self.entry):
            self.host.table.move(self.entry, Rank.BUSY)
            return None
        self.host.cut("no_room")
        return OverloadedError(
            "the server has as many connections as it may have, or as your address may",
            where="limits.max_connections, limits.max_connections_per_address",
            fix="try again later, with fewer connections",
            reason="TOO_MANY_CONNECTIONS",
            retry_after=RETRY_SECONDS,
        )

    def _refuse(self, error: LsmError) -> None:
        """Answers what no application sees, and closes."""
        self.host.refused(self.client, error)
        answer = self.host.answer(error)
        status = answer.status_code
        headers = list({**dict(answer.raw_headers), b"connection": b"close"}.items())
        for event in (
            h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status]),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event))
        self._close(listen=True)

    def _close(self, *, listen: bool = False) -> None:
        """Ends the connection; ``listen``: the caller may still be sending."""
        if self._socket is None or self.transport.is_closing():
            return
        listen = listen or (self.cycle is not None and self.cycle.more_body)
        self._lingering = LINGER_BYTES
        self.unread.clear()
        self.host.table.move(self.entry, Rank.STRANGER)
        self._expect(LINGER_SECONDS)
        if listen and self._socket.can_write_eof():
            self._socket.write_eof()
            self.flow.resume_reading()
        else:
            self._socket.close()

    def _expect(self, seconds: float) -> None:
        """Something has to happen within these seconds, or the connection ends."""
        self._unset_keepalive_if_required()
        handler = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(seconds, handler)
