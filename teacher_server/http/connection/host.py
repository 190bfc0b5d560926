"""What all connections of one port share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import ASGIApp
from teacher_proto.errors import LsmError

from teacher_server.http.connection.stream import Times
from teacher_server.http.connection.table import Table

# Bytes of one read of a socket.
READ_AT_ONCE = 32 * 1024

Address = tuple[str, int] | None


@dataclass
class Host:
    """The application, the table, the times, and what is told of connections.

    Attributes:
        public: paths that a connection beyond the bounds may ask for.
        answer: the response to a refusal.
        cut: counts connections that were ended, by reason.
        refused: told of what no route saw: the peer's address and the refusal.
        buffer: what a read of the socket fills; its bytes are taken out at once.
        draining: every answer is the last one of its connection.
    """

    app: ASGIApp
    table: Table
    times: Times
    public: frozenset[str]
    answer: Callable[[LsmError], Response]
    cut: Callable[[str], None]
    refused: Callable[[Address, LsmError], None]
    draining: bool = False
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(READ_AT_ONCE)))
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
