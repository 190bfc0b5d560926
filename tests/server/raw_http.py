"""HTTP byte by byte: what client libraries do not let a test send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp
from teacher_proto.errors import LsmError

from teacher_server.access.certificates import Certificates
from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.http.server import HttpServer
from teacher_server.settings.limits import LimitSettings
from tests.server.running import LONG

HEAD = b"Host: x\r\nContent-Type: application/json\r\n"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


class Peer:
    """One connection; every wait is for something the server does, at most ``LONG`` seconds."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head_only: bool = False) -> Answer:
        async with asyncio.timeout(LONG):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            pairs = (line.split(": ", 1) for line in lines[1:-2])
            headers = {name.lower(): value for name, value in pairs}
            length = 0 if head_only else int(headers.get("content-length", 0))
            return Answer(int(lines[0].split()[1]), headers, await self.reader.readexactly(length))

    async def rest(self) -> bytes:
        """Everything until the server closes the connection."""
        found = b""
        async with asyncio.timeout(LONG):
            with contextlib.suppress(ConnectionResetError):
                while data := await self.reader.read(65536):
                    found += data
        return found


@contextlib.asynccontextmanager
async def connected(address: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(address: str, request: bytes) -> Answer:
    async with connected(address) as peer:
        await peer.send(request)
        return await peer.answer()


@dataclass
class Alone:
    """An HTTP server over any application, without teachers."""

    address: str
    server: HttpServer
    cut: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def alone(
    app: ASGIApp,
    limits: LimitSettings,
    bounds: ConnectionBounds | None = None,
    certificates: Certificates | None = None,
) -> AsyncIterator[Alone]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    cut: list[str] = []
    refused: list[str] = []

    def refuse(peer: Sequence[Any] | None, error: LsmError) -> None:
        refused.append(error.reason)

    server = HttpServer(
        app,
        listener,
        certificates,
        bounds or ConnectionBounds(100, 100),
        limits,
        cut=cut.append,
        refused=refuse,
    )
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    server.start()
    try:
        yield Alone(address, server, cut, refused)
    finally:
        await server.stop()
