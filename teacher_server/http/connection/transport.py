"""What is seen of a connection's transport and socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.flow_control import FlowControl

# Bytes that are looked at to know who asks for health.
LOOKED_AT = 64


class _Closing:
    """A transport that is closed by its connection: closing at once, while the caller is
    still sending, would take the answer away from it."""

    def __init__(
        self, transport: asyncio.Transport, close: Callable[[], None], closing: Callable[[], bool]
    ) -> None:
        self._transport = transport
        self.close = close
        self._closing = closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._closing() or self._transport.is_closing()


def closed_by(
    transport: asyncio.Transport, close: Callable[[], None], closing: Callable[[], bool]
) -> asyncio.Transport:
    """The transport, with ``close`` instead of its own, and closing while ``closing`` says so."""
    return cast(asyncio.Transport, _Closing(transport, close, closing))


class Flow(FlowControl):
    """Reads on only while there is room for what arrives."""

    def __init__(self, transport: asyncio.Transport, room: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._room = room

    def resume_reading(self) -> None:
        if self._room():
            super().resume_reading()


def look(accepted: socket.socket) -> bytes | None:
    """What the caller has sent, which stays there; None: nothing yet; b"": it has left."""
    try:
        return accepted.recv(LOOKED_AT, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return None
    except OSError:
        return b""
