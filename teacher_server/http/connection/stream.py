"""The bytes of one connection: buffered only as far as somebody waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import h11

from teacher_server.http.connection.head import check_head, head_end, malformed
from teacher_server.http.connection.table import Entry, Rank, Table

# Bytes that are kept of what was not asked for yet, beside one read of the socket. They are
# of no budget.
MOST_UNREAD = 16 * 1024
# Bytes that h11 gets at once, and that are written at once.
PIECE = 16 * 1024
SLICE = 64 * 1024
LONGEST_FRAME = 16 * 1024


@dataclass(frozen=True)
class Times:
    """Seconds: of a head, of a body and of a reply without progress, between two requests."""

    head: float
    body: float
    write: float
    keep_alive: float


class Stream:
    """What both sides of a connection share: its transport, its buffers, its place."""

    def __init__(
        self,
        transport: asyncio.Transport,
        entry: Entry,
        table: Table,
        times: Times,
        cut: Callable[[str], None],
    ) -> None:
        """``cut`` counts connections that are ended for a reason, by its name."""
        self.transport = transport
        self.entry = entry
        self.table = table
        self.times = times
        self.unread = bytearray()
        self._lost = False
        self.cut = cut
        self._searched = 0
        self._reading = True
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        # Whatever the system does not take at once is seen as not written.
        transport.set_write_buffer_limits(high=1, low=0)

    @property
    def lost(self) -> bool:
        """Whether the connection has ended, so that nobody sends or reads any more."""
        return self._lost

    def arrived(self, data: bytes) -> None:
        self.unread += data
        if len(self.unread) > MOST_UNREAD:
            self.pause_reading()
        self._arrived.set()

    def ended(self) -> None:
        """The connection is lost: whoever waits goes on, and what was buffered is freed."""
        self._lost = True
        self.unread.clear()
        self._arrived.set()
        self._writable.set()

    def pause_reading(self) -> None:
        if self._reading and not self.lost:
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and not self.lost and len(self.unread) <= MOST_UNREAD:
            self._reading = True
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def next_request(self) -> tuple[h11.Connection, h11.Request] | None:
        """The request whose head has arrived, and the parser of its body; None before that.

        Raises:
            InvalidRequestError: it is no request, or its head is too large.
        """
        if self.unread.startswith((b"\r", b"\n")):  # after the body of the request before
            self.unread = self.unread.lstrip(b"\r\n")
            self._searched = 0
        end = head_end(self.unread, self._searched)
        if end is None:
            self._searched = len(self.unread)
            return None
        self._searched = 0
        head = bytes(self.unread[:end])
        del self.unread[:end]
        check_head(head)
        parser = h11.Connection(h11.SERVER, LONGEST_FRAME)
        parser.receive_data(head)
        try:
            request = parser.next_event()
        except h11.RemoteProtocolError as error:
            raise malformed(str(error).partition(": bytearray")[0]) from None
        if not isinstance(request, h11.Request):
            raise malformed("it is no request")
        return parser, request

    def take(self) -> bytes:
        """The next piece of what has arrived; empty when there is none."""
        piece = bytes(self.unread[:PIECE])
        del self.unread[:PIECE]
        return piece

    async def wait_for_data(self) -> None:
        """Until more arrives, or the connection is lost."""
        self._arrived.clear()
        self.resume_reading()
        await self._arrived.wait()

    async def wait_for_body(self) -> None:
        """As ``wait_for_data``, while the caller owes bytes; raises TimeoutError."""
        self.table.move(self.entry, Rank.WAITS)
        async with asyncio.timeout(self.times.body):
            await self.wait_for_data()
        self.table.move(self.entry, Rank.BUSY)

    async def write(self, data: bytes) -> None:
        """Returns when the system has taken everything, or the connection is lost.

        A caller who reads nothing of it for ``times.write`` seconds loses the connection.
        """
        rest = memoryview(data)
        while rest and not self.lost and not self.transport.is_closing():
            self.transport.write(rest[:SLICE])
            rest = rest[SLICE:]
            if not self._writable.is_set():
                await self._written()

    async def _written(self) -> None:
        self.table.move(self.entry, Rank.WAITS)
        try:
            async with asyncio.timeout(self.times.write):
                await self._writable.wait()
        except TimeoutError:
            self.cut("unread_reply")
            self.transport.abort()
            self.ended()
        self.table.move(self.entry, Rank.BUSY)
