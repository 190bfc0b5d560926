"""The path of a request in another tokenizer than the teacher's.

Its continuations are laid out in the teacher's tokens, scored as one job, and their rows
realigned to the student's tokens; further jobs may follow for what is left open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
from teacher_proto.rows import Rows, required
from teacher_proto.types import ContinuationScores, Int32, PositionClass, ScoreRequest, Status

from teacher_server.config import TokenizerSettings
from teacher_server.engines.base import Job, JobResult, ScoredSpan
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.rows import TeacherRows
from teacher_server.refusals.sizes import check_row_bytes, check_sizes, check_text
from teacher_server.scoring.context import RequestContext
from teacher_server.scoring.further_rows import (
    context_free_prompt,
    context_free_span,
    learn_context_free,
    open_paths,
    path_span,
    wanted_tokens,
    with_paths,
)
from teacher_server.scoring.jobs import JobRunner
from teacher_server.scoring.planned import (
    PlannedContinuation,
    best_of,
    continuation_bytes,
    plan_continuation,
    rows_bytes,
)
from teacher_server.scoring.realigned import (
    RealignedContinuation,
    realign_engine_rows,
    realign_rows,
)
from teacher_server.scoring.without_rows import not_finite, not_realigned
from teacher_server.telemetry.realignment_totals import RealignmentTotals
from teacher_server.tokenizers.pairs import Pair

T = TypeVar("T")
# Context-free rows in one job, and ids of each.
CONTEXT_FREE_ROWS = 256
CONTEXT_FREE_BEST = 128


@dataclass
class _ForeignRequest:
    """One request in another tokenizer, and what its realignment has taken so far.

    Attributes:
        prompt: int32 [P], as the teacher reads it.
        best: M, the teacher ids to ask for per row.
        limit: only teacher ids below it are asked for.
        context_free: of this teacher and temperature; None to go without.
        seconds: of the pair's thread.
        planned: every continuation, in order.
        realigned: by index, the continuations that the teacher can read.
    """

    request: ScoreRequest
    prompt: Int32
    pair: Pair
    best: int
    limit: int
    context_free: ContextFreeRows | None
    runner: JobRunner
    extra_rows: int = 0
    context_free_rows: int = 0
    seconds: float = 0.0
    planned: list[PlannedContinuation] = field(default_factory=list)
    realigned: dict[int, RealignedContinuation] = field(default_factory=dict)

    async def compute(self, work: Callable[[], T]) -> T:
        """In the pair's thread, and timed there."""
        result, seconds = await self.pair.thread.timed(work)
        self.seconds += seconds
        return result

    async def run_spans(self, spans: Iterable[ScoredSpan], *, sampled: bool) -> JobResult:
        """Runs these spans after the prompt as one job."""
        job = Job(
            prompt_ids=self.prompt,
            spans=tuple(spans),
            top_k=self.best,
            temperature=self.request.temperature,
            vocabulary_limit=self.limit,
            want_sampled=sampled,
        )
        return await self.runner.run(job)

    async def realign(self, index: int, rows: Rows | None) -> None:
        """Realigns a continuation's rows as the engine gave them."""
        planned, realigner = self.planned[index], self.pair.realigner
        self.realigned[index] = await self.compute(
            partial(realign_engine_rows, planned, rows, realigner, self.request, self.context_free)
        )

    async def realign_again(self, index: int, rows: TeacherRows) -> None:
        """Realigns a continuation once more, after more rows are known."""
        planned, realigner = self.planned[index], self.pair.realigner
        self.realigned[index] = await self.compute(
            partial(realign_rows, planned, rows, realigner, self.request, self.context_free)
        )


async def realigned_scores(
    context: RequestContext,
    prompt: Int32,
    pair: Pair,
    settings: TokenizerSettings,
    runner: JobRunner,
) -> tuple[tuple[ContinuationScores, ...], RealignmentTotals]:
    """Scores of a validated request.

    Args:
        prompt: int32 [P], as the teacher reads it.
        pair: of the request's tokenizer and the teacher's.

    Raises:
        InvalidRequestError: the continuations are too long for the teacher, or the rows
            to realign are too large.
    """
    request, facts, limits = context.request, context.teacher.facts, context.limits
    limit = min(facts.vocabulary_size, pair.tables.teacher.size)
    best = best_of(request.top_k, request.explicit_width, limit)
    context_free = (
        pair.context_free(facts.name, request.temperature) if settings.context_free_rows else None
    )
    foreign = _ForeignRequest(request, prompt, pair, best, limit, context_free, runner)
    size = await foreign.compute(partial(continuation_bytes, request, pair.tables.student))
    check_text(size, "continuations", limits)
    for continuation in request.continuations:
        plan = partial(plan_continuation, continuation, pair.realigner, facts.vocabulary_size)
        foreign.planned.append(await foreign.compute(plan))
    lengths = [len(one.teacher_ids) for one in foreign.planned]
    row_bytes = rows_bytes(foreign.planned, best)
    bytes_per_entry = context.call.surface.bytes_per_entry
    check_sizes(request, len(prompt), facts, limits, bytes_per_entry, lengths)
    check_row_bytes(row_bytes, limits)
    readable = {index: one for index, one in enumerate(foreign.planned) if not one.problem}
    if readable:
        spans = [ScoredSpan(one.teacher_ids, one.needed) for one in readable.values()]
        found = await foreign.run_spans(spans, sampled=True)
        for index, rows in zip(readable, found.rows, strict=True):
            await foreign.realign(index, rows)
        await _ask_context_free_rows(foreign)
    for _ in range(settings.extra_rounds):
        if not await _extra_round(foreign, settings, facts.max_length):
            break
        await _ask_context_free_rows(foreign)
    scores = [
        not_realigned(one.problem) if one.problem else foreign.realigned[index].scores
        for index, one in enumerate(foreign.planned)
    ]
    return tuple(_asked_for(one, request) for one in scores), _totals(scores, foreign)


async def _ask_context_free_rows(foreign: _ForeignRequest) -> None:
    """Asks for the context-free rows that are not known yet, and realigns again with them.

    They depend on nothing of the request but its temperature.
    """
    if foreign.context_free is None:
        return
    wanted = {index: wanted_tokens(one) for index, one in foreign.realigned.items()}
    asking = [index for index, tokens in wanted.items() if len(tokens)]
    if not asking:
        return
    tokens = np.unique(np.concatenate([wanted[index] for index in asking]))
    before = await foreign.compute(partial(context_free_prompt, foreign.pair.tables.teacher))
    for some in np.split(tokens, range(CONTEXT_FREE_ROWS, len(tokens), CONTEXT_FREE_ROWS)):
        job = Job(
            prompt_ids=before,
            spans=tuple(context_free_span(token) for token in some.tolist()),
            top_k=min(CONTEXT_FREE_BEST, foreign.limit),
            temperature=foreign.request.temperature,
            vocabulary_limit=foreign.limit,
            want_sampled=False,
        )
        rows = (await foreign.runner.run(job)).rows
        foreign.context_free_rows += len(rows)
        realigner = foreign.pair.realigner
        learn = partial(learn_context_free, some, rows, realigner, foreign.context_free)
        await foreign.compute(learn)
    for index in asking:
        await foreign.realign_again(index, required(foreign.realigned[index].rows, "rows"))


async def _extra_round(
    foreign: _ForeignRequest, settings: TokenizerSettings, max_length: int
) -> bool:
    """One more job for the rows that leave most mass open; whether there were any."""
    share = max(1, settings.extra_rows // max(1, len(foreign.realigned)))
    asked: list[tuple[int, tuple[int, int]]] = []
    spans: list[ScoredSpan] = []
    for index, one in foreign.realigned.items():
        paths = await foreign.compute(partial(open_paths, one, share, settings.extra_least_open))
        for path in paths[: settings.extra_rows - len(asked)]:
            span = path_span(one, foreign.planned[index], path)
            if len(foreign.prompt) + len(span.token_ids) <= max_length:
                asked.append((index, path))
                spans.append(span)
    if not asked:
        return False
    found = (await foreign.run_spans(spans, sampled=False)).rows
    foreign.extra_rows += len(asked)
    for index in dict.fromkeys(index for index, _ in asked):
        places = [place for place, (of, _) in enumerate(asked) if of == index]
        paths = [asked[place][1] for place in places]
        rows = with_paths(foreign.realigned[index], paths, [found[place] for place in places])
        if rows is None:
            foreign.realigned[index] = RealignedContinuation(not_finite())
        else:
            await foreign.realign_again(index, rows)
    return True


def _asked_for(scores: ContinuationScores, request: ScoreRequest) -> ContinuationScores:
    return scores if request.returns.realignment else replace(scores, realignment=None)


def _totals(scores: list[ContinuationScores], foreign: _ForeignRequest) -> RealignmentTotals:
    blocks = [one.realignment for one in scores if one.realignment is not None]
    classes = np.concatenate([np.zeros(0, np.uint8), *(block.position_class for block in blocks)])
    counts = np.bincount(classes, minlength=max(PositionClass) + 1).tolist()

    def total(name: str) -> float:
        sums = [
            float(getattr(block, name)[block.position_class != PositionClass.MASKED].sum())
            for block in blocks
        ]
        return sum(sums)

    return RealignmentTotals(
        rows={kind: counts[kind] for kind in PositionClass if counts[kind]},
        coverage=total("coverage"),
        open_mass=total("open_mass"),
        lost_mass=total("lost_mass"),
        not_realigned=sum(one.status is Status.NOT_REALIGNED for one in scores),
        extra_rows=foreign.extra_rows,
        context_free_rows=foreign.context_free_rows,
        seconds=foreign.seconds,
    )
