"""One request and its response, as ASGI has it."""

from __future__ import annotations

import asyncio
import http
import time
from email.utils import formatdate
from typing import Any

import h11
from starlette.types import Message
from teacher_proto.errors import DeadlineError, LsmError

from teacher_server.http.connection.head import malformed
from teacher_server.http.connection.stream import PIECE, Stream

# What a chunked body may spend on its framing beside one part in FRAMING of its data. Each
# chunk costs the interpreter the same, however small it is.
FREE_FRAMING = 64 * 1024
FRAMING = 32
# Events of one body that are read before others have their turn, and bytes given out at once.
TURN = 64
MOST_AT_ONCE = 64 * 1024
WHERE = "the request's body"

PHRASES = {status.value: status.phrase.encode() for status in http.HTTPStatus}


class Exchange:
    """What the application calls to read one request's body and to answer it.

    Attributes:
        started: some of the response has left.
        complete: all of it has.
        last: the connection is closed after it.
    """

    def __init__(
        self, stream: Stream, parser: h11.Connection, request: h11.Request, *, last: bool
    ) -> None:
        self.complete = False
        self.started = False
        self.last = last
        self._start: Message = {}
        self._stream = stream
        self._parser = parser
        self._head_only = request.method == b"HEAD"
        self._fed = self._data = 0
        self._failure: LsmError | None = None
        self._body_done = self._told = False
        self._gone = asyncio.Event()
        # Where the head says that there is no body, its end is there at once.
        if isinstance(parser.next_event(), h11.EndOfMessage):
            self._end_of_body()

    @property
    def body_left(self) -> bool:
        """Whether the caller may still send some of the request."""
        return not self._body_done

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another request."""
        states = {self._parser.our_state, self._parser.their_state}
        return self.complete and states == {h11.DONE} and not self._stream.lost

    def leave(self) -> None:
        """Nobody will read the response: the connection is lost."""
        self._gone.set()

    async def receive(self) -> Message:
        """The next part of the body, or that the caller is gone.

        Raises:
            InvalidRequestError: the body is not framed as HTTP has it.
            DeadlineError: none of it arrived for ``limits.body_seconds``.
        """
        if self._parser.they_are_waiting_for_100_continue and not self.started:
            proceed = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            await self._stream.write(self._parser.send(proceed))
        if self._failure is not None:
            raise self._failure
        if self._told:
            await self._until_gone()
        data = b"" if self.complete else await self._read()
        if self._stream.lost or self.complete:
            return {"type": "http.disconnect"}
        self._told = self._body_done
        return {"type": "http.request", "body": data, "more_body": not self._body_done}

    async def send(self, message: Message) -> None:
        """Sends the head or a part of the body; returns when the system has taken it."""
        if self._stream.lost or self.complete:
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if not self.started:
            self._skip_body()
            self.started = True
            await self._stream.write(self._parser.send(self._head()))
        if body and not self._head_only:
            await self._stream.write(self._parser.send(h11.Data(data=body)))
        if not more:
            await self._stream.write(self._parser.send(h11.EndOfMessage()))
            self.complete = True
            self._gone.set()

    async def _until_gone(self) -> None:
        """Reads on, since only so the end of the connection is seen."""
        self._stream.resume_reading()
        await self._gone.wait()

    async def _read(self) -> bytes:
        """Some of the body, at least one byte unless it ends; lets others have their turn."""
        data = bytearray()
        events = 0
        while not self._body_done and not self._stream.lost and len(data) < MOST_AT_ONCE:
            event = self._next_event()
            if isinstance(event, h11.Data):
                data += event.data
                self._data += len(event.data)
                self._check_framing()
            elif isinstance(event, h11.EndOfMessage):
                self._end_of_body()
            elif piece := self._stream.take():
                self._fed += len(piece)
                self._parser.receive_data(piece)
            elif data:
                break
            else:
                await self._more()
            events += 1
            if events % TURN == 0:
                await asyncio.sleep(0)
        return bytes(data)

    def _next_event(self) -> Any:
        try:
            return self._parser.next_event()
        except h11.RemoteProtocolError:
            raise self._failed(malformed("it is not framed as HTTP/1.1 has it", WHERE)) from None

    def _check_framing(self) -> None:
        framing = self._fed - self._data - PIECE
        if framing > FREE_FRAMING + self._data // FRAMING:
            what = f"its framing takes {framing} bytes beside {self._data} bytes of data"
            error = malformed(what, WHERE)
            error.fix = "send a Content-Length, or chunks of 1024 bytes and more"
            raise self._failed(error)

    async def _more(self) -> None:
        try:
            await self._stream.wait_for_body()
        except TimeoutError:
            seconds = self._stream.times.body
            raise self._failed(
                DeadlineError(
                    f"no more of it arrived for {seconds:g} s (limits.body_seconds)",
                    where=WHERE,
                    fix="send the body without pauses",
                    reason="BODY_TOO_SLOW",
                )
            ) from None

    def _failed(self, error: LsmError) -> LsmError:
        self._failure = error
        return error

    def _end_of_body(self) -> None:
        self._body_done = True
        rest, _ = self._parser.trailing_data
        if rest:  # of the next request
            self._stream.unread[:0] = rest

    def _skip_body(self) -> None:
        """Passes over a body that nobody asked for, as far as it has arrived."""
        try:
            for _ in range(TURN):
                if self._body_done or self._failure is not None:
                    return
                event = self._next_event()
                if isinstance(event, h11.EndOfMessage):
                    self._end_of_body()
                elif not isinstance(event, h11.Data):
                    piece = self._stream.take()
                    if not piece:
                        return
                    self._parser.receive_data(piece)
        except LsmError:
            return  # the connection is closed after the response

    def _head(self) -> h11.Response:
        headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]
        headers += self._start["headers"]
        if self.last or self.body_left:
            headers = [pair for pair in headers if pair[0].lower() != b"connection"]
            headers.append((b"connection", b"close"))
        status = self._start["status"]
        return h11.Response(status_code=status, headers=headers, reason=PHRASES.get(status, b""))
