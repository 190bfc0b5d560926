"""What surrounds every gRPC call: who may make it, and the status an error ends it with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeAlias, cast

import grpc
from teacher_proto.client.credentials import AUTHORIZATION, RUN
from teacher_proto.errors import (
    DeadlineError,
    InvalidRequestError,
    LsmError,
    OverloadedError,
    UnauthenticatedError,
)
from teacher_proto.status import DETAILS_KEY, to_rpc_status

from teacher_server.access.guard import UNKNOWN, Caller, Guard
from teacher_server.access.rules import run_of
from teacher_server.failures import as_exception, forget_frames, is_ending
from teacher_server.grpc import health
from teacher_server.grpc.exchange import Exchange
from teacher_server.grpc.places import Places
from teacher_server.grpc.servicer import SERVICE, Method

log = logging.getLogger(__name__)

PUBLIC_METHODS = frozenset(f"/{health.NAME}/{name}" for name in health.METHODS)
OWN = f"/{SERVICE}/"
# Bytes of a message to another service than ours: it holds names.
MOST_ELSEWHERE = 4096
# Streams to such a service at once: of everybody, and of one run or, where none is known, of
# one address; and the seconds for which one may be open.
MOST_STREAMS, MOST_STREAMS_BY_OWNER = 32, 4
STREAM_SECONDS = 60.0

RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[RpcHandler | None]]"
# Makes the exchange of a call.
Exchanges = Callable[[Caller, Any], Exchange]
# Lets a call in, given its context; raises LsmError for one that may not be made.
Begin = Callable[[Any], None]


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
    forget_frames(error)
    code, status = to_rpc_status(error)
    trailers = ((DETAILS_KEY, status.SerializeToString()),)
    await context.abort(code, status.message, trailers)


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls in: every method but health needs credentials where there are any.

    Whoever is not let in is refused before a message is read: all methods are streams.
    """

    def __init__(self, guard: Guard, exchanges: Exchanges) -> None:
        self._guard = guard
        self._exchanges = exchanges
        self._streams = Places(MOST_STREAMS, MOST_STREAMS_BY_OWNER)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> RpcHandler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if method in PUBLIC_METHODS:
            return handler
        shown: list[str] = []
        runs: list[bytes] = []
        for key, value in handler_call_details.invocation_metadata or ():
            if key == AUTHORIZATION:
                shown.append(str(value))
            elif key == RUN and isinstance(value, bytes):
                runs.append(value)
        caller = Caller("grpc", method if handler else UNKNOWN, "")
        begin = partial(self._enter, caller, shown, runs)
        if handler is None:
            return self._unknown(caller, begin)
        if method.startswith(OWN):
            return self._exchanged(cast(Method, handler.stream_stream), caller, begin)
        return self._streamed(handler, caller, begin)

    def _enter(self, caller: Caller, shown: list[str], runs: Iterable[bytes], context: Any) -> None:
        caller.peer = context.peer()
        self._guard.admit(caller, shown, _names(context.auth_context()))
        for run in runs:
            run_of(caller.principal, run.decode("utf-8", "replace"))

    def _unknown(self, caller: Caller, begin: Begin) -> RpcHandler:
        async def answer(requests: Any, context: Any) -> None:
            try:
                begin(context)
                self._guard.record(caller, grpc.StatusCode.UNIMPLEMENTED.name)
            except LsmError as error:
                await self._fail(caller, context, error)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

        return grpc.stream_stream_rpc_method_handler(answer)

    def _exchanged(self, method: Method, caller: Caller, begin: Begin) -> RpcHandler:
        """One of the service's own methods: a message or several, and one reply."""

        async def call(requests: Any, context: Any) -> None:
            recorded = False
            try:
                begin(context)
                async with self._exchanges(caller, context) as exchange:
                    reply = await method(exchange)
                    if self._guard.audit is not None:
                        self._guard.record(caller, "OK")
                    recorded = True
                    await exchange.send(reply)
            except asyncio.CancelledError:
                if not recorded:
                    self._cancelled(caller)
                raise
            except BaseException as error:
                if is_ending(error):
                    raise
                await self._fail(caller, context, as_exception(error))

        return grpc.stream_stream_rpc_method_handler(call)

    def _streamed(self, handler: RpcHandler, caller: Caller, begin: Begin) -> RpcHandler:
        """A method of another service: messages of names, and replies in turn."""

        async def call(requests: Any, context: Any) -> None:
            try:
                begin(context)
                await self._stream(handler, caller, context)
                self._guard.record(caller, "OK")
            except asyncio.CancelledError:
                self._cancelled(caller)
                raise
            except BaseException as error:
                if is_ending(error):
                    raise
                await self._fail(caller, context, as_exception(error))

        return grpc.stream_stream_rpc_method_handler(call)

    async def _stream(self, handler: RpcHandler, caller: Caller, context: Any) -> None:
        parse: Any = handler.request_deserializer
        method: Any = handler.stream_stream
        serialize: Any = handler.response_serializer
        owner = caller.work_owner
        if not self._streams.take(owner):
            raise OverloadedError(
                f"{MOST_STREAMS_BY_OWNER} streams of one caller and {MOST_STREAMS} of all may "
                f"be open at once to {caller.method}",
                fix="end the others first",
                retry_after=STREAM_SECONDS,
            )
        try:
            async with asyncio.timeout(STREAM_SECONDS):
                while True:
                    # One message and its replies are as one call of the service's own.
                    async with self._exchanges(caller, context) as exchange:
                        message = await exchange.next()
                        if message is None:
                            return
                        _check_elsewhere(len(message))
                        async for reply in method(_alone(parse(message)), context):
                            await exchange.send(serialize(reply))
        except TimeoutError as error:
            if isinstance(error, LsmError):
                raise
            raise DeadlineError(
                f"the stream was open for {STREAM_SECONDS:g} s", fix="open another"
            ) from None
        finally:
            self._streams.leave(owner)

    async def _fail(self, caller: Caller, context: Any, error: Exception) -> None:
        """Ends the call with the error's status.

        Unexpected exceptions become INTERNAL without their text, which may quote a
        request; the traceback goes to the log.
        """
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if not isinstance(error, LsmError):
            log.error("a handler failed with %s", type(error).__name__, exc_info=error)
        await abort(context, self._recorded(caller, error))

    def _recorded(self, caller: Caller, error: Exception) -> Exception:
        """The error to answer with: this one, or that its record cannot be written."""
        code, _ = to_rpc_status(error)
        reason = error.reason if isinstance(error, LsmError) else "INTERNAL"
        try:
            self._guard.record(caller, code.name, reason)
        except LsmError as failure:
            # Those who are not let in learn nothing of the server's state.
            return error if isinstance(error, UnauthenticatedError) else failure
        return error

    def _cancelled(self, caller: Caller) -> None:
        try:
            self._guard.record(caller, "CANCELLED")
        except LsmError:
            return  # it is in the server's log, and nobody waits for an answer


def _check_elsewhere(size: int) -> None:
    if size > MOST_ELSEWHERE:
        raise InvalidRequestError(
            f"the message is {size} bytes, of {MOST_ELSEWHERE} at most",
            fix="ask for less at once",
            reason="REQUEST_TOO_LARGE",
        )


async def _alone(message: Any) -> AsyncIterator[Any]:
    yield message


def _names(context: Any) -> tuple[str, ...]:
    """Names in the verified client certificate."""
    found = [
        *context.get("x509_common_name", ()),
        *context.get("x509_subject_alternative_name", ()),
    ]
    return tuple(name.decode("utf-8", "replace") for name in found)
