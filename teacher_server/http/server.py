"""uvicorn inside our own event loop; signals stay with the program."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from teacher_proto.errors import LsmError

from teacher_server.access.certificates import Certificates
from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.http.access import HEALTH_PATHS
from teacher_server.http.connection.acceptor import Acceptor
from teacher_server.http.connection.connection import LONGEST_LINE, Connection
from teacher_server.http.connection.host import Address, Host
from teacher_server.http.connection.table import Table
from teacher_server.http.errors import error_response
from teacher_server.settings.limits import LimitSettings

KEEP_ALIVE_SECONDS = 5


class _Server(uvicorn.Server):
    """uvicorn's start, clock and end, over the connections of an ``Acceptor``."""

    accept: Callable[[], Acceptor]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self._acceptor = self.accept()
        self.servers = cast(Any, [self._acceptor])
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        if self._acceptor.failure is not None:
            raise self._acceptor.failure
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._acceptor.end()
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)


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
        config = uvicorn.Config(
            cast(Any, app),
            log_config=None,
            # What callers can make uvicorn say is below it.
            log_level="error",
            access_log=False,
            interface="asgi3",
            lifespan="off",
            http=Connection,
            ws="none",
            # A client's own claim of its address is not believed.
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=LONGEST_LINE,
        )
        self._server = _Server(config)
        self.table = Table(bounds)
        self.host = Host(
            config,
            self._server.server_state,
            self.table,
            limits,
            HEALTH_PATHS,
            error_response,
            cut,
            refused,
        )
        context = None if certificates is None else certificates.http_context()
        self._server.accept = lambda: Acceptor(listener, self.host, context)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve())

    async def stop(self) -> None:
        """Lets running requests end, for a few seconds at most."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.wait({self._task})

    async def wait_closed(self) -> None:
        assert self._task is not None
        await asyncio.shield(self._task)
