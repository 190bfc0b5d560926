"""A proxy that treats connections badly, between a client and a server on loopback.

Every connection gets the next fault of the list, and none once the list is used up. A fault
strikes what the server sends, once the reply has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

FAULTS = ("delay", "reset", "half-close", "one-byte chunks", "truncation")
CHUNK = 1 << 16
DELAY = 0.05


@dataclass
class Proxy:
    """``address`` is where clients connect; ``faults`` are still to come."""

    target: str
    random: random.Random
    faults: list[str] = field(default_factory=list)
    address: str = ""
    struck: list[str] = field(default_factory=list)
    change: Callable[[bytes], bytes] = lambda data: data

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        there, away = await asyncio.open_connection(host, int(port))
        fault = self.faults.pop(0) if self.faults else ""
        up = asyncio.create_task(self._forward(reader, away))
        try:
            await self._back(there, writer, away, fault)
        except ConnectionError:
            pass
        finally:
            up.cancel()
            for one in (writer, away):
                one.close()

    @staticmethod
    async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(CHUNK):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def _back(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        away: asyncio.StreamWriter,
        fault: str,
    ) -> None:
        async for data in self._replies(reader, writer, fault):
            if fault in ("dropped reply", "reset"):
                self.struck.append(fault)
                if fault == "reset":
                    writer.write(data[: self.random.randrange(len(data))])
                _reset(writer)
                return
            if fault in ("half-close", "truncation"):
                self.struck.append(fault)
                writer.write(data[: self.random.randrange(len(data))])
                await writer.drain()
                writer.write_eof()
                if fault == "half-close":
                    await reader.read()  # the other half stays open until the server is done
                return
            if fault == "stall":
                self.struck.append(fault)
                await asyncio.Event().wait()
            if fault == "delay":
                self.struck.append(fault)
                await asyncio.sleep(DELAY * self.random.random())
            if fault == "one-byte chunks":
                self.struck.append(fault)
                for index in range(len(data)):
                    writer.write(data[index : index + 1])
                    await writer.drain()
                continue
            writer.write(self.change(data))
            await writer.drain()

    async def _replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: str
    ) -> AsyncIterator[bytes]:
        """What the server sends, the greeting of an HTTP/2 server passed on untouched."""
        while data := await reader.read(CHUNK):
            if fault and not _is_reply(data):
                writer.write(data)
                await writer.drain()
                continue
            yield data


def _is_reply(data: bytes) -> bool:
    """Whether what a server sent holds the beginning of a reply: HTTP/1.1's status line, or
    an HTTP/2 frame of headers or data."""
    if data.startswith(b"HTTP/1.1"):
        return True
    while len(data) >= 9:
        if data[3] in (0, 1):
            return True
        data = data[9 + int.from_bytes(data[:3], "big") :]
    return False


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST: the other side sees an error, not an end."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport = writer.transport
    transport.abort()


@asynccontextmanager
async def proxy(target: str, faults: Sequence[str] = (), seed: int = 0) -> AsyncIterator[Proxy]:
    """A proxy on a free port of loopback in front of ``target``."""
    found = Proxy(target, random.Random(seed), list(faults))
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.CancelledError):
            await found.serve(reader, writer)
        tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    found.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
