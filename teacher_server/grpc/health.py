"""The standard health service, which anybody may ask: what a caller may send is little, and
what it may hold is bounded.

Nobody waits here for others. What is there at once is read and answered at once; a request
or an answer that stays on its way has one of a few places, of which an address has fewer.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from teacher_server.access.peers import address_of
from teacher_server.grpc.connections import Connections
from teacher_server.grpc.places import AT_ONCE, Full, Places

DESCRIPTOR = health_pb2.DESCRIPTOR.services_by_name["Health"]
NAME = DESCRIPTOR.full_name
# Later releases of the health service have more, which nobody may call here.
METHODS = ("Check", "Watch")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
Status: TypeAlias = health_pb2.HealthCheckResponse.ServingStatus

# Bytes of a request, which is the name of a service.
MOST_BYTES = 512
# A request that is not there after so many more seconds is not read any longer.
READ_SECONDS = 0.5
# Requests that are not there at once and still are read: from everywhere, and from one
# address. gRPC may take in one of any size while it is read.
MOST_SLOW, MOST_SLOW_BY_ADDRESS = 8, 2
# For so many seconds nothing is read from a connection whose request was late when others had
# those places: its calls wait as long, or twice as long, and are then refused.
LATE_SECONDS = 5.0
# Answers that are not taken at once and still are waited for.
MOST_UNREAD, MOST_UNREAD_BY_ADDRESS = 512, 64
# Calls of Check of one connection at once.
MOST_CHECKS = 16
# Streams of Watch at once: from everywhere, from one address and over one connection; and the
# seconds after which a caller has to begin anew.
MOST_WATCHES, MOST_WATCHES_BY_ADDRESS, MOST_WATCHES_BY_PEER = 256, 64, 2
WATCH_SECONDS = 600.0


class Health:
    """Check and Watch, of the server ("") and of its services by name.

    Args:
        connections: those of the port; one over which an answer is not taken is ended.
        write_seconds: for which an answer may be on its way.
    """

    def __init__(self, *services: str, connections: Connections, write_seconds: float) -> None:
        self._services = frozenset(("", *services))
        self._connections = connections
        self._write_seconds = write_seconds
        self._status = NOT_SERVING
        self._changed = asyncio.Event()
        self._checks = Places(math.inf, MOST_CHECKS)
        self._late: set[str] = set()
        self._watches = Places(MOST_WATCHES, MOST_WATCHES_BY_ADDRESS)
        self._watches_of_peers = Places(MOST_WATCHES, MOST_WATCHES_BY_PEER)
        self._slow = Places(MOST_SLOW, MOST_SLOW_BY_ADDRESS)
        self._unread = Places(MOST_UNREAD, MOST_UNREAD_BY_ADDRESS)

    def set(self, status: Status) -> None:
        """Tells everybody who watches."""
        if status != self._status:
            self._status = status
            self._changed.set()
            self._changed = asyncio.Event()

    def handlers(self) -> grpc.GenericRpcHandler:
        methods = dict(zip(METHODS, (self._check, self._watch), strict=True))
        stream: Any = grpc.stream_stream_rpc_method_handler
        handlers = {name: stream(method) for name, method in methods.items()}
        return grpc.method_handlers_generic_handler(NAME, handlers)

    async def _check(self, requests: Any, context: Any) -> None:
        self._begin(context, 0.0)
        peer = context.peer()
        if not self._checks.take(peer):
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MOST_CHECKS} calls of Check of one connection may be made at once",
            )
        try:
            service = await self._asked(context)
            if service not in self._services:
                await context.abort(grpc.StatusCode.NOT_FOUND)
            await self._send(context, self._status)
        finally:
            self._checks.leave(peer)

    async def _watch(self, requests: Any, context: Any) -> None:
        self._begin(context, WATCH_SECONDS)
        service = await self._asked(context)
        peer = context.peer()
        places = ((self._watches_of_peers, peer), (self._watches, _address(peer)))
        taken = [(one, name) for one, name in places if one.take(name)]
        try:
            if len(taken) < len(places):
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{MOST_WATCHES_BY_PEER} streams of one connection, "
                    f"{MOST_WATCHES_BY_ADDRESS} of one address and {MOST_WATCHES} of all may "
                    "watch at once; use Check",
                )
            async with asyncio.timeout(WATCH_SECONDS):
                await self._report(service, context)
        except TimeoutError:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, f"watched for {WATCH_SECONDS:g} s; watch again"
            )
        finally:
            for one, name in taken:
                one.leave(name)

    async def _report(self, service: str, context: Any) -> None:
        last = None
        while True:
            changed = self._changed
            status = self._status if service in self._services else UNKNOWN
            if status != last:
                await self._send(context, status)
                last = status
            await changed.wait()

    async def _asked(self, context: Any) -> str:
        """The service that a request names."""
        peer = context.peer()
        if peer in self._late:
            # Not all at one moment, for they come back at one.
            await asyncio.sleep(LATE_SECONDS * random.uniform(1.0, 2.0))
            await _refuse_late(context)
        try:
            reading = self._slow.finish(context.read(), _address(peer), READ_SECONDS)
            # gRPC keeps the frames of a call that is aborted for a while: none has the message.
            service, late = _service(await reading), False
        except TimeoutError as error:
            service, late = None, True
            if isinstance(error, Full):
                self._late.add(peer)
                asyncio.get_running_loop().call_later(LATE_SECONDS, self._late.discard, peer)
        if late:
            await _refuse_late(context)
        if service is None:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"send one HealthCheckRequest of at most {MOST_BYTES} bytes",
            )
            raise AssertionError("abort raises")
        return service

    async def _send(self, context: Any, status: Status) -> None:
        """As ``Exchange.send``: who does not take it loses the connection."""
        peer = context.peer()
        try:
            writing = context.write(_response(status))
            await self._unread.finish(writing, _address(peer), self._write_seconds)
        except TimeoutError:
            self._connections.cut(peer, "unread_reply")
            raise asyncio.CancelledError from None
        except grpc.aio.InternalError:  # the caller is gone
            raise asyncio.CancelledError from None

    def _begin(self, context: Any, seconds: float) -> None:
        """Its connection has made a call. The call, and the status that ends it, may take so long
        besides one request and one answer; then its connection is ended."""
        peer = context.peer()
        self._connections.asked.add(peer)
        most = seconds + AT_ONCE + 2 * LATE_SECONDS + self._write_seconds
        loop = asyncio.get_running_loop()
        timer = loop.call_later(most, self._connections.cut, peer, "unread_reply")
        context.add_done_callback(lambda _: timer.cancel())


async def _refuse_late(context: Any) -> NoReturn:
    await context.abort(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        f"no request within {READ_SECONDS:g} s, or {AT_ONCE:g} s beside others as late",
    )
    raise AssertionError("abort raises")


def _address(name: str) -> str:
    """What is counted as one of this peer of gRPC's."""
    return address_of(name) or name


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
