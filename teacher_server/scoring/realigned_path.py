"""The way of a request in another tokenizer than the teacher's: plan, ask, carry over."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
from teacher_proto.rows import required
from teacher_proto.types import ContinuationScores, Int32, PositionClass, ScoreRequest, Status

from teacher_server.config import TokenizerSettings
from teacher_server.engines.base import Job, JobResult, Sequence
from teacher_server.realign.walk.extensions import LoneRows
from teacher_server.scoring.realigned import (
    Carried,
    Planned,
    best_of,
    carry,
    learn_lone,
    lone_prompt,
    lone_sequence,
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

# Has a job done: (result, seconds it waited in the queue).
Ask = Callable[[Job], Awaitable[tuple[JobResult, float]]]
# Refuses (the teacher's tokens of each continuation, bytes of its rows) when they are too many.
Check = Callable[[list[int], int], None]
T = TypeVar("T")
# Rows behind single tokens in one job, and ids of each.
LONE_ROWS = 256
LONE_BEST = 128


@dataclass(frozen=True)
class Realigned:
    results: tuple[ContinuationScores, ...]
    figures: RealignmentTotals
    job_tokens: int
    computed_tokens: int
    queue_seconds: float
    engine_seconds: float


@dataclass
class _Work:
    """One request under way, and what it has taken so far."""

    request: ScoreRequest
    prompt: Int32
    pair: Pair
    best: int
    limit: int
    ask: Ask
    lone: LoneRows | None
    job_tokens: int = 0
    computed_tokens: int = 0
    extra_rows: int = 0
    lone_rows: int = 0
    queue_seconds: float = 0.0
    engine_seconds: float = 0.0
    seconds: float = 0.0
    carried: dict[int, Carried] = field(default_factory=dict)

    async def compute(self, work: Callable[[], T]) -> T:
        """In the pair's thread, and timed there."""

        def timed() -> tuple[T, float]:
            started = time.perf_counter()
            result = work()
            return result, time.perf_counter() - started

        result, seconds = await self.pair.run(timed)
        self.seconds += seconds
        return result

    async def score(self, sequences: Iterable[Sequence], *, sampled: bool) -> JobResult:
        job = Job(
            prompt_ids=self.prompt,
            sequences=tuple(sequences),
            top_k=self.best,
            temperature=self.request.temperature,
            vocabulary_limit=self.limit,
            want_sampled=sampled,
        )
        return await self.run(job)

    async def run(self, job: Job) -> JobResult:
        result, waited = await self.ask(job)
        self.job_tokens += job.tokens
        self.computed_tokens += result.computed_tokens
        self.queue_seconds += waited
        self.engine_seconds += result.engine_seconds
        return result


async def realigned_scores(
    request: ScoreRequest,
    prompt: Int32,
    pair: Pair,
    settings: TokenizerSettings,
    *,
    lone: LoneRows | None,
    vocabulary_size: int,
    max_length: int,
    ask: Ask,
    check_text: Callable[[int], None],
    check: Check,
) -> Realigned:
    """Scores a validated request.

    Args:
        prompt: int32 [P], as the teacher reads it.
        lone: of this teacher and temperature; None to go without.
        vocabulary_size, max_length: of the teacher.
        check_text: refuses a number of bytes for the teacher to read as continuations.
    """
    limit = min(vocabulary_size, pair.tables.teacher.size)
    widths = [c.explicit_ids.shape[1] for c in request.continuations if c.explicit_ids is not None]
    best = best_of(request.top_k, max(widths, default=0), limit)
    work = _Work(request, prompt, pair, best, limit, ask, lone)
    check_text(await work.compute(partial(text_bytes, request, pair.tables.student)))
    planned = [
        await work.compute(partial(plan, continuation, pair.realigner))
        for continuation in request.continuations
    ]
    check([len(one.teacher_ids) for one in planned], rows_bytes(planned, best))
    fit = [index for index, one in enumerate(planned) if not one.problem]
    if fit:
        sequences = [Sequence(planned[index].teacher_ids, planned[index].needed) for index in fit]
        found = await work.score(sequences, sampled=True)
        for index, rows in zip(fit, found.rows, strict=True):
            work.carried[index] = await work.compute(
                partial(carry, planned[index], rows, pair.realigner, request, lone)
            )
        await _ask_lone_rows(work, planned)
    for _ in range(settings.extra_rounds):
        if not await _extra_round(work, planned, settings, max_length):
            break
        await _ask_lone_rows(work, planned)
    scores = [
        not_realigned(one.problem) if one.problem else work.carried[index].scores
        for index, one in enumerate(planned)
    ]
    return Realigned(
        results=tuple(_asked_for(one, request) for one in scores),
        figures=_figures(scores, work),
        job_tokens=work.job_tokens,
        computed_tokens=work.computed_tokens,
        queue_seconds=work.queue_seconds,
        engine_seconds=work.engine_seconds,
    )


async def _ask_lone_rows(work: _Work, planned: list[Planned]) -> None:
    """Asks for the rows behind single tokens that are not known yet, and walks again.

    They depend on nothing of the request but its temperature.
    """
    if work.lone is None:
        return
    asking = [index for index, one in work.carried.items() if len(wanted(one))]
    if not asking:
        return
    tokens = np.unique(np.concatenate([wanted(work.carried[index]) for index in asking]))
    before = await work.compute(partial(lone_prompt, work.pair.tables.teacher))
    for some in np.split(tokens, range(LONE_ROWS, len(tokens), LONE_ROWS)):
        job = Job(
            prompt_ids=before,
            sequences=tuple(lone_sequence(token) for token in some.tolist()),
            top_k=min(LONE_BEST, work.limit),
            temperature=work.request.temperature,
            vocabulary_limit=work.limit,
            want_sampled=False,
        )
        rows = (await work.run(job)).rows
        work.lone_rows += len(rows)
        learn = partial(learn_lone, some, rows, work.pair.realigner, work.lone)
        await work.compute(learn)
    for index in asking:
        rows_of = required(work.carried[index].rows, "row")
        again = partial(walk, planned[index], rows_of, work.pair.realigner, work.request, work.lone)
        work.carried[index] = await work.compute(again)


async def _extra_round(
    work: _Work, planned: list[Planned], settings: TokenizerSettings, max_length: int
) -> bool:
    """One more job for the rows that leave most unsettled; whether there were any."""
    share = max(1, settings.extra_rows // max(1, len(work.carried)))
    asked: list[tuple[int, tuple[int, int]]] = []
    sequences: list[Sequence] = []
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
        again = partial(walk, planned[index], rows, work.pair.realigner, work.request, work.lone)
        work.carried[index] = await work.compute(again)
    return True


def rows_bytes(planned: list[Planned], best: int) -> int:
    """What the teacher's rows take: those asked for, and one rollout's as the walk reads it."""
    asked = sum(len(one.needed) for one in planned) * best * 8
    largest = max((len(one.teacher_ids) for one in planned if one.layout is not None), default=0)
    return asked + largest * best * 12


def _asked_for(scores: ContinuationScores, request: ScoreRequest) -> ContinuationScores:
    return scores if request.returns.realignment else replace(scores, realignment=None)


def _figures(scores: list[ContinuationScores], work: _Work) -> RealignmentTotals:
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
        lone_rows=work.lone_rows,
        seconds=work.seconds,
    )
