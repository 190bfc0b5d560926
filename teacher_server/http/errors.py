"""Errors as HTTP: status code, JSON body, Retry-After."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from teacher_proto.errors import (
    ContractMismatchError,
    DeadlineError,
    ForbiddenError,
    InvalidRequestError,
    LsmError,
    OverloadedError,
    TeacherUnavailableError,
    UnauthenticatedError,
    UnknownTeacherError,
)

from teacher_server.failures import forget_frames
from teacher_server.http.replies import to_json

log = logging.getLogger(__name__)

# Where the audit log finds why a call was refused, in the scope.
REASON_KEY = "lsm.reason"
# Nobody reads this status: the caller is gone.
CLIENT_CLOSED = 499
BY_REASON = {
    "REQUEST_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "HEADERS_TOO_LARGE": 431,
    "CLIENT_CLOSED": CLIENT_CLOSED,
    "TOO_MANY_CONNECTIONS": 503,
}
BY_CLASS: tuple[tuple[type[LsmError], int], ...] = (
    (InvalidRequestError, 400),
    (UnauthenticatedError, 401),
    (ForbiddenError, 403),
    (UnknownTeacherError, 404),
    (ContractMismatchError, 412),
    (OverloadedError, 429),
    (TeacherUnavailableError, 503),
    (DeadlineError, 504),
)
# Answered before the whole body was read: the connection is closed, so that the rest of
# the body is not read either.
CLOSING = {401, 403, 404, 405, 413, 415, 503, 504}
FRAMEWORK_FIX = "GET /openapi.json lists the routes and their methods"


def status_of(error: LsmError) -> int:
    """The HTTP status; 500 for what is the server's own fault."""
    if error.reason in BY_REASON:
        return BY_REASON[error.reason]
    return next((code for kind, code in BY_CLASS if isinstance(error, kind)), 500)


def error_response(error: LsmError) -> Response:
    detail: dict[str, Any] = {
        "reason": error.reason,
        "what": error.what,
        "where": error.where,
        "fix": error.fix,
    }
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, UnauthenticatedError) else {}
    if error.retry_after is not None:
        detail["retry_after"] = error.retry_after
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return _json(status_of(error), detail, headers)


def tell_reason(request: Request, reason: str) -> None:
    """Keeps the reason of a refusal for the call's audit line."""
    reasons = request.scope.get(REASON_KEY)
    if reasons is not None:
        reasons.append(reason)


def install_error_handlers(app: FastAPI) -> None:
    """Every error of every route leaves as the same JSON."""

    @app.exception_handler(LsmError)
    async def known(request: Request, error: LsmError) -> Response:
        tell_reason(request, error.reason)
        return _let_go(error, error_response(error))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        reason = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "HTTP")
        tell_reason(request, reason)
        detail = {
            "reason": reason,
            "what": str(error.detail),
            "where": request.url.path[:200],
            "fix": FRAMEWORK_FIX,
        }
        return _let_go(error, _json(error.status_code, detail, dict(error.headers or {})))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("a handler failed with %s", type(error).__name__, exc_info=error)
        tell_reason(request, "INTERNAL")
        detail = {
            "reason": "INTERNAL",
            "what": "the server failed on this request",
            "where": request.url.path[:200],
            "fix": "look for the traceback in the server's log",
        }
        return _let_go(error, _json(500, detail, {}))


def _let_go(error: Exception, answer: Response) -> Response:
    """The answer to an error, which holds nothing of the request any more: futures through which
    it came would keep the body until the collector finds them."""
    forget_frames(error)
    return answer


def _json(status: int, detail: dict[str, Any], headers: dict[str, str]) -> Response:
    if status in CLOSING:
        headers["Connection"] = "close"
    return Response(
        to_json({"error": detail}), status, headers=headers, media_type="application/json"
    )
