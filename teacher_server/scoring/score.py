"""The one path from a request to its scores, whatever wire it came by.

request -> validation -> prompt -> admission -> engine -> reply

With another tokenizer than the teacher's: ``realigned_path``.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from functools import partial

from teacher_proto import tracing
from teacher_proto.errors import EngineError
from teacher_proto.rows import Rows
from teacher_proto.types import (
    ContinuationScores,
    Int32,
    ScoreReply,
    ScoreRequest,
    ServerLimits,
    Timing,
    TokenPrompt,
)

from teacher_server.engines.base import Job, JobResult, Sequence
from teacher_server.lanes import Lanes
from teacher_server.queue.policy import RunPolicy
from teacher_server.queue.scheduler import Deadline, Ticket
from teacher_server.refusals.sizes import (
    check_request_tokens,
    check_row_bytes,
    check_sizes,
    check_text,
)
from teacher_server.refusals.validation import StudentFacts, check_ids, check_request
from teacher_server.scoring.prompts import prompt_ids, teacher_prompt
from teacher_server.scoring.realigned import not_finite
from teacher_server.scoring.realigned_path import Ask, Realigned, realigned_scores
from teacher_server.teachers.teacher import Teacher
from teacher_server.telemetry.realignment_totals import RealignmentTotals
from teacher_server.tokenizers.pairs import StudentTokenizers


@dataclass(frozen=True)
class Scored:
    """A reply and what it took, for metrics and logs; ``figures`` of a realigned one."""

    reply: ScoreReply
    job_tokens: int
    figures: RealignmentTotals | None = None


@dataclass(frozen=True)
class _OwnScores:
    """Scores of a request in the teacher's own tokenizer."""

    results: tuple[ContinuationScores, ...]
    job_tokens: int
    computed_tokens: int
    queue_seconds: float
    engine_seconds: float


async def score(
    request: ScoreRequest,
    teacher: Teacher,
    limits: ServerLimits,
    deadline: Deadline,
    *,
    students: StudentTokenizers,
    lanes: Lanes,
    size: int,
    policy: RunPolicy,
    bytes_per_entry: int,
    started: float,
) -> Scored:
    """Scores one group.

    Args:
        students: tokenizers that are registered.
        lanes: threads for checks, rendering and tokenizing.
        size: bytes that the request came in.
        policy: of the run that asks.
        bytes_per_entry: what one (id, log-probability) takes in the reply's format.
        started: when the request arrived, ``time.monotonic``.

    Raises:
        InvalidRequestError, ContractMismatchError: see ``validation``.
        OverloadedError, DeadlineError: see ``admission``. An overload is told
            before the request's arrays are looked at or its text is tokenized.
        EngineError, TeacherUnavailableError: the engine failed.
    """
    foreign = request.tokenizer_hash != teacher.facts.tokenizer_hash
    # How many tokens another tokenizer's ids are for the teacher is not known yet.
    teacher.admission.check(policy, 1 if foreign else known_tokens(request))
    entry = students.find(request.tokenizer_hash) if foreign else None
    facts = None if entry is None else students.facts(entry, teacher)
    prepare = partial(_prepare, request, teacher, limits, facts, bytes_per_entry)
    ids, own_job = await lanes.run(prepare, size=size, owner=request.run)

    async def ask(job: Job) -> tuple[JobResult, float]:
        return await run_job(job, teacher, policy, deadline)

    def check(lengths: list[int], row_bytes: int) -> None:
        check_sizes(request, len(ids), teacher.facts, limits, bytes_per_entry, lengths)
        check_row_bytes(row_bytes, limits)

    def check_continuations_text(size: int) -> None:
        check_text(size, "continuations", limits)

    found: Realigned | _OwnScores
    if entry is not None:
        pair = await students.pair(entry, request.run, teacher)
        asks = students.settings.lone_rows
        found = await realigned_scores(
            request,
            ids,
            pair,
            students.settings,
            lone=pair.lone(teacher.name, request.temperature) if asks else None,
            vocabulary_size=teacher.facts.vocabulary_size,
            max_length=teacher.facts.max_length,
            ask=ask,
            check_text=check_continuations_text,
            check=check,
        )
    else:
        assert own_job is not None
        found = await _own_scores(own_job, request.top_k, ask)
    reply = ScoreReply(
        request_id=request.request_id,
        identity=teacher.identity,
        results=found.results,
        timing=Timing(
            queue_seconds=found.queue_seconds,
            engine_seconds=found.engine_seconds,
            total_seconds=time.monotonic() - started,
            computed_tokens=found.computed_tokens,
        ),
    )
    figures = found.figures if isinstance(found, Realigned) else None
    return Scored(reply, found.job_tokens, figures)


async def run_job(
    job: Job, teacher: Teacher, policy: RunPolicy, deadline: Deadline
) -> tuple[JobResult, float]:
    """(result, seconds it waited): one job through the teacher's queue and engine."""
    ticket = Ticket(tokens=job.tokens, policy=policy, deadline=deadline)
    async with contextlib.AsyncExitStack() as held:
        with tracing.span("admission", lsm_tokens=job.tokens):
            queue_seconds = await held.enter_async_context(teacher.admission.slot(ticket))
        with tracing.span("engine", lsm_teacher=teacher.name):
            result = await teacher.engine.score(job)
    if len(result.rows) != len(job.sequences):
        raise EngineError(f"{len(result.rows)} results for {len(job.sequences)} continuations")
    return result, queue_seconds


async def _own_scores(job: Job, top_k: int, ask: Ask) -> _OwnScores:
    result, waited = await ask(job)
    return _OwnScores(
        results=tuple(continuation_scores(rows, top_k) for rows in result.rows),
        job_tokens=job.tokens,
        computed_tokens=result.computed_tokens,
        queue_seconds=waited,
        engine_seconds=result.engine_seconds,
    )


def known_tokens(request: ScoreRequest) -> int:
    """Tokens that the request holds as ids; a prompt in text has more."""
    prompt, _ = teacher_prompt(request)
    known = len(prompt.token_ids) if isinstance(prompt, TokenPrompt) else 0
    return known + sum(len(s.token_ids) for c in request.continuations for s in c.segments)


def _prepare(
    request: ScoreRequest,
    teacher: Teacher,
    limits: ServerLimits,
    student: StudentFacts | None,
    bytes_per_entry: int,
) -> tuple[Int32, Job | None]:
    """(the prompt's ids, the engine's job): checks the request and reads its prompt.

    There is no job for a request in another tokenizer; it is planned first.
    """
    facts = teacher.facts
    foreign = request.tokenizer_hash != facts.tokenizer_hash
    check_request(request, facts, limits, student)
    if foreign:
        check_request_tokens(known_tokens(request), limits)
    prompt, where = teacher_prompt(request)
    ids = prompt_ids(prompt, where, teacher.tokenizer, facts, limits)
    if not isinstance(prompt, TokenPrompt):
        check_ids(ids, where, facts.vocabulary_size)
    if foreign:
        return ids, None
    check_sizes(request, len(ids), facts, limits, bytes_per_entry)
    return ids, make_job(request, ids, facts.vocabulary_size)


def make_job(request: ScoreRequest, ids: Int32, vocabulary_size: int) -> Job:
    """The engine's work for a validated request; ``ids``: the prompt the teacher reads."""
    limit = vocabulary_size
    if request.student_vocabulary_size is not None:
        limit = min(limit, request.student_vocabulary_size)
    return Job(
        prompt_ids=ids,
        sequences=tuple(
            Sequence(c.token_ids, c.selected_positions, c.explicit_ids)
            for c in request.continuations
        ),
        top_k=request.top_k,
        temperature=request.temperature,
        vocabulary_limit=limit,
        want_sampled=request.returns.sampled,
        want_log_tail=request.returns.log_tail,
    )


def continuation_scores(rows: Rows | None, top_k: int) -> ContinuationScores:
    """The rows as the contract has them: without supports when K is 0."""
    if rows is None:
        return not_finite()
    return ContinuationScores(rows=rows if top_k else replace(rows, support=None))
