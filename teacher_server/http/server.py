"""uvicorn inside our own event loop; signals stay with the program."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from teacher_server.access.certificates import Certificates, certificate_names
from teacher_server.http.access import NAMES_KEY

KEEP_ALIVE_SECONDS = 5


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """Hands the names in a connection's client certificate to the application."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        names = certificate_names(tls.getpeercert()) if tls is not None else ()
        app: Any = self.app

        async def named(scope: Any, receive: Any, send: Any) -> None:
            await app(scope | {NAMES_KEY: names}, receive, send)

        self.app = named


class HttpServer:
    """Serves ``app`` on a listening socket from ``start`` to ``stop``."""

    def __init__(
        self, app: FastAPI, listener: socket.socket, certificates: Certificates | None
    ) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            http=_Protocol,
            ws="none",
            ssl_context_factory=(
                None if certificates is None else lambda *_: certificates.http_context()
            ),
            # A client's own claim of its address is not believed.
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=KEEP_ALIVE_SECONDS,
        )
        self._server = _Server(config)
        self._listener = listener
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    async def stop(self) -> None:
        """Lets running requests end, for a few seconds at most."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.shield(self._task)

    async def wait_closed(self) -> None:
        assert self._task is not None
        await asyncio.shield(self._task)
