"""Domain errors become rich gRPC statuses here and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from teacher_proto.errors import LsmError
from teacher_proto.status import DETAILS_KEY, to_rpc_status

from teacher_server.failures import as_exception, is_ending

log = logging.getLogger(__name__)

Handler = Callable[[Any, Any], Awaitable[Any]]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call with the status of the error its handler raised.

    Unexpected exceptions become INTERNAL without their text, which may quote a
    request; the traceback goes to the log. Cancellation passes through.
    """

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler.response_streaming:
            return handler  # unknown methods, reflection and health watching
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                _guarded(handler.stream_unary),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            _guarded(handler.unary_unary),
            handler.request_deserializer,
            handler.response_serializer,
        )


def _guarded(method: Handler | None) -> Handler:
    assert method is not None

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
