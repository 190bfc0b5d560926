"""What surrounds every gRPC call: who may make it, and the status an error ends it with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2
from teacher_proto.client.credentials import AUTHORIZATION, RUN
from teacher_proto.errors import LsmError, UnauthenticatedError
from teacher_proto.status import DETAILS_KEY, to_rpc_status

from teacher_server.access.guard import UNKNOWN, Caller, Guard
from teacher_server.access.rules import run_of
from teacher_server.failures import as_exception, is_ending

log = logging.getLogger(__name__)

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
PUBLIC_METHODS = frozenset(f"/{HEALTH.full_name}/{name}" for name in HEALTH.methods_by_name)
# Who makes the call that the current task answers; a method without one cannot run.
CALLER: ContextVar[Caller] = ContextVar("caller")

RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Method = Callable[[Any, Any], Awaitable[Any]]
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[RpcHandler | None]]"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call with the status of the error its handler raised.

    Unexpected exceptions become INTERNAL without their text, which may quote a
    request; the traceback goes to the log. Cancellation passes through.
    """

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> RpcHandler | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler.response_streaming:
            return handler  # unknown methods, reflection and health watching
        method: Any = handler.stream_unary or handler.unary_unary
        return _handler(_answered(method), handler)


def _handler(behaviour: Any, of: RpcHandler) -> RpcHandler:
    """``behaviour`` in the place of a handler's own."""
    form = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(of.request_streaming), bool(of.response_streaming)]
    made: RpcHandler = form(behaviour, of.request_deserializer, of.response_serializer)
    return made


def _answered(method: Method) -> Method:
    async def call(request: Any, context: Any) -> Any:
        try:
            return await method(request, context)
        except grpc.aio.AbortError:
            raise
        except LsmError as error:
            await abort(context, error)
        except BaseException as error:
            if is_ending(error):
                raise
            failure = as_exception(error)
            log.error("a handler failed with %s", type(error).__name__, exc_info=failure)
            await abort(context, failure)

    return call


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
    code, status = to_rpc_status(error)
    trailers = ((DETAILS_KEY, status.SerializeToString()),)
    await context.abort(code, status.message, trailers)


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls in: every method but health needs credentials where there are any.

    Where client certificates are asked for they are looked at when the call begins; a
    call elsewhere is refused before its message is read.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        certificates = guard.certificates
        self._asks_certificates = certificates is not None and certificates.client_ca is not None

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> RpcHandler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if method in PUBLIC_METHODS:
            return handler
        metadata = list(handler_call_details.invocation_metadata or ())
        shown = [str(value) for key, value in metadata if key == AUTHORIZATION]
        runs = [value for key, value in metadata if key == RUN and isinstance(value, bytes)]
        caller = Caller("grpc", method if handler else UNKNOWN, "")
        if not self._asks_certificates:
            try:
                self._guard.admit(caller, shown, ())
            except LsmError as error:
                return self._refusing(caller, error)
        if handler is None:
            return self._unknown(caller, shown)
        return self._guarded(handler, caller, shown, runs)

    def _enter(self, caller: Caller, shown: list[str], runs: Iterable[bytes], context: Any) -> None:
        caller.peer = context.peer()
        if self._asks_certificates:
            self._guard.admit(caller, shown, _names(context.auth_context()))
        for run in runs:
            run_of(caller.principal, run.decode("utf-8", "replace"))
        CALLER.set(caller)

    def _refusing(self, caller: Caller, error: LsmError) -> RpcHandler:
        async def refuse(requests: Any, context: Any) -> None:
            caller.peer = context.peer()
            await abort(context, self._recorded(caller, error))

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _unknown(self, caller: Caller, shown: list[str]) -> RpcHandler:
        async def answer(requests: Any, context: Any) -> None:
            try:
                self._enter(caller, shown, (), context)
            except LsmError as error:
                await abort(context, self._recorded(caller, error))
            self._guard.record(caller, grpc.StatusCode.UNIMPLEMENTED.name)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

        return grpc.stream_stream_rpc_method_handler(answer)

    def _guarded(
        self, handler: RpcHandler, caller: Caller, shown: list[str], runs: list[bytes]
    ) -> RpcHandler:
        async def unary(request: Any, context: Any) -> Any:
            method: Any = handler.stream_unary or handler.unary_unary
            try:
                self._enter(caller, shown, runs, context)
                reply = await method(request, context)
            except asyncio.CancelledError:
                self._cancelled(caller)
                raise
            except BaseException as error:
                if is_ending(error):
                    raise
                raise self._recorded(caller, as_exception(error)) from None
            self._guard.record(caller, "OK")
            return reply

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            method: Any = handler.stream_stream or handler.unary_stream
            try:
                self._enter(caller, shown, runs, context)
                async for reply in method(request, context):
                    yield reply
                self._guard.record(caller, "OK")
            except LsmError as error:
                await abort(context, self._recorded(caller, error))

        return _handler(stream if handler.response_streaming else unary, handler)

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


def _names(context: Any) -> tuple[str, ...]:
    """Names in the verified client certificate."""
    found = [
        *context.get("x509_common_name", ()),
        *context.get("x509_subject_alternative_name", ()),
    ]
    return tuple(name.decode("utf-8", "replace") for name in found)
