"""The HTTP server inside our own event loop; signals stay with the program."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from starlette.types import ASGIApp
from teacher_proto.errors import LsmError

from teacher_server.access.certificates import Certificates
from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.config import LimitSettings
from teacher_server.http.access import PUBLIC_PATHS
from teacher_server.http.connection.acceptor import Acceptor
from teacher_server.http.connection.host import Address, Host
from teacher_server.http.connection.stream import Times
from teacher_server.http.connection.table import Table
from teacher_server.http.errors import error_response

KEEP_ALIVE_SECONDS = 5.0


class HttpServer:
    """Serves ``app`` on a listening socket from ``start`` to ``stop``.

    Args:
        certificates: of TLS; None for plain text.
        cut: counts connections that were ended, by reason.
        refused: told of requests that reach no route.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        certificates: Certificates | None,
        bounds: ConnectionBounds,
        limits: LimitSettings,
        *,
        cut: Callable[[str], None] = lambda reason: None,
        refused: Callable[[Address, LsmError], None] = lambda peer, error: None,
    ) -> None:
        times = Times(
            limits.header_seconds, limits.body_seconds, limits.write_seconds, KEEP_ALIVE_SECONDS
        )
        self._listener = listener
        self._context = None if certificates is None else certificates.http_context()
        self.table = Table(bounds)
        self._host = Host(app, self.table, times, PUBLIC_PATHS, error_response, cut, refused)
        self._acceptor: Acceptor | None = None

    def start(self) -> None:
        self._acceptor = Acceptor(self._listener, self._host, self._context)

    async def stop(self) -> None:
        """Lets running requests end, for a few seconds at most."""
        if self._acceptor is not None:
            await self._acceptor.close(KEEP_ALIVE_SECONDS)

    async def wait_closed(self) -> None:
        assert self._acceptor is not None
        await asyncio.shield(self._acceptor.ended)
