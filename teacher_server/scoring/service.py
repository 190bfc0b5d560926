"""The service of both wires: requests to score, teachers described, tokenizers registered.

A handler hands its call to ``TeacherService`` and sends the bytes that it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TypeVar

from teacher_proto import tracing
from teacher_proto.errors import DeadlineError, LsmError
from teacher_proto.types import (
    PositionClass,
    RegisteredTokenizers,
    ScoreReply,
    ServerInfo,
    ServerLimits,
    TokenizerUpload,
)

from teacher_server.access.guard import Caller
from teacher_server.access.rules import Principal, policy_of, run_of
from teacher_server.lanes import Lanes
from teacher_server.lifecycle import Lifecycle, Served
from teacher_server.queue.budget import ByteBudget
from teacher_server.queue.policy import RunPolicy
from teacher_server.queue.scheduler import Deadline
from teacher_server.refusals.errors import refuse, unknown_tokenizer
from teacher_server.refusals.sizes import reply_bytes, reply_too_large
from teacher_server.refusals.validation import check_name, check_readable, is_name
from teacher_server.scoring.context import Bytes, Call, Received, RequestContext, TokenTexts
from teacher_server.scoring.render import RenderCall, Renderer, check_prompt_count
from teacher_server.scoring.replay import ReplayWindow
from teacher_server.scoring.score import score
from teacher_server.teachers.teacher import Teachers
from teacher_server.telemetry.log import bind
from teacher_server.telemetry.metrics import Metrics
from teacher_server.telemetry.observation import Observation, observed
from teacher_server.tokenizers.entry import Entry
from teacher_server.tokenizers.pairs import Registered, StudentTokenizers

T = TypeVar("T")


@contextlib.asynccontextmanager
async def _until(deadline: float, started: float) -> AsyncIterator[None]:
    """Ends the work inside with DeadlineError at ``deadline``; both are ``time.monotonic``."""
    try:
        async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
            yield
    except TimeoutError as error:
        if isinstance(error, LsmError):
            raise
        raise DeadlineError(
            f"the deadline of {deadline - started:.3f} s passed",
            fix="give the call more time, or send less at once",
        ) from None


class TeacherService:
    """Everything that both wires offer besides health and readiness.

    Args:
        budget: of the bytes that the bodies and replies of both wires hold.
        policies: run -> its share, priority and quota, where no credentials name the run.
    """

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        limits: ServerLimits,
        replay: ReplayWindow,
        metrics: Metrics,
        budget: ByteBudget,
        server_version: str,
        policies: Mapping[str, RunPolicy] | None = None,
    ) -> None:
        self.lifecycle = lifecycle
        self.limits = limits
        self.metrics = metrics
        self.budget = budget
        self.version = server_version
        self._lanes = Lanes()
        self._replay = replay
        self._policies = policies or {}
        metrics.watch_ready(lambda: lifecycle.ready)
        metrics.watch_bytes(budget)

    def become_ready(self, teachers: Teachers, students: StudentTokenizers) -> None:
        """Takes the loaded teachers; from now on the server is ready."""
        for teacher in teachers:
            self.metrics.watch_queue(teacher.name, teacher.admission)
        self.metrics.watch_passes({teacher.name: teacher.engine for teacher in teachers})
        # Adapters share the queue of their base.
        self.metrics.watch_runs(list(dict.fromkeys(teacher.admission for teacher in teachers)))
        self.lifecycle.become_ready(Served(teachers, students))

    @property
    def teachers(self) -> Teachers:
        """Raises TeacherUnavailableError while models are loading."""
        return self.lifecycle.served.teachers

    def describe(self, name: str, principal: Principal | None) -> ServerInfo:
        """What GetTeacher answers: every teacher the caller may ask, or the one of this name."""
        teachers = self.teachers.for_principal(principal)
        chosen = [teachers.get(name)] if name else list(teachers)
        students = self.lifecycle.served.students
        # Where runs have credentials, what another one registered is none of the caller's.
        run = None if principal is None else principal.run
        return ServerInfo(
            teachers=tuple(
                replace(teacher.info, tokenizers=students.levels(teacher, run))
                for teacher in chosen
            ),
            limits=self.limits,
            server_version=self.version,
        )

    async def register(
        self, upload: TokenizerUpload, principal: Principal | None, *, named: bool = True
    ) -> Registered:
        """The levels of a student's tokenizer by teacher; teachers it does not fit are left out.

        Args:
            named: whether the upload says which fingerprint its file has.

        Raises:
            InvalidRequestError, ContractMismatchError: see ``StudentTokenizers.register``.
        """
        run = run_of(principal, upload.run, "header.run")
        check_name(run, "header.run")
        with self.lifecycle.working() as served:
            teachers = served.teachers.for_principal(principal)
            return await served.students.register(upload, run, teachers, named=named)

    async def list_tokenizers(self, run: str, caller: Caller) -> RegisteredTokenizers:
        """What the caller's run has registered; without credentials what the named run has,
        or, without a name, all runs.

        Raises:
            ForbiddenError: the call names another run, or the caller may use no teacher.
            TeacherUnavailableError: the server takes no work.
        """
        principal = caller.principal
        self.check_caller(principal)
        named = run_of(principal, run)
        if named:
            check_name(named, "run")
        served = self.lifecycle.served
        teachers = served.teachers.for_principal(principal)
        work = partial(served.students.registered, named or None, teachers)
        return await self.compute(work, 0, caller)

    async def drop_tokenizer(self, run: str, tokenizer_hash: str, caller: Caller) -> bool:
        """Forgets what the caller's run, or the named one, registered under a fingerprint;
        whether there was such a registration.

        Raises:
            InvalidRequestError: the run has no name, or the fingerprint is empty.
            ForbiddenError, TeacherUnavailableError: as ``list_tokenizers``.
        """
        principal = caller.principal
        self.check_caller(principal)
        named = run_of(principal, run)
        check_name(named, "run")
        if not tokenizer_hash:
            raise refuse(
                "it is empty", "tokenizer_hash", "send the fingerprint of a registered tokenizer"
            )
        students = self.lifecycle.served.students
        return await self.compute(partial(students.drop, named, tokenizer_hash), 0, caller)

    def check_caller(self, principal: Principal | None) -> None:
        """Refuses before a body is read what can be refused then.

        Raises:
            TeacherUnavailableError: the server takes no work.
            ForbiddenError: the caller may use no teacher.
        """
        self.lifecycle.check_takes_work()
        self.teachers.usable_by(principal)

    async def compute(self, work: Callable[[], T], size: int, caller: Caller) -> T:
        """``work`` on ``size`` bytes for this caller, in another thread."""
        return await self._lanes.run(work, size=size, owner=caller.work_owner)

    def observe(self, surface: str, method: str) -> AbstractContextManager[Observation]:
        """Counts and logs one request, however it ends."""
        return observed(self.metrics, surface, method)

    async def abandon(self, error: LsmError) -> None:
        """Ends all work in progress with ``error``."""
        self._replay.abandon(error)
        await self._replay.close()

    async def score(self, call: Call) -> Bytes:
        """Answers one request to score, as the policy of the caller's run allows.

        Raises:
            ForbiddenError: another run's request, or a teacher the run may not ask.
            LsmError: see ``scoring.score``; TeacherUnavailableError while the
                server is not ready; DeadlineError at the caller's deadline.
        """
        principal = call.caller.principal
        with (
            tracing.span("Score", "server", headers=call.headers),
            observed(self.metrics, call.surface.name, "Score") as seen,
            self.lifecycle.working() as everything,
        ):
            served = everything if principal is None else everything.usable_by(principal)
            body = await call.read()
            decode = partial(call.decode, body, served.teachers)
            owner = call.caller.work_owner
            found = await self._lanes.run(decode, size=len(body), owner=owner)
            async with _until(found.deadline, call.started):
                entry = None
                if not isinstance(found, Received):
                    entry = served.students.find(found.run, found.tokenizer_hash)
                    if entry is None:
                        raise unknown_tokenizer(found.tokenizer_hash)
                    ids = await served.students.encode(entry, found.run, found.texts)
                    finish = partial(found.finish, ids)
                    found = await self._lanes.run(finish, size=len(body), owner=owner)
                return await self._answer(call, found, served, entry, seen)

    async def render(self, call: RenderCall) -> bytes:
        """Answers how a teacher reads prompts; nothing is scored and no quota is used.

        Raises:
            ForbiddenError: another run's request, or a teacher the run may not ask.
            LsmError: see ``check_prompt_count``; TeacherUnavailableError while the server
                is not ready; DeadlineError at the caller's deadline.
        """
        principal = call.caller.principal
        with (
            tracing.span("Render", "server", headers=call.headers),
            observed(self.metrics, call.surface.name, "Render") as seen,
            self.lifecycle.working() as everything,
        ):
            served = everything.usable_by(principal)
            body = await call.read()
            decode = partial(call.decode, body, served.teachers)
            received = await self.compute(decode, len(body), call.caller)
            async with _until(received.deadline, call.started):
                named = received.request
                if principal is None:
                    check_name(named.run, "run")
                request = replace(named, run=run_of(principal, named.run))
                bind(run=request.run)
                seen.fields |= {"run": request.run, "prompts": len(received.prompts)}
                with self.metrics.rejections(request.run):
                    teacher = served.teachers.get(request.teacher)
                    seen.fields["teacher"] = teacher.name
                    check_prompt_count(len(received.prompts), self.limits)
                    check_readable(request.max_reply_bytes)
                    renderer = Renderer(request, teacher, self.limits, call.encode)
                    await call.expect(renderer.expected(received.size))
                    await renderer.run(received, self._lanes, call.grow)
                seen.fields |= {"rendered": len(renderer.parts), "refused": renderer.refused}
                return call.joined(renderer.parts)

    async def _answer(
        self,
        call: Call,
        received: Received,
        served: Served,
        entry: Entry | None,
        seen: Observation,
    ) -> Bytes:
        """
        Args:
            entry: of the tokenizer whose ids the request's texts were; None where it had none.
        """
        request, caller = received.request, call.caller
        check_name(request.request_id, "request_id")
        caller.request_id = request.request_id
        if caller.principal is None:  # else the run is the credentials', whose name was checked
            check_name(request.run, "run")
        named_teacher = request.teacher if is_name(request.teacher) else ""
        request = replace(request, run=run_of(caller.principal, request.run))
        policy = policy_of(caller.principal, request.run, self._policies)
        bind(run=request.run, request_id=request.request_id)
        seen.fields |= {
            "run": request.run,
            "request_id": request.request_id,
            "teacher": named_teacher,
            "continuations": len(request.continuations),
            "top_k": request.top_k,
        }
        with self.metrics.rejections(request.run):
            teacher = served.teachers.get(request.teacher)
            if entry is None and request.tokenizer_hash != teacher.tokenizer.hash:
                entry = served.students.find(request.run, request.tokenizer_hash)
            context = RequestContext(
                call=call,
                request=request,
                size=received.size,
                teacher=teacher,
                policy=policy,
                limits=self.limits,
                lanes=self._lanes,
                students=served.students,
                entry=entry,
                seen=seen,
            )
            most = reply_bytes(request, call.surface.bytes_per_entry, call.surface.held)
            await call.expect(min(most, self.limits.max_reply_bytes))
            key = (request.run, request.request_id, received.digest)
            work = partial(self._work, context)
            reply, replayed = await self._replay.answer(key, received.deadline, work)
        seen.fields["replayed"] = replayed
        if replayed:
            self.metrics.replayed()
        return reply

    async def _work(self, context: RequestContext, deadline: Deadline) -> Bytes:
        """The reply's bytes, computed for every caller that waits for this request."""
        request, call = context.request, context.call
        scored = await score(context, deadline)
        cost = scored.cost
        self.metrics.scored(request, scored.rows, cost, scored.reply.timing.total_seconds)
        if scored.realignment is not None:
            self.metrics.realigned(request, scored.realignment)
            context.seen.fields |= {
                "realign_seconds": round(scored.realignment.seconds, 6),
                "masked_rows": scored.realignment.rows.get(PositionClass.MASKED, 0),
                "coarse_rows": scored.realignment.rows.get(PositionClass.COARSE, 0),
            }
        context.seen.fields |= {
            "rows": scored.rows,
            "tokens": cost.job_tokens,
            "computed_tokens": cost.computed_tokens,
            "queue_seconds": round(cost.queue_seconds, 6),
            "engine_seconds": round(cost.engine_seconds, 6),
        }
        entries = request.top_k + request.explicit_width
        size = scored.rows * entries * call.surface.bytes_per_entry
        texts: TokenTexts | None = None
        if request.tokenizer_hash != context.teacher.tokenizer.hash:
            texts = await self._shown_texts(context, scored.reply, size)
        encode = partial(call.encode, request, scored.reply, context.teacher, texts)
        reply = await self._lanes.run(encode, size=size, owner=request.run)
        readable = request.max_reply_bytes
        if readable is not None and len(reply) > readable:  # text may be more than its estimate
            raise reply_too_large(len(reply), readable)
        return reply

    async def _shown_texts(
        self, context: RequestContext, reply: ScoreReply, size: int
    ) -> TokenTexts | None:
        """The texts that a reply in a student's tokens shows; None where it shows none."""
        request, entry = context.request, context.entry
        shown = partial(context.call.shown_ids, request, reply)
        ids = await self._lanes.run(shown, size=size, owner=request.run)
        if not len(ids) or entry is None:
            return None
        return await context.students.token_texts(entry, request.run, ids)
