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
from teacher_proto.rows import required
from teacher_proto.types import ContinuationScores, Int32, PositionClass, ScoreRequest, Status

from teacher_server.config import TokenizerSettings
from teacher_server.engines.base import Job, JobResult, ScoredSpan
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.refusals.sizes import check_row_bytes, check_sizes, check_text
from teacher_server.scoring.context import RequestContext
from teacher_server.scoring.jobs import JobRunner
from teacher_server.scoring.realigned import (
    Carried,
    Planned,
    best_of,
    carry,
    context_free_prompt,
    context_free_sequence,
    learn_context_free,
    not_finite,
    not_realigned,
    open_paths,
    path_sequence,
    plan,
    text_bytes,
    walk,
    wanted,
    with_paths,
)
from teacher_server.telemetry.realignment_totals import RealignmentTotals
from teacher_server.tokenizers.pairs import Pair

T = TypeVar("T")
# Rows behind single tokens in one job, and ids of each.
CONTEXT_FREE_ROWS = 256
CONTEXT_FREE_BEST = 128


@dataclass
class _Work:
    """One request on its way, and what its realignment has taken so far."""

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
    carried: dict[int, Carried] = field(default_factory=dict)

    async def compute(self, work: Callable[[], T]) -> T:
        """In the pair's thread, and timed there."""
        result, seconds = await self.pair.thread.timed(work)
        self.seconds += seconds
        return result

    async def score(self, sequences: Iterable[ScoredSpan], *, sampled: bool) -> JobResult:
        job = Job(
            prompt_ids=self.prompt,
            spans=tuple(sequences),
            top_k=self.best,
            temperature=self.request.temperature,
            vocabulary_limit=self.limit,
            want_sampled=sampled,
        )
        return await self.runner.run(job)


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
    work = _Work(request, prompt, pair, best, limit, context_free, runner)
    size = await work.compute(partial(text_bytes, request, pair.tables.student))
    check_text(size, "continuations", limits)
    planned = [
        await work.compute(partial(plan, continuation, pair.realigner))
        for continuation in request.continuations
    ]
    lengths = [len(one.teacher_ids) for one in planned]
    row_bytes = rows_bytes(planned, best)
    bytes_per_entry = context.call.surface.bytes_per_entry
    check_sizes(request, len(prompt), facts, limits, bytes_per_entry, lengths)
    check_row_bytes(row_bytes, limits)
    fit = [index for index, one in enumerate(planned) if not one.problem]
    if fit:
        sequences = [ScoredSpan(planned[index].teacher_ids, planned[index].needed) for index in fit]
        found = await work.score(sequences, sampled=True)
        for index, rows in zip(fit, found.rows, strict=True):
            work.carried[index] = await work.compute(
                partial(carry, planned[index], rows, pair.realigner, request, context_free)
            )
        await _ask_context_free_rows(work, planned)
    for _ in range(settings.extra_rounds):
        if not await _extra_round(work, planned, settings, facts.max_length):
            break
        await _ask_context_free_rows(work, planned)
    scores = [
        not_realigned(one.problem) if one.problem else work.carried[index].scores
        for index, one in enumerate(planned)
    ]
    return tuple(_asked_for(one, request) for one in scores), _totals(scores, work)


async def _ask_context_free_rows(work: _Work, planned: list[Planned]) -> None:
    """Asks for the rows behind single tokens that are not known yet, and walks again.

    They depend on nothing of the request but its temperature.
    """
    if work.context_free is None:
        return
    asking = [index for index, one in work.carried.items() if len(wanted(one))]
    if not asking:
        return
    tokens = np.unique(np.concatenate([wanted(work.carried[index]) for index in asking]))
    before = await work.compute(partial(context_free_prompt, work.pair.tables.teacher))
    for some in np.split(tokens, range(CONTEXT_FREE_ROWS, len(tokens), CONTEXT_FREE_ROWS)):
        job = Job(
            prompt_ids=before,
            spans=tuple(context_free_sequence(token) for token in some.tolist()),
            top_k=min(CONTEXT_FREE_BEST, work.limit),
            temperature=work.request.temperature,
            vocabulary_limit=work.limit,
            want_sampled=False,
        )
        rows = (await work.runner.run(job)).rows
        work.context_free_rows += len(rows)
        learn = partial(learn_context_free, some, rows, work.pair.realigner, work.context_free)
        await work.compute(learn)
    for index in asking:
        rows_of = required(work.carried[index].rows, "row")
        again = partial(
            walk, planned[index], rows_of, work.pair.realigner, work.request, work.context_free
        )
        work.carried[index] = await work.compute(again)


async def _extra_round(
    work: _Work, planned: list[Planned], settings: TokenizerSettings, max_length: int
) -> bool:
    """One more job for the rows that leave most unsettled; whether there were any."""
    share = max(1, settings.extra_rows // max(1, len(work.carried)))
    asked: list[tuple[int, tuple[int, int]]] = []
    sequences: list[ScoredSpan] = []
    for index, carried in work.carried.items():
        paths = await work.compute(partial(open_paths, carried, share, settings.extra_least_open))
        for path in paths[: settings.extra_rows - len(asked)]:
            sequence = path_sequence(carried, planned[index], path)
            if len(work.prompt) + len(sequence.token_ids) <= max_length:
                asked.append((index, path))
                sequences.append(sequence)
    if not asked:
        return False
    found = (await work.score(sequences, sampled=False)).rows
    work.extra_rows += len(asked)
    for index in dict.fromkeys(index for index, _ in asked):
        places = [place for place, (of, _) in enumerate(asked) if of == index]
        rows = with_paths(
            work.carried[index], [asked[p][1] for p in places], [found[p] for p in places]
        )
        if rows is None:
            work.carried[index] = Carried(not_finite())
            continue
        again = partial(
            walk, planned[index], rows, work.pair.realigner, work.request, work.context_free
        )
        work.carried[index] = await work.compute(again)
    return True


def rows_bytes(planned: list[Planned], best: int) -> int:
    """What the teacher's rows take: those asked for, and one rollout's as the walk reads it."""
    asked = sum(len(one.needed) for one in planned) * best * 8
    largest = max((len(one.teacher_ids) for one in planned if one.layout is not None), default=0)
    return asked + largest * best * 12


def _asked_for(scores: ContinuationScores, request: ScoreRequest) -> ContinuationScores:
    return scores if request.returns.realignment else replace(scores, realignment=None)


def _totals(scores: list[ContinuationScores], work: _Work) -> RealignmentTotals:
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
        extra_rows=work.extra_rows,
        context_free_rows=work.context_free_rows,
        seconds=work.seconds,
    )
