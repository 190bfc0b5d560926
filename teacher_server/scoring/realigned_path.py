"""The path of a request in another tokenizer than the teacher's.

What the teacher reads of it, and what its rows are in the student's tokens, is found where the
student's tokenizer runs (``realign.requests``). Here its sizes are checked, what it asks is run
as jobs, and what it says is not believed until it is checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from teacher_proto.client.reply_check import check_reply
from teacher_proto.errors import ContractMismatchError, DeadlineError, PoisonedReplyError
from teacher_proto.rows import Rows, WideRows, required
from teacher_proto.types import (
    ContinuationScores,
    Int32,
    MaskReason,
    PositionClass,
    ScoreReply,
    Status,
    TeacherIdentity,
    Timing,
)

from teacher_server.engines.base import Job, ScoredSpan
from teacher_server.frames import Frame, FrameError
from teacher_server.realign.requests.messages import (
    WIDE_RECEIVED_BYTES,
    Asked,
    AskedContextFree,
    AskedContinuation,
    AskedPaths,
    AskedRollouts,
    Pause,
    Plan,
    Realigned,
    RealignRequest,
    TextSize,
)
from teacher_server.realign.requests.request import CONTEXT_FREE_BEST, CONTEXT_FREE_ROWS, best_of
from teacher_server.realign.requests.request_frames import ENOUGH, GO, rows_frame, start_frame
from teacher_server.realign.requests.step_frames import StepReader
from teacher_server.refusals.facts import StudentFacts
from teacher_server.refusals.sizes import (
    ROWS_PER_REPLY,
    check_row_bytes,
    check_session_bytes,
    check_sizes,
    check_text,
    session_memory,
)
from teacher_server.scoring.context import RequestContext
from teacher_server.scoring.jobs import REST_OF_BLOCK, JobRunner, tokens_after, tokens_of_paths
from teacher_server.scoring.without_rows import not_finite
from teacher_server.settings.tokenizers import TokenizerSettings
from teacher_server.telemetry.realignment_totals import EndedEarly, RealignmentTotals

T = TypeVar("T")
# Bytes of a message that are read or written on the event loop: a tenth of a millisecond.
AT_ONCE = 1 << 16
# Tokens of a path that is not longer than most, and the one that is never read after it.
PATH_TOKENS = 2
# Rounds of extra rows where the settings leave their number to the engine.
EXTRA_ROUNDS = 2
# What the check of a reply compares with what is expected, of which nothing is here.
NO_IDENTITY = TeacherIdentity("", "", "", "", "", "")


class Session(Protocol):
    """One request where the student's tokenizer runs."""

    async def ask(self, frame: Frame) -> Frame:
        """What it says after ``frame``; raises LsmError when it cannot go on."""
        ...

    async def reserve(self, size: int) -> None:
        """Waits until there is room for ``size`` bytes, which its rows and what is made of
        them take."""
        ...


async def realigned_scores(
    context: RequestContext,
    prompt: Int32,
    session: Session,
    student: StudentFacts,
    settings: TokenizerSettings,
    runner: JobRunner,
) -> tuple[tuple[ContinuationScores, ...], RealignmentTotals]:
    """Scores of a validated request.

    Rows beyond the rollouts' are asked for while there is as much time left as the request has
    taken so far, for the walk that follows on them; then it ends with what it has. In
    deterministic mode the time decides nothing but whether there is a reply.

    Args:
        prompt: int32 [P], as the teacher reads it.
        session: of the request's tokenizer and the teacher's.
        student: what is known of the request's tokenizer.

    Raises:
        InvalidRequestError: the continuations are too long for the teacher, or the rows
            to realign are too large.
        FrameError: what the session says cannot be.
        LsmError: see ``JobRunner.run`` and ``Session.ask``.
    """

    async def compute(work: Callable[[], T], size: int) -> T:
        if size <= AT_ONCE:
            return work()
        return await context.lanes.run(work, size=size, owner=context.request.run)

    asked = await compute(partial(_realign_request, context, len(prompt), settings), context.size)
    reader = StepReader(asked)
    frame = start_frame(asked)
    ended_early: EndedEarly | None = None
    deterministic = context.teacher.facts.deterministic
    further, read = 0, tuple[ScoredSpan, ...]()
    wide_ids: Int32 | None = None
    while True:
        said = await session.ask(frame)
        if said.nbytes <= AT_ONCE:
            step = reader.read(said)
        else:
            step = await compute(partial(reader.read, said), said.nbytes)
        match step:
            case Realigned():
                await compute(partial(_check_result, step, context, student), said.nbytes)
                return _as_asked(step, context), _totals(step, reader, ended_early)
            case TextSize():
                check_text(step.text_bytes, "continuations", context.limits)
                frame = GO
            case Plan():
                best = best_of(asked, step.limit)
                wide_ids = _wide_ids(step, asked, best, context)
                if step.wide_ids and wide_ids is None:
                    ended_early = EndedEarly.MEMORY
                    step = replace(step, wide_ids=())
                size = step.session_bytes(asked, best)
                _check_plan(step, context, len(prompt), step.row_bytes(best))
                check_session_bytes(size, settings.worker_memory_bytes)
                await session.reserve(size)
                extra = step.extra_rows(asked, best)
                if asked.extra_budget(step.needed) and not extra:
                    ended_early = EndedEarly.MEMORY
                further = _further_tokens(step, asked, extra, context)
                frame = GO
            case Pause():
                frame = GO
            case AskedRollouts() | AskedContextFree() | AskedPaths():
                job = _job(step, prompt, asked, reader.plan.limit, wide_ids)
                tokens = None
                if isinstance(step, AskedRollouts):
                    read = job.spans
                if isinstance(step, AskedPaths):
                    tokens = await compute(partial(_path_tokens, job, read, context), said.nbytes)
                optional = not (isinstance(step, AskedRollouts) or deterministic)
                spare = reader.seconds + runner.cost.engine_seconds if optional else 0.0
                try:
                    rows = (await runner.run(job, tokens, further=further, spare=spare)).rows
                except DeadlineError:
                    if not optional:
                        raise
                    ended_early, frame = EndedEarly.DEADLINE, ENOUGH
                    continue
                frame = await compute(partial(rows_frame, rows), sum(map(_row_bytes, rows)))


def _realign_request(
    context: RequestContext, prompt_tokens: int, settings: TokenizerSettings
) -> RealignRequest:
    request, facts = context.request, context.teacher.facts
    return RealignRequest(
        teacher=facts.name,
        continuations=tuple(
            AskedContinuation(c.token_ids, c.selected_positions, c.explicit_ids)
            for c in request.continuations
        ),
        top_k=request.top_k,
        temperature=request.temperature,
        student_vocabulary_size=request.student_vocabulary_size,
        sampled=request.returns.sampled,
        log_tail=request.returns.log_tail,
        coarse=request.returns.coarse,
        vocabulary_size=facts.vocabulary_size,
        prompt_tokens=prompt_tokens,
        max_length=facts.max_length,
        context_free_rows=settings.context_free_rows,
        extra_rounds=_extra_rounds(context, settings),
        extra_rows_per_token=settings.extra_rows_per_token,
        extra_rows=settings.extra_rows,
        extra_least_open=settings.extra_least_open,
        memory_bytes=session_memory(settings.worker_memory_bytes),
    )


def _extra_rounds(context: RequestContext, settings: TokenizerSettings) -> int:
    rounds = settings.extra_rounds
    if rounds is None:
        rounds = EXTRA_ROUNDS if context.teacher.facts.keeps_prefixes else 0
    return rounds if settings.extra_rows_per_token else 0


def _check_plan(plan: Plan, context: RequestContext, prompt_tokens: int, row_bytes: int) -> None:
    facts, limits = context.teacher.facts, context.limits
    bytes_per_entry = context.call.surface.bytes_per_entry
    check_sizes(context.request, prompt_tokens, facts, limits, bytes_per_entry, plan.lengths)
    check_row_bytes(row_bytes, limits)


def _wide_ids(
    plan: Plan, request: RealignRequest, best: int, context: RequestContext
) -> Int32 | None:
    """What wide rows list besides ``best`` ids; None where no row is to be wide, or what they take
    fits neither into the request's memory nor beside its other rows."""
    rows = plan.wide_rows(request, best)
    size = plan.row_bytes(best) + rows * len(plan.wide_ids) * WIDE_RECEIVED_BYTES
    if not rows or size > ROWS_PER_REPLY * context.limits.max_reply_bytes:
        return None
    return np.array(plan.wide_ids, np.int32)


def _job(
    asked: Asked, prompt: Int32, request: RealignRequest, limit: int, wide_ids: Int32 | None
) -> Job:
    """What is asked as a job of the engine; only ids below ``limit`` are in its rows. Along the
    rollouts rows may be wide."""
    best = best_of(request, limit)
    match asked:
        case AskedRollouts():
            spans = [ScoredSpan(span.token_ids, span.positions) for span in asked.spans]
        case AskedContextFree():
            prompt, best = asked.before, min(CONTEXT_FREE_BEST, limit)
            # A row does not depend on its own token.
            each = asked.tokens[:, None].repeat(2, axis=1)
            spans = [ScoredSpan(ids, np.array([1], np.int32)) for ids in each]
        case AskedPaths():
            spans = [ScoredSpan(ids, np.array([len(ids) - 1], np.int32)) for ids in asked.sequences]
    return Job(
        prompt_ids=prompt,
        spans=tuple(spans),
        top_k=best,
        temperature=request.temperature,
        vocabulary_limit=limit,
        want_sampled=isinstance(asked, AskedRollouts),
        wide_ids=wide_ids if isinstance(asked, AskedRollouts) else None,
    )


def _row_bytes(rows: Rows | None) -> int:
    """Bytes of a span's rows, those that are wide included; None: they are not finite."""
    if rows is None:
        return 0
    wide = rows.wide.nbytes + rows.wide_log_probs.nbytes if isinstance(rows, WideRows) else 0
    return wide + sum(array.nbytes for array in rows.arrays().values())


def _path_tokens(job: Job, read: tuple[ScoredSpan, ...], context: RequestContext) -> int:
    """For which rows after paths count, where the rollouts ``read`` were read before."""
    kept = context.teacher.facts.keeps_prefixes
    return tokens_after(job, read) if kept else tokens_of_paths(job)


def _further_tokens(plan: Plan, request: RealignRequest, rows: int, context: RequestContext) -> int:
    """For which its jobs after the first may count: ``rows`` extra rows, and one job of
    context-free rows. A request may need more of these, once for its teacher and temperature."""
    tokens = 2 * CONTEXT_FREE_ROWS + 1 if request.context_free_rows else 0
    if context.teacher.facts.keeps_prefixes:
        return tokens + rows * (REST_OF_BLOCK + PATH_TOKENS)
    if rows:
        tokens += request.extra_rounds * (request.prompt_tokens + sum(plan.lengths))
    return tokens + rows * PATH_TOKENS


def _check_result(result: Realigned, context: RequestContext, student: StudentFacts) -> None:
    """Raises FrameError for a result that would break the contract as a reply."""
    request = context.request
    sizes = (request.student_vocabulary_size, student.vocabulary_size)
    everything = replace(
        request,
        expected_identity="",
        student_vocabulary_size=min(size for size in sizes if size is not None),
        returns=replace(request.returns, realignment=True),
    )
    reply = ScoreReply(request.request_id, NO_IDENTITY, result.scores, Timing())
    try:
        check_reply(everything, reply)
    except (PoisonedReplyError, ContractMismatchError) as error:
        raise FrameError(f"{error.where} {error.what}") from None


def _as_asked(result: Realigned, context: RequestContext) -> tuple[ContinuationScores, ...]:
    scores = [not_finite() if s.status is Status.NON_FINITE else s for s in result.scores]
    if not context.request.returns.realignment:
        scores = [replace(one, realignment=None) for one in scores]
    return tuple(scores)


def _totals(
    result: Realigned, reader: StepReader, ended_early: EndedEarly | None
) -> RealignmentTotals:
    blocks = [one.realignment for one in result.scores if one.realignment is not None]

    def joined(name: str) -> NDArray[Any]:
        parts = [required(getattr(block, name), name) for block in blocks]
        return np.concatenate(parts) if parts else np.zeros(0)

    classes, reasons = joined("position_class"), joined("mask_reason")
    kept, told = classes != PositionClass.MASKED, reasons != 0
    rows = Counter(classes.tolist())
    pairs = Counter(zip(classes[told].tolist(), reasons[told].tolist(), strict=True))
    return RealignmentTotals(
        rows={PositionClass(kind): count for kind, count in rows.items()},
        reasons={(PositionClass(k), MaskReason(r)): count for (k, r), count in pairs.items()},
        coverage=float(joined("coverage")[kept].sum()),
        open_mass=float(joined("open_mass")[kept].sum()),
        lost_mass=float(joined("lost_mass")[kept].sum()),
        not_realigned=sum(one.status is Status.NOT_REALIGNED for one in result.scores),
        ended_early=ended_early,
        extra_rows=reader.extra_rows,
        context_free_rows=reader.context_free_rows,
        seconds=reader.seconds,
    )
