"""The one path from a request to its scores, whichever wire it came by.

request -> checks -> prompt -> queue and engine -> reply

Requests in another tokenizer than the teacher's: ``realigned_path``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

from teacher_proto.rows import Rows
from teacher_proto.types import (
    ContinuationScores,
    Int32,
    ScoreReply,
    ScoreRequest,
    Status,
    Timing,
    TokenPrompt,
)

from teacher_server.engines.base import Job
from teacher_server.queue.scheduler import Deadline
from teacher_server.refusals.facts import StudentFacts
from teacher_server.refusals.sizes import check_request_tokens, check_sizes
from teacher_server.refusals.validation import check_ids, check_request
from teacher_server.scoring.context import RequestContext
from teacher_server.scoring.jobs import JobRunner, make_job
from teacher_server.scoring.prompts import encoded_prompt
from teacher_server.scoring.realigned_path import realigned_scores
from teacher_server.scoring.without_rows import not_finite
from teacher_server.telemetry.cost import Cost
from teacher_server.telemetry.realignment_totals import RealignmentTotals


@dataclass(frozen=True)
class Scored:
    """A reply and what it took.

    Attributes:
        rows: that the reply holds.
        realignment: of a request in another tokenizer than the teacher's.
    """

    reply: ScoreReply
    rows: int
    cost: Cost
    realignment: RealignmentTotals | None


async def score(context: RequestContext, deadline: Deadline) -> Scored:
    """Scores one group.

    Args:
        deadline: of all callers that wait for this request; it may move later.

    Raises:
        InvalidRequestError, ContractMismatchError: see ``validation`` and ``sizes``.
        OverloadedError, DeadlineError: see ``Admission.slot``. An overload is refused
            before the request's arrays are looked at or its text is tokenized.
        EngineError, TeacherUnavailableError: the engine failed.
    """
    request, teacher = context.request, context.teacher
    foreign = request.tokenizer_hash != teacher.facts.tokenizer_hash
    # How many tokens another tokenizer's ids are for the teacher is not known yet.
    teacher.admission.check(context.policy, 1 if foreign else known_tokens(request))
    runner = JobRunner(teacher, context.policy, deadline)
    realignment = None
    if foreign:
        results, realignment = await _foreign_scores(context, runner)
    else:
        results = await _own_scores(context, runner)
    timing = Timing(
        queue_seconds=runner.cost.queue_seconds,
        engine_seconds=runner.cost.engine_seconds,
        total_seconds=time.monotonic() - context.call.started,
        computed_tokens=runner.cost.computed_tokens,
    )
    reply = ScoreReply(request.request_id, teacher.identity, results, timing)
    answered = zip(request.continuations, results, strict=True)
    rows = sum(asked.row_count for asked, found in answered if found.status is Status.OK)
    return Scored(reply, rows, runner.cost, realignment)


async def _own_scores(context: RequestContext, runner: JobRunner) -> tuple[ContinuationScores, ...]:
    """Scores of a request in the teacher's own tokenizer."""
    request = context.request
    prepare = partial(_own_job, context)
    job = await context.lanes.run(prepare, size=context.size, owner=request.run)
    result = await runner.run(job)
    return tuple(continuation_scores(rows, request.top_k) for rows in result.rows)


async def _foreign_scores(
    context: RequestContext, runner: JobRunner
) -> tuple[tuple[ContinuationScores, ...], RealignmentTotals]:
    """Scores of a request in a tokenizer that has to be registered."""
    request, students, entry = context.request, context.students, context.entry
    facts = None if entry is None else await students.facts(entry, context.teacher)
    prepare = partial(_checked_prompt, context, facts)
    prompt = await context.lanes.run(prepare, size=context.size, owner=request.run)
    # An unknown tokenizer was refused.
    assert entry is not None
    assert facts is not None
    tokens = known_tokens(request)
    with runner:
        async with students.session(entry, request.run, context.teacher, tokens) as session:
            return await realigned_scores(
                context, prompt, session, facts, students.settings, runner
            )


def _own_job(context: RequestContext) -> Job:
    """The checked request as the engine's job."""
    request, facts, limits = context.request, context.teacher.facts, context.limits
    ids = _checked_prompt(context, None)
    check_sizes(request, len(ids), facts, limits, context.call.surface.bytes_per_entry)
    return make_job(request, ids, facts.vocabulary_size)


def _checked_prompt(context: RequestContext, student: StudentFacts | None) -> Int32:
    """int32 [P]: the prompt as the teacher reads it, of a request whose fields are checked.

    Args:
        student: what is known of the request's tokenizer; None for the teacher's own,
            and for one that is not registered, which is refused.
    """
    request, teacher, limits = context.request, context.teacher, context.limits
    facts = teacher.facts
    check_request(request, facts, limits, student)
    if student is not None:
        check_request_tokens(known_tokens(request), limits)
    prompt, where = request.prompt_to_read
    if isinstance(prompt, TokenPrompt):
        return prompt.token_ids
    ids = encoded_prompt(prompt, where, teacher.tokenizer, facts, limits)
    check_ids(ids, where, facts.vocabulary_size)
    return ids


def known_tokens(request: ScoreRequest) -> int:
    """Tokens that the request holds as ids; a prompt in text has more."""
    prompt, _ = request.prompt_to_read
    known = len(prompt.token_ids) if isinstance(prompt, TokenPrompt) else 0
    return known + sum(len(s.token_ids) for c in request.continuations for s in c.segments)


def continuation_scores(rows: Rows | None, top_k: int) -> ContinuationScores:
    """The rows as the contract has them: without supports when K is 0."""
    if rows is None:
        return not_finite()
    return ContinuationScores(rows=rows if top_k else replace(rows, support=None))
