"""The gRPC server: the service, health and reflection on one port."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from teacher_proto.channel import MIB, server_options

from teacher_server.access.guard import Guard
from teacher_server.grpc.interceptors import HEALTH, AccessInterceptor, ErrorInterceptor
from teacher_server.grpc.reflection import reflection_handlers
from teacher_server.grpc.servicer import SERVICE, Servicer
from teacher_server.listen import address, check_free, port_in_use
from teacher_server.scoring.service import TeacherService

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# gRPC's own bounds lie this far above the limits, bytes, so that a message a
# little too large is refused by name, and a chunk of a tokenizer always fits.
SLACK = 4 * MIB


class GrpcServer:
    """Serves from ``start`` to ``stop``; healthy only between ``serving`` and ``draining``."""

    def __init__(self, service: TeacherService, guard: Guard) -> None:
        self._certificates = guard.certificates
        limits = service.limits
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor(), AccessInterceptor(guard)],
            options=server_options(
                limits.max_request_bytes + SLACK, limits.max_reply_bytes + SLACK
            ),
        )
        self._server.add_generic_rpc_handlers((Servicer(service).handlers(),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers(
            reflection_handlers(SERVICE, HEALTH.full_name),
        )

    async def start(self, host: str, port: int) -> str:
        """Listens and returns the address ``host:port``.

        Raises:
            ConfigurationError: the address cannot be bound.
        """
        check_free(host, port, "grpc_port")
        await self._set_health(NOT_SERVING)
        try:
            bound = self._bind(address(host, port))
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise port_in_use(host, port, "grpc_port")
        await self._server.start()
        return address(host, bound)

    def _bind(self, where: str) -> int:
        if self._certificates is None:
            return self._server.add_insecure_port(where)
        return self._server.add_secure_port(where, self._certificates.grpc_credentials())

    async def serving(self) -> None:
        await self._set_health(SERVING)

    async def draining(self) -> None:
        """NOT_SERVING from now on; calls are still answered."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        await self._server.stop(grace)

    async def wait_closed(self) -> None:
        # Cancelling gRPC's own wait would break a later stop.
        await asyncio.shield(self._server.wait_for_termination())

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)
