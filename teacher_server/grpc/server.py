"""The gRPC server: the service, health and reflection on one port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from functools import partial
from pathlib import Path

import grpc
from teacher_proto.channel import MIB, server_options

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.access.guard import Guard
from teacher_server.grpc import health
from teacher_server.grpc.connections import Connections
from teacher_server.grpc.exchange import Exchange
from teacher_server.grpc.interceptors import AccessInterceptor
from teacher_server.grpc.reflection import reflection_handlers
from teacher_server.grpc.servicer import SERVICE, Servicer
from teacher_server.listen import address, check_free, port_in_use
from teacher_server.scoring.service import TeacherService
from teacher_server.settings.limits import LimitSettings

log = logging.getLogger(__name__)

# gRPC's own bounds lie this far above the limits, bytes, so that a message a
# little too large is refused by name, and a chunk of a tokenizer always fits.
SLACK = 4 * MIB
# The threads of gRPC's core, as the system names them: its pool, the one that adds threads to the
# pool, and the one of its timers. How much nicer they are than the event loop.
CORE_THREADS = {"event_engine", "lifeguard", "grpc_global_tim"}
NICER = 5
# Where they are listed, and seconds between two looks.
THREADS, LOOK_SECONDS = "/proc/self/task", 1.0


class GrpcServer:
    """Serves from ``start`` to ``stop``; healthy once ``tell`` says so."""

    def __init__(
        self,
        service: TeacherService,
        guard: Guard,
        limits: LimitSettings,
        bounds: ConnectionBounds,
    ) -> None:
        self._certificates = guard.certificates
        cut = partial(service.metrics.connection_cut, "grpc")
        self._connections = Connections(bounds, cut)
        service.metrics.watch_connections("grpc", self._connections)
        self._draining: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._silent_seconds = limits.header_seconds
        self._behind: asyncio.Future[None] | None = None
        exchanges = partial(
            Exchange,
            budget=service.budget,
            limits=limits,
            connections=self._connections,
            draining=self._draining,
        )
        self._server = grpc.aio.server(
            interceptors=[AccessInterceptor(guard, exchanges)],
            options=server_options(
                limits.max_request_bytes + SLACK,
                limits.max_reply_bytes + SLACK,
                bounds.total,
                round(limits.header_seconds * 1000),
            ),
        )
        self._health = health.Health(
            SERVICE, connections=self._connections, write_seconds=limits.write_seconds
        )
        self._server.add_generic_rpc_handlers(
            (
                Servicer(service).handlers(),
                self._health.handlers(),
                *reflection_handlers(SERVICE, health.NAME),
            )
        )

    async def start(self, host: str, port: int) -> str:
        """Listens and returns the address ``host:port``.

        Raises:
            ConfigurationError: the address cannot be bound.
        """
        check_free(host, port, "grpc_port")
        try:
            bound = self._bind(address(host, port))
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise port_in_use(host, port, "grpc_port")
        await self._server.start()
        self._behind = asyncio.ensure_future(keep_core_threads_behind())
        self._connections.watch(bound, self._silent_seconds)
        return address(host, bound)

    def _bind(self, where: str) -> int:
        if self._certificates is None:
            return self._server.add_insecure_port(where)
        return self._server.add_secure_port(where, self._certificates.grpc_credentials())

    def tell(self, *, serving: bool) -> None:
        """What health answers from now on; calls are answered in any case."""
        self._health.set(health.SERVING if serving else health.NOT_SERVING)

    def drain(self) -> None:
        """Health answers NOT_SERVING, and no message is waited for that has not arrived."""
        self.tell(serving=False)
        if not self._draining.done():
            self._draining.set_result(None)

    async def stop(self, grace: float) -> None:
        if self._behind is not None:
            self._behind.cancel()
        await self._connections.stop()
        await self._server.stop(grace)

    async def wait_closed(self) -> None:
        # Cancelling gRPC's own wait would break a later stop.
        await asyncio.shield(self._server.wait_for_termination())


async def keep_core_threads_behind() -> None:
    """The event loop and engines come before the threads of gRPC's core (Linux); for ever.

    The core adds a thread to its pool whenever all are busy for a second, and never has fewer
    again. A flood of connections keeps them all busy; of equal threads, the event loop would be
    one among ever more, and every call would wait behind them. A thread that is added later is as
    nice as the one that adds it.
    """
    if sys.platform != "linux":
        return
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + NICER, 19)
    before, settled = set[str](), set[str]()
    while True:
        try:
            there = set(os.listdir(THREADS))
            for thread in there - settled:
                _put_behind(thread, nice)
        except OSError as error:
            log.warning(
                "gRPC's threads cannot be made nicer than the event loop (%s): a flood of "
                "connections slows every call",
                error.strerror,
            )
            return
        # A thread has its name a moment after it has begun.
        settled, before = before, there
        await asyncio.sleep(LOOK_SECONDS)


def _put_behind(thread: str, nice: int) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        if Path(THREADS, thread, "comm").read_text().strip() in CORE_THREADS:
            os.setpriority(os.PRIO_PROCESS, int(thread), nice)
