"""Who may make an HTTP call: with credentials, all paths need them but health and pages."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from teacher_proto.errors import LsmError

from teacher_server.access.guard import UNKNOWN, Caller, Guard
from teacher_server.http.connection.host import CALLER_KEY, NAMES_KEY
from teacher_server.http.errors import REASON_KEY, error_response, status_of
from teacher_server.http.pages import page_paths

HEALTH_PATHS = frozenset({"/livez", "/readyz"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class AccessMiddleware:
    """Stands outside the routes, so that unknown paths and methods need credentials too."""

    def __init__(self, app: ASGIApp, guard: Guard, paths: Sequence[str]) -> None:
        self._app = app
        self._guard = guard
        self._paths = frozenset(paths)
        self._public = HEALTH_PATHS | page_paths()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"  # the server speaks no WebSocket and has no lifespan
        if scope["path"] in self._public:
            await self._app(scope, receive, send)
            return
        caller = self._caller(scope)
        shown = [v.decode("latin-1") for k, v in scope["headers"] if k == b"authorization"]
        try:
            self._guard.admit(caller, shown, scope.get(NAMES_KEY, ()))
        except LsmError as error:
            # A failure is in the server's log; who is not let in learns nothing of it.
            with contextlib.suppress(LsmError):
                self._guard.record(caller, str(status_of(error)), error.reason)
            await error_response(error)(scope, receive, send)
            return
        scope[CALLER_KEY] = caller
        scope[REASON_KEY] = []
        await self._app(scope, receive, _Recording(self._guard, caller, scope, receive, send))

    def _caller(self, scope: Scope) -> Caller:
        verb = scope["method"] if scope["method"] in METHODS else UNKNOWN
        path = scope["path"] if scope["path"] in self._paths else UNKNOWN
        return Caller("http", f"{verb} {path}", _peer(scope.get("client")))


class _Recording:
    """Sends a response once its audit line is written; a refusal when it cannot be."""

    def __init__(
        self, guard: Guard, caller: Caller, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._guard = guard
        self._caller = caller
        self._scope = scope
        self._receive = receive
        self._send = send
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            try:
                reason = next(iter(self._scope[REASON_KEY]), "")
                self._guard.record(self._caller, str(message["status"]), reason)
            except LsmError as error:
                self._replaced = True
                await error_response(error)(self._scope, self._receive, self._send)
        if not self._replaced:
            await self._send(message)


def record_unrouted(guard: Guard, peer: tuple[str, int] | None, error: LsmError) -> None:
    """Records a refusal that came before any route: of what is no request, or has no room."""
    caller = Caller("http", UNKNOWN, _peer(peer))
    with contextlib.suppress(LsmError):
        guard.record(caller, str(status_of(error)), error.reason)


def _peer(client: tuple[str, int] | None) -> str:
    return f"{client[0]}:{client[1]}" if client else ""


def caller_of(request: Request) -> Caller:
    """Who makes this call; raises KeyError for one that was not let in."""
    caller: Any = request.scope[CALLER_KEY]
    assert isinstance(caller, Caller)
    return caller
