"""The standard health service, which anybody may ask: what a caller may send is little, and
what it may hold is bounded."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from teacher_server.queue.budget import ByteBudget, Owner

DESCRIPTOR = health_pb2.DESCRIPTOR.services_by_name["Health"]
NAME = DESCRIPTOR.full_name
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
Status: TypeAlias = health_pb2.HealthCheckResponse.ServingStatus

# Bytes of a request, which is the name of a service.
MOST_BYTES = 512
# A request that is not there after so many seconds is not read any longer.
READ_SECONDS = 0.5
# Requests that are read at once: from everywhere, and from one peer. gRPC may take in one of
# any size while it is read.
READ_AT_ONCE, READ_AT_ONCE_BY_PEER = 16, 2
# Streams of Watch at once, and the seconds after which a caller has to begin anew.
MOST_WATCHES, MOST_WATCHES_BY_PEER = 256, 2
WATCH_SECONDS = 600.0


class Health:
    """Check and Watch, of the server ("") and of its services by name."""

    def __init__(self, *services: str) -> None:
        self._services = frozenset(("", *services))
        self._status = NOT_SERVING
        self._changed = asyncio.Event()
        self._watches: Counter[str] = Counter()
        # It counts requests, not bytes: peers take turns in it.
        shared = READ_AT_ONCE * 16 // 15 + 1
        self._reading = ByteBudget(shared, READ_AT_ONCE_BY_PEER)

    def set(self, status: Status) -> None:
        """Tells everybody who watches."""
        if status != self._status:
            self._status = status
            self._changed.set()
            self._changed = asyncio.Event()

    def handlers(self) -> grpc.GenericRpcHandler:
        methods: Mapping[str, Any] = {"Check": self._check, "Watch": self._watch}
        assert set(methods) == set(DESCRIPTOR.methods_by_name)
        handlers: dict[str, Any] = {
            name: grpc.stream_stream_rpc_method_handler(method) for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(NAME, handlers)

    async def _check(self, requests: Any, context: Any) -> None:
        service = await self._asked(context)
        if service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        await context.write(_response(self._status))

    async def _watch(self, requests: Any, context: Any) -> None:
        service = await self._asked(context)
        peer = context.peer()
        if self._watches[peer] >= MOST_WATCHES_BY_PEER or self._watches.total() >= MOST_WATCHES:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MOST_WATCHES_BY_PEER} streams of one connection and {MOST_WATCHES} of all "
                "may watch at once; use Check",
            )
        self._watches[peer] += 1
        try:
            async with asyncio.timeout(WATCH_SECONDS):
                await self._report(service, context)
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, f"watched for {WATCH_SECONDS:g} s; watch again"
            )
        finally:
            self._watches[peer] -= 1
            if not self._watches[peer]:
                del self._watches[peer]

    async def _report(self, service: str, context: Any) -> None:
        last = None
        while True:
            changed = self._changed
            status = self._status if service in self._services else UNKNOWN
            if status != last:
                await context.write(_response(status))
                last = status
            await changed.wait()

    async def _asked(self, context: Any) -> str:
        """The service that a request names."""
        async with self._reading.hold(Owner("", context.peer()), 1):
            try:
                async with asyncio.timeout(READ_SECONDS):
                    message = await context.read()
            except TimeoutError:
                await context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED, f"no request within {READ_SECONDS:g} s"
                )
        service = _service(message)
        del message  # gRPC keeps the frames of a call that is aborted for a while
        if service is None:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"send one HealthCheckRequest of at most {MOST_BYTES} bytes",
            )
            raise AssertionError("abort raises")
        return service


def _service(message: Any) -> str | None:
    """The service that a message names; None for anything but a short request."""
    if message is grpc.aio.EOF or len(message) > MOST_BYTES:
        return None
    try:
        return str(health_pb2.HealthCheckRequest.FromString(message).service)
    except DecodeError:
        return None


def _response(status: Status) -> bytes:
    message: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return message
