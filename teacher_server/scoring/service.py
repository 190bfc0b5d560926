"""The front door of both wires: deadlines, replay, drain, metrics and logs.

Handlers decode, call ``TeacherService`` and send the bytes it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from teacher_proto import tracing
from teacher_proto.errors import DeadlineError, LsmError
from teacher_proto.types import (
    Continuation,
    Level,
    PositionClass,
    ScoreReply,
    ScoreRequest,
    ServerInfo,
    ServerLimits,
    Status,
    TokenizerUpload,
)

from teacher_server.access.guard import Caller
from teacher_server.access.rules import Principal, authorize_any, policy_of, run_of
from teacher_server.lanes import Lanes
from teacher_server.lifecycle import Lifecycle
from teacher_server.queue.policy import RunPolicy
from teacher_server.queue.scheduler import Deadline
from teacher_server.refusals.validation import check_name, is_name, row_count
from teacher_server.scoring.replay import ReplayWindow
from teacher_server.scoring.score import Scored, score
from teacher_server.teachers.teacher import Teacher, Teachers
from teacher_server.teachers.tokenizer import TextTokenizer
from teacher_server.telemetry.log import bind
from teacher_server.telemetry.metrics import Metrics
from teacher_server.telemetry.observation import Observation, observed
from teacher_server.tokenizers.pairs import StudentTokenizers

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Surface:
    """A wire: its name, and what one (id, log-probability) takes in its replies, bytes."""

    name: str
    bytes_per_entry: int


GRPC = Surface("grpc", bytes_per_entry=8)
# {"token_id":49151,"token":"\\u00e9...","log_prob":-12.345678901234567}
HTTP = Surface("http", bytes_per_entry=80)


class Call(Protocol):
    """One request to score, as a wire received it."""

    @property
    def surface(self) -> Surface: ...

    @property
    def headers(self) -> Iterable[tuple[str, Any]]:
        """What came beside the request; a traceparent among it joins the caller's trace."""
        ...

    async def read(self) -> bytes:
        """The bytes the request came in; equal bytes are equal work."""
        ...

    def decode(self, body: bytes, teachers: Teachers) -> tuple[ScoreRequest, float | None]:
        """(request, seconds the caller gives; None for no end). Runs in another thread."""
        ...

    def encode(self, request: ScoreRequest, reply: ScoreReply, teacher: Teacher) -> bytes:
        """The reply in the surface's format. Runs in another thread."""
        ...


@dataclass(frozen=True)
class _Received:
    """A request as it was read.

    Attributes:
        timeout: seconds the caller gives; None for no end.
        size: bytes of the body.
        digest: of the body; equal bytes are equal work.
    """

    request: ScoreRequest
    timeout: float | None
    size: int
    digest: bytes


class TeacherService:
    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        limits: ServerLimits,
        replay: ReplayWindow,
        metrics: Metrics,
        server_version: str,
        policies: Mapping[str, RunPolicy] | None = None,
    ) -> None:
        self.lifecycle = lifecycle
        self.limits = limits
        self.metrics = metrics
        self.lanes = Lanes()
        self._replay = replay
        self._policies = policies or {}
        self.version = server_version
        self._teachers: Teachers | None = None
        self._students: StudentTokenizers | None = None
        self.active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.watch_ready(lambda: lifecycle.ready)

    def serve(self, teachers: Teachers, students: StudentTokenizers) -> None:
        """Takes the loaded teachers; from now on the server is ready."""
        self._teachers = teachers
        self._students = students
        for teacher in teachers:
            self.metrics.watch_queue(teacher.name, teacher.admission)
        self.metrics.watch_passes({teacher.name: teacher.engine for teacher in teachers})
        # Adapters share the queue of their base.
        self.metrics.watch_runs(list(dict.fromkeys(teacher.admission for teacher in teachers)))
        self.lifecycle.become_ready()

    @property
    def teachers(self) -> Teachers:
        """Raises TeacherUnavailableError while models are loading."""
        if self._teachers is None:
            raise self.lifecycle.refusal()
        return self._teachers

    @property
    def students(self) -> StudentTokenizers:
        """Raises TeacherUnavailableError while models are loading."""
        if self._students is None:
            raise self.lifecycle.refusal()
        return self._students

    def describe(self, name: str, principal: Principal | None) -> ServerInfo:
        """What GetTeacher answers: every teacher the caller may ask, or the one of this name."""
        teachers = self.teachers.for_principal(principal)
        chosen = [teachers.get(name)] if name else list(teachers)
        return ServerInfo(
            teachers=tuple(
                replace(teacher.info, tokenizers=self.students.levels(teacher))
                for teacher in chosen
            ),
            limits=self.limits,
            server_version=self.version,
        )

    async def register(
        self, upload: TokenizerUpload, principal: Principal | None
    ) -> dict[str, Level]:
        """Levels of a student's tokenizer by teacher; teachers it does not fit are left out.

        Raises:
            InvalidRequestError, ContractMismatchError: see ``StudentTokenizers.register``.
        """
        run = run_of(principal, upload.run, "header.run")
        check_name(run, "header.run")
        return await self.students.register(upload, run, self.teachers.for_principal(principal))

    def check_caller(self, principal: Principal | None) -> None:
        """What can be told before a body is read.

        Raises:
            TeacherUnavailableError: the server takes no work.
            ForbiddenError: the caller may use no teacher.
        """
        self.lifecycle.check_takes_work()
        authorize_any(principal, self.teachers.names)

    def text_tokenizer(self, hash_: str, teacher: Teacher) -> TextTokenizer:
        """The tokenizer of a request's ids; raises ContractMismatchError when it is unknown."""
        if hash_ == teacher.tokenizer.hash:
            return teacher.tokenizer
        return self.students.text_tokenizer(hash_)

    async def score(self, call: Call, caller: Caller) -> bytes:
        """Answers one request to score, as the policy of the caller's run allows.

        Raises:
            ForbiddenError: another run's request, or a teacher the run may not ask.
            LsmError: see ``scoring.score``; TeacherUnavailableError while the
                server is not ready; DeadlineError at the caller's deadline.
        """
        started = time.monotonic()
        with (
            tracing.span("Score", "server", headers=call.headers),
            self.observe(call.surface.name, "Score") as seen,
        ):
            self.check_caller(caller.principal)
            with self._counted():
                received = await self._receive(call, caller.principal)
                timeout = received.timeout
                end = math.inf if timeout is None else started + timeout
                try:
                    async with asyncio.timeout_at(None if timeout is None else end):
                        return await self._score(call, caller, received, started, end, seen)
                except TimeoutError as error:
                    if isinstance(error, LsmError):
                        raise
                    raise DeadlineError(
                        f"the deadline of {timeout:.3f} s passed",
                        fix="give the call more time, or send less at once",
                    ) from None

    async def compute(self, work: Callable[[], T], size: int, principal: Principal | None) -> T:
        """``work`` on ``size`` bytes for this caller, in another thread."""
        owner = "" if principal is None else principal.run
        return await self.lanes.run(work, size=size, owner=owner)

    async def _receive(self, call: Call, principal: Principal | None) -> _Received:
        body = await call.read()
        teachers = self.teachers.for_principal(principal)

        def decode() -> _Received:
            request, timeout = call.decode(body, teachers)
            return _Received(request, timeout, len(body), hashlib.sha256(body).digest())

        return await self.compute(decode, len(body), principal)

    async def _score(
        self,
        call: Call,
        caller: Caller,
        received: _Received,
        started: float,
        end: float,
        seen: Observation,
    ) -> bytes:
        request = received.request
        check_name(request.request_id, "request_id")
        caller.request_id = request.request_id
        request = replace(request, run=run_of(caller.principal, request.run))
        check_name(request.run, "run")
        policy = policy_of(caller.principal, request.run, self._policies)
        seen.fields |= _request_fields(request)
        bind(run=request.run, request_id=request.request_id)
        with self.metrics.rejections(request.run):
            teacher = self.teachers.for_principal(caller.principal).get(request.teacher)
            received = replace(received, request=request)
            return await self._answer(call, received, policy, teacher, started, end, seen)

    async def _answer(
        self,
        call: Call,
        received: _Received,
        policy: RunPolicy,
        teacher: Teacher,
        started: float,
        end: float,
        seen: Observation,
    ) -> bytes:
        request = received.request

        async def compute(deadline: Deadline) -> bytes:
            scored = await score(
                request,
                teacher,
                self.limits,
                deadline,
                students=self.students,
                lanes=self.lanes,
                size=received.size,
                policy=policy,
                bytes_per_entry=call.surface.bytes_per_entry,
                started=started,
            )
            rows = self._note(request, scored, seen)
            entries = request.top_k + max((_explicit(c) for c in request.continuations), default=0)
            encode = partial(call.encode, request, scored.reply, teacher)
            size = rows * entries * call.surface.bytes_per_entry
            return await self.lanes.run(encode, size=size, owner=request.run)

        key = (request.run, request.request_id, received.digest)
        reply, replayed = await self._replay.answer(key, end, compute)
        seen.fields["replayed"] = replayed
        if replayed:
            self.metrics.replayed()
        return reply

    def _note(self, request: ScoreRequest, scored: Scored, seen: Observation) -> int:
        """Tells metrics and log what was scored; the number of rows."""
        timing = scored.reply.timing
        answered = zip(request.continuations, scored.reply.results, strict=True)
        rows = sum(row_count(asked) for asked, got in answered if got.status is Status.OK)
        self.metrics.scored(
            request.teacher,
            request.run,
            rows=rows,
            tokens=scored.job_tokens,
            top_k=request.top_k,
            timing=timing,
        )
        if scored.figures is not None:
            self.metrics.realigned(request.teacher, request.tokenizer_hash, scored.figures)
            seen.fields |= {
                "realign_seconds": round(scored.figures.seconds, 6),
                "masked_rows": scored.figures.rows.get(PositionClass.MASKED, 0),
            }
        seen.fields |= {
            "rows": rows,
            "tokens": scored.job_tokens,
            "computed_tokens": timing.computed_tokens,
            "queue_seconds": round(timing.queue_seconds, 6),
            "engine_seconds": round(timing.engine_seconds, 6),
        }
        return rows

    def observe(self, surface: str, method: str) -> AbstractContextManager[Observation]:
        """Counts and logs one request, however it ends."""
        return observed(self.metrics, surface, method)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.active -= 1
            if self.active == 0:
                self._idle.set()

    async def drained(self, seconds: float) -> bool:
        """Waits until no request is in progress; False when ``seconds`` were not enough."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def abandon(self, error: LsmError) -> None:
        """Ends all work in progress with ``error``."""
        self._replay.abandon(error)
        await self._replay.close()


def _explicit(continuation: Continuation) -> int:
    ids = continuation.explicit_ids
    return 0 if ids is None else int(ids.shape[1])


def _request_fields(request: ScoreRequest) -> dict[str, Any]:
    return {
        "run": request.run,
        "request_id": request.request_id,
        "teacher": request.teacher if is_name(request.teacher) else "",
        "continuations": len(request.continuations),
        "top_k": request.top_k,
    }
