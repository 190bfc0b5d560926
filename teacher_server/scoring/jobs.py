"""Jobs of an engine: made of requests, run through the teacher's queue, their cost added up."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace

from teacher_proto import tracing
from teacher_proto.errors import EngineError
from teacher_proto.types import Int32, ScoreRequest

from teacher_server.engines.base import Job, JobResult, ScoredSpan
from teacher_server.engines.torch.prefix_tree import common_prefixes
from teacher_server.queue.policy import RunPolicy
from teacher_server.queue.scheduler import Deadline, Ticket
from teacher_server.teachers.teacher import Teacher
from teacher_server.telemetry.cost import Cost

# Tokens: half a block of vLLM's prefix cache, which is what a sequence that leaves a kept one
# anywhere reads again of it on average.
REST_OF_BLOCK = 8


def make_job(request: ScoreRequest, ids: Int32, vocabulary_size: int) -> Job:
    """The job of a validated request in the teacher's own tokenizer.

    Args:
        ids: int32 [P], the prompt as the teacher reads it.
    """
    limit = vocabulary_size
    if request.student_vocabulary_size is not None:
        limit = min(limit, request.student_vocabulary_size)
    return Job(
        prompt_ids=ids,
        spans=tuple(
            ScoredSpan(c.token_ids, c.selected_positions, c.explicit_ids)
            for c in request.continuations
        ),
        top_k=request.top_k,
        temperature=request.temperature,
        vocabulary_limit=limit,
        want_sampled=request.returns.sampled,
        want_log_tail=request.returns.log_tail,
    )


def tokens_of(job: Job) -> int:
    """Tokens that a single pass over the group has to read."""
    return len(job.prompt_ids) + sum(len(span.token_ids) for span in job.spans)


def tokens_of_paths(job: Job) -> int:
    """Tokens that a single pass has to read of spans that begin alike: each beginning once."""
    spans = sorted(span.token_ids.tobytes() for span in job.spans)
    return tokens_of(job) - int(common_prefixes(spans).sum())


def tokens_after(job: Job, read: tuple[ScoredSpan, ...]) -> int:
    """Tokens that an engine reads which keeps what it has read in blocks, after ``read``: of each
    span the rest of a block on average, and what is in none of the others."""
    both = tokens_of_paths(replace(job, spans=(*read, *job.spans)))
    alone = tokens_of_paths(replace(job, spans=read))
    return both - alone + len(job.spans) * REST_OF_BLOCK


@dataclass
class JobRunner:
    """Runs the jobs of one request, each through the teacher's queue and engine.

    One that says ``further`` is a context: at its end what the quota held is the run's again.

    Attributes:
        policy: what the request's run is entitled to.
        deadline: of all callers that wait for the request.
        cost: of the jobs that have run.
    """

    teacher: Teacher
    policy: RunPolicy
    deadline: Deadline
    cost: Cost = field(default_factory=Cost)
    _held: int = 0

    def __enter__(self) -> JobRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.teacher.admission.give_back(self.policy, self._held)
        self._held = 0

    async def run(
        self, job: Job, tokens: int | None = None, *, further: int = 0, spare: float = 0.0
    ) -> JobResult:
        """Waits for the job's turn and runs it.

        Of a request that has begun no job is refused: what it has had computed would be lost,
        and to ask again would cost as much again. Its tokens count nevertheless.

        Args:
            tokens: for which it counts in the queue and the quota; None: ``tokens_of``.
            further: tokens for which further jobs may count, said with the first.
            spare: seconds that are to be left when it is the job's turn.

        Raises:
            OverloadedError, InvalidRequestError: the first job, see ``Admission.slot``.
            DeadlineError: see ``Admission.slot``.
            EngineError, TeacherUnavailableError: the engine failed.
        """
        tokens = tokens_of(job) if tokens is None else tokens
        begun = self.cost.job_tokens > 0
        ticket = Ticket(
            tokens=tokens,
            policy=self.policy,
            deadline=Deadline(self.deadline.at - spare) if spare else self.deadline,
            begun=begun,
            further=further,
            held=self._held,
        )
        async with contextlib.AsyncExitStack() as held:
            try:
                with tracing.span("admission", lsm_tokens=tokens):
                    waited = await held.enter_async_context(self.teacher.admission.slot(ticket))
            finally:
                self._held = ticket.held
            with tracing.span("engine", lsm_teacher=self.teacher.name):
                result = await self.teacher.engine.score(job)
        if len(result.rows) != len(job.spans):
            raise EngineError(f"{len(result.rows)} results for {len(job.spans)} continuations")
        self.cost.job_tokens += tokens
        self.cost.computed_tokens += result.computed_tokens
        self.cost.queue_seconds += waited
        self.cost.engine_seconds += result.engine_seconds
        return result
