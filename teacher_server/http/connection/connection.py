"""The life of one connection: a head, the application's answer, the next head; and its times."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote

import h11
from teacher_proto.errors import LsmError, OverloadedError

from teacher_server.access.certificates import certificate_names
from teacher_server.failures import is_ending
from teacher_server.http.connection.exchange import PHRASES, Exchange
from teacher_server.http.connection.host import Address, Host
from teacher_server.http.connection.scope import CALLER_KEY, NAMES_KEY
from teacher_server.http.connection.stream import Stream
from teacher_server.http.connection.table import Entry, Rank

log = logging.getLogger(__name__)

# How long, and for how many bytes, a caller who is still sending is listened to after its
# answer: closing at once would take the answer away from it.
LINGER_SECONDS = 2.0
LINGER_BYTES = 1024 * 1024
RETRY_SECONDS = 1.0


class HttpConnection(asyncio.BufferedProtocol):
    """Carries one request after the other; what is owed by the caller has a deadline."""

    def __init__(self, host: Host, entry: Entry, lost: Callable[[Entry], None]) -> None:
        self._host = host
        self._entry = entry
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._exchange: Exchange | None = None
        self._asked = False
        self._lingering: int | None = None
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        host = self._host
        self._stream = Stream(self._transport, self._entry, host.table, host.times, host.cut)
        self._client = _address(transport.get_extra_info("peername"))
        self._server = _address(transport.get_extra_info("sockname"))
        tls = transport.get_extra_info("ssl_object")
        self._scheme = "http" if tls is None else "https"
        self._names = certificate_names(tls.getpeercert()) if tls is not None else ()
        self._expect(host.times.head)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._host.buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._host.buffer[:nbytes])
        if self._lingering is not None:
            self._lingering -= nbytes
            if self._lingering < 0:
                self._transport.abort()
            return
        waited = self._exchange is None and not self._stream.unread
        self._stream.arrived(data)
        if waited and self._asked:
            self._expect(self._host.times.head)
        self._asked = True
        if self._exchange is None:
            self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._stream.ended()
        if self._exchange is not None:
            self._exchange.leave()
        self._lost(self._entry)

    def pause_writing(self) -> None:
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        self._stream.resume_writing()

    def give_way(self) -> None:
        """Ends the connection at once."""
        self._transport.abort()

    def drain(self) -> None:
        """Ends the connection once what it carries is answered."""
        if self._exchange is not None:
            self._exchange.last = True
        elif self._lingering is None:
            self._transport.close()

    def _begin(self) -> None:
        """Starts the next request if its head has arrived."""
        try:
            found = self._stream.next_request()
            if found is None:
                return
            scope = self._scope(found[1])
            self._check_reserve(scope["path"])
        except LsmError as error:
            self._refuse(error)
            return
        exchange = Exchange(self._stream, *found, last=self._host.draining)
        self._exchange = exchange
        self._deadline = None
        self._host.table.move(self._entry, Rank.BUSY)
        if exchange.body_left:  # read when the application asks for it
            self._stream.pause_reading()
        task = self._loop.create_task(self._run(exchange, scope))
        self._host.tasks.add(task)
        task.add_done_callback(self._host.tasks.discard)

    def _scope(self, request: h11.Request) -> dict[str, Any]:
        raw_path, _, query = request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode("ascii"),
            "server": self._server,
            "client": self._client,
            "scheme": self._scheme,
            "method": request.method.decode("ascii"),
            "root_path": "",
            "path": unquote(raw_path.decode("ascii")),
            "raw_path": raw_path,
            "query_string": query,
            "headers": list(request.headers),
            NAMES_KEY: self._names,
        }

    def _check_reserve(self, path: str) -> None:
        """Refuses what a connection beyond the bounds may not ask for."""
        if not self._entry.reserved or path in self._host.public:
            return
        if not self._host.table.promote(self._entry):
            self._host.cut("no_room")
            raise OverloadedError(
                "the server has as many connections as it may have, or as your address may",
                where="limits.max_connections, limits.max_connections_per_address",
                fix="try again later, with fewer connections",
                reason="TOO_MANY_CONNECTIONS",
                retry_after=RETRY_SECONDS,
            )

    async def _run(self, exchange: Exchange, scope: dict[str, Any]) -> None:
        try:
            await self._host.app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) or is_ending(error):
                self._transport.abort()
                raise
            if not exchange.started:  # else the application has told of it
                log.error("a request ended with %s", type(error).__name__, exc_info=error)
                failure = LsmError("the server failed on this request", reason="INTERNAL")
                await self._host.answer(failure)(scope, exchange.receive, exchange.send)
        self._end(exchange, let_in=CALLER_KEY in scope)

    def _end(self, exchange: Exchange, *, let_in: bool) -> None:
        self._exchange = None
        if self._stream.lost:
            return
        if not exchange.complete:
            self._transport.abort()
        elif not exchange.reusable or self._host.draining:
            self._close(listen=exchange.body_left)
        else:
            self._host.table.rest(self._entry, let_in=let_in)
            times = self._host.times
            self._expect(times.head if self._stream.unread else times.keep_alive)
            self._stream.resume_reading()
            if self._stream.unread:
                self._begin()

    def _refuse(self, error: LsmError) -> None:
        """Answers what no application sees, and closes."""
        self._host.refused(self._client, error)
        answer = self._host.answer(error)
        lines = [b"HTTP/1.1 %d %b" % (answer.status_code, PHRASES.get(answer.status_code, b""))]
        lines += [name + b": " + value for name, value in answer.raw_headers]
        if b"connection" not in dict(answer.raw_headers):
            lines.append(b"connection: close")
        self._transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self._close(listen=True)

    def _close(self, *, listen: bool) -> None:
        """Ends the connection; ``listen``: the caller may still be sending."""
        self._stream.unread.clear()
        self._lingering = LINGER_BYTES
        self._host.table.move(self._entry, Rank.STRANGER)
        self._expect(LINGER_SECONDS)
        if listen and self._transport.can_write_eof():
            self._transport.write_eof()
            self._stream.resume_reading()
        else:
            self._transport.close()

    def _expect(self, seconds: float) -> None:
        """Something has to happen within these seconds, or the connection ends."""
        self._deadline = self._loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._look_at_the_clock)

    def _look_at_the_clock(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look_at_the_clock)
            return
        if self._lingering is not None:
            self._transport.abort()
            return
        if self._stream.unread:
            self._host.cut("slow_headers")
        elif not self._asked:
            self._host.cut("silent")
        self._close(listen=False)


def _address(name: Any) -> Address:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
