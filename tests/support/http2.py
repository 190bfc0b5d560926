"""A caller that speaks HTTP/2 by hand, and only as far as it likes: it stops in the middle
of a message, or takes nothing of a reply."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW = 4
CANCEL = 8
DEFAULT_WINDOW = 65_535


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream) + payload


def _field(name: str, value: str) -> bytes:
    parts = (name.encode(), value.encode())
    assert all(len(part) < 127 for part in parts)
    return b"\0" + b"".join(bytes([len(part)]) + part for part in parts)


def request_headers(path: str, *more: tuple[str, str]) -> bytes:
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    )
    return b"".join(_field(name, value) for name, value in fields)


def message(size: int) -> bytes:
    """The five bytes before a gRPC message of this size."""
    return b"\0" + struct.pack(">I", size)


class RawCaller:
    """One connection; frames that arrive are answered and kept in the background."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ended = asyncio.Event()
        self.text = b""
        self.data = 0
        self._reader = reader
        self._writer = writer
        self._changed = asyncio.Event()
        self._window = {0: DEFAULT_WINDOW}
        self._initial = DEFAULT_WINDOW

    @property
    def peer(self) -> str:
        """gRPC's name of this end, as the server has it."""
        host, port = self._writer.get_extra_info("sockname")
        return f"ipv4:{host}:{port}"

    def begin(self, stream: int, path: str, *more: tuple[str, str]) -> None:
        self._window[stream] = self._initial
        self._writer.write(frame(HEADERS, END_HEADERS, stream, request_headers(path, *more)))

    async def send(self, stream: int, body: bytes, *, end: bool = False) -> None:
        """Sends as fast as the server allows it; blocks for ever when it does not."""
        rest = memoryview(body)
        while rest or end:
            room = min(16_384, self._window[0], self._window[stream])
            if rest and room <= 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            part, rest = bytes(rest[:room]), rest[room:]
            last = end and not rest
            self._writer.write(frame(DATA, END_STREAM if last else 0, stream, part))
            await self._writer.drain()
            self._window[0] -= len(part)
            self._window[stream] -= len(part)
            if last:
                return

    def reset(self, stream: int) -> None:
        self._writer.write(frame(RESET, 0, stream, struct.pack(">I", CANCEL)))

    async def status(self) -> int:
        """The gRPC status of the first call that ends."""
        while (place := self.text.find(b"grpc-status")) < 0:
            assert not self.ended.is_set(), "the connection ended"
            self._changed.clear()
            await self._changed.wait()
        start = place + len(b"grpc-status")
        return int(self.text[start + 1 : start + 1 + self.text[start]])

    async def read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3]))
                self._take(head[3], head[4], int.from_bytes(head[5:]), payload)
                self._changed.set()
        self.ended.set()
        self._changed.set()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            self.text += payload
        elif kind == DATA:
            self.data += len(payload)
        elif kind == PING and not flags & ACK:
            self._writer.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._window[stream] = self._window.get(stream, 0) + int.from_bytes(payload)
        elif kind == SETTINGS and not flags & ACK:
            self._writer.write(frame(SETTINGS, ACK, 0))
            for name, value in struct.iter_unpack(">HI", payload):
                if name == INITIAL_WINDOW:
                    for one in self._window:
                        self._window[one] += (value - self._initial) if one else 0
                    self._initial = value


@contextlib.asynccontextmanager
async def raw_caller(
    address: str, *, window: int = DEFAULT_WINDOW, source: str = ""
) -> AsyncIterator[RawCaller]:
    """A connection to ``address``.

    Args:
        window: bytes of each reply that the caller lets the server send.
        source: the caller's own address; empty for the one that the system gives it.
    """
    host, _, port = address.rpartition(":")
    own = (source, 0) if source else None
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=own)
    caller = RawCaller(reader, writer)
    writer.write(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, window)))
    reading = asyncio.create_task(caller.read())
    try:
        yield caller
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        writer.close()


@contextlib.asynccontextmanager
async def raw_callers(
    address: str, count: int, *, window: int = DEFAULT_WINDOW
) -> AsyncIterator[list[RawCaller]]:
    """So many of them, each with a connection of its own."""
    async with contextlib.AsyncExitStack() as stack:
        callers = [raw_caller(address, window=window) for _ in range(count)]
        yield [await stack.enter_async_context(one) for one in callers]
