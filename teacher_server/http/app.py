"""The HTTP routes over ``TeacherService``."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Query
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from teacher_proto.types import Int32, RenderedPrompt, ScoreReply, ScoreRequest

from teacher_server.access.guard import Guard
from teacher_server.access.rules import run_of
from teacher_server.http.access import AccessMiddleware, caller_of
from teacher_server.http.body import Charge, parse_score_body
from teacher_server.http.convert import (
    Encode,
    choose_teacher,
    continuation_texts,
    known_ids,
    score_request,
)
from teacher_server.http.errors import (
    CLIENT_CLOSED,
    error_response,
    install_error_handlers,
    tell_reason,
)
from teacher_server.http.pages import page_routes
from teacher_server.http.render import (
    parse_render_body,
    raw_prompts,
    render_request,
    rendered_json,
)
from teacher_server.http.replies import (
    check_text_bytes,
    render_info,
    render_reply,
    shown_ids,
    to_json,
)
from teacher_server.http.schema import install_schema
from teacher_server.http.tokenizers import make_upload, render_levels, render_registered
from teacher_server.refusals.sizes import check_tokenizer_bytes
from teacher_server.scoring.context import HTTP, Bytes, Received, TextReceived, TokenTexts
from teacher_server.scoring.render import ReceivedRender
from teacher_server.scoring.service import TeacherService
from teacher_server.teachers.teacher import Teacher, Teachers

JSON = "application/json"
# The run of a request that names none, where no credentials do.
DEFAULT_RUN = "http"
NO_ROLES: list[str] = []


class _Posted:
    """A call that came with a JSON body: what both methods below need of it."""

    def __init__(self, request: Request, service: TeacherService, timeout: float) -> None:
        self.surface = HTTP
        self.caller = caller_of(request)
        self.started = time.monotonic()
        self.headers = request.headers.items()
        self.body_read = asyncio.Event()
        self._request = request
        self._service = service
        self._limits = service.limits
        self._timeout = timeout
        self.charge = Charge(service.budget, self.caller.owner, self.started + timeout)

    async def read(self) -> Bytes:
        body = await self.charge.read_json(self._request, self._limits)
        self.body_read.set()
        return body

    async def expect(self, size: int) -> None:
        await self.charge.expect(size)

    def grow(self, size: int) -> bool:
        return self.charge.grow(size)

    @property
    def default_run(self) -> str:
        principal = self.caller.principal
        return DEFAULT_RUN if principal is None else principal.run

    def deadline(self, seconds: float | None) -> float:
        return self.started + (seconds or self._timeout)


class _ScoreCall(_Posted):
    def decode(self, body: Bytes, teachers: Teachers) -> Received | TextReceived:
        parsed = parse_score_body(body)
        teacher = choose_teacher(parsed.teacher, teachers)
        hash_ = parsed.tokenizer_hash or teacher.tokenizer.hash
        deadline = self.deadline(parsed.timeout_seconds)
        texts = continuation_texts(parsed, self._limits)

        def finish(encode: Encode) -> Received:
            request = score_request(parsed, teacher, encode, self._limits, self.default_run)
            return Received(request, deadline, len(body), hashlib.sha256(body).digest())

        if not texts or hash_ == teacher.tokenizer.hash:
            return finish(teacher.tokenizer.encode)

        def finish_with(ids: Sequence[Int32]) -> Received:
            return finish(known_ids(texts, ids))

        run = run_of(self.caller.principal, parsed.run or self.default_run)
        return TextReceived(run, hash_, tuple(texts), deadline, finish_with)

    def shown_ids(self, request: ScoreRequest, reply: ScoreReply) -> Int32:
        return shown_ids(request, reply)

    def encode(
        self, request: ScoreRequest, reply: ScoreReply, teacher: Teacher, texts: TokenTexts | None
    ) -> Bytes:
        if texts is None:
            return render_reply(request, reply, teacher.tokenizer.token_text)
        check_text_bytes(request, reply, texts, self._limits)
        return render_reply(request, reply, texts.get)


class _RenderCall(_Posted):
    def decode(self, body: Bytes, teachers: Teachers) -> ReceivedRender:
        parsed = parse_render_body(body)
        teacher = choose_teacher(parsed.teacher, teachers)
        request = render_request(parsed, teacher.name, self.default_run)
        deadline = self.deadline(parsed.timeout_seconds)
        return ReceivedRender(request, raw_prompts(parsed, len(body)), deadline, len(body))

    def encode(self, prompt: RenderedPrompt) -> bytes:
        return rendered_json(prompt)

    def joined(self, parts: list[bytes]) -> bytes:
        return b'{"prompts":[%b]}' % b",".join(parts)


def make_app(service: TeacherService, guard: Guard, *, timeout_seconds: float) -> FastAPI:
    """The application; ``timeout_seconds`` bounds requests that name no time themselves."""
    app = FastAPI(
        title="lsm-distill teacher server",
        version=service.version,
        docs_url=None,
        redoc_url=None,
    )
    install_error_handlers(app)

    @app.post("/v1/score")
    async def score(request: Request) -> Response:
        """Scores a prompt's continuations: supports and log-probabilities of every row."""
        call = _ScoreCall(request, service, timeout_seconds)
        return await _answer_unless_gone(request, call, service.score(call))

    @app.post("/v1/render")
    async def render(request: Request) -> Response:
        """Shows how a teacher reads prompts: text, ids and their number, or why it cannot."""
        call = _RenderCall(request, service, timeout_seconds)
        return await _answer_unless_gone(request, call, service.render(call))

    @app.get("/v1/teacher")
    async def teacher(request: Request, teacher: str = "") -> Response:
        """The teachers and the server's limits; ``teacher`` chooses one by name."""
        with service.observe(HTTP.name, "GetTeacher"):
            info = service.describe(teacher, caller_of(request).principal)
            return Response(render_info(info), media_type=JSON)

    @app.post("/v1/tokenizers")
    async def tokenizers(
        request: Request, run: str = "", role: Annotated[list[str], Query()] = NO_ROLES
    ) -> Response:
        """Registers a student's tokenizer.json; each ``role`` is ID:ROLE of a special id."""
        with service.observe(HTTP.name, "RegisterTokenizer"):
            caller = caller_of(request)
            principal = caller.principal
            service.check_caller(principal)
            charge = Charge(service.budget, caller.owner, time.monotonic() + timeout_seconds)
            async with contextlib.aclosing(charge):
                check = partial(check_tokenizer_bytes, limits=service.limits)
                file = await charge.read(request, check, service.limits.max_tokenizer_bytes)
                named = run or (DEFAULT_RUN if principal is None else principal.run)
                upload = await service.compute(
                    partial(make_upload, file, named, role), len(file), caller
                )
                del file  # the upload has a copy
                found = await service.register(upload, principal, named=False)
            body = render_levels(found.tokenizer_hash, found.levels)
            return Response(body, media_type=JSON)

    @app.get("/v1/tokenizers")
    async def list_tokenizers(request: Request, run: str = "") -> Response:
        """What the caller's run has registered; without credentials what ``run`` has, or all
        runs have."""
        with service.observe(HTTP.name, "ListTokenizers"):
            found = await service.list_tokenizers(run, caller_of(request))
            return Response(render_registered(found), media_type=JSON)

    @app.delete("/v1/tokenizers")
    async def drop_tokenizer(request: Request, tokenizer_hash: str = "", run: str = "") -> Response:
        """Forgets what the caller's run, or without credentials ``run``, registered under a
        fingerprint; ``dropped`` says whether it had."""
        with service.observe(HTTP.name, "DropTokenizer"):
            caller = caller_of(request)
            named = run or (DEFAULT_RUN if caller.principal is None else caller.principal.run)
            dropped = await service.drop_tokenizer(named, tokenizer_hash, caller)
            return Response(to_json({"dropped": dropped}), media_type=JSON)

    @app.get("/livez")
    async def livez() -> Response:
        """Answers while the process is alive."""
        return Response(to_json({"status": "live"}), media_type=JSON)

    @app.get("/readyz")
    async def readyz() -> Response:
        """200 while the server takes work, else 503 and why."""
        if not service.lifecycle.ready:
            return error_response(service.lifecycle.refusal())
        return Response(to_json({"status": "ready"}), media_type=JSON)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    app.routes.extend(page_routes())
    for path, check in (("/livez", livez), ("/readyz", readyz)):
        app.add_api_route(path, check, methods=["HEAD"], include_in_schema=False)
    install_schema(app, service.limits, guarded=guard.credentials is not None)
    paths = [route.path for route in app.routes if isinstance(route, Route)]
    app.add_middleware(AccessMiddleware, guard=guard, paths=paths)
    return app


async def _answer_unless_gone(
    request: Request, call: _Posted, work: Coroutine[Any, Any, Bytes]
) -> Response:
    """The work's result; the work is cancelled when the client goes away first."""

    async def gone() -> None:
        await call.body_read.wait()
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answered: Response | None = None
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            tell_reason(request, "CLIENT_CLOSED")
            return Response(status_code=CLIENT_CLOSED)
        answered = call.charge.answer(working.result())
        return answered
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
        if answered is None:
            await call.charge.aclose()
