"""A request in a student's tokenizer as a generator.

It yields what it has to say or to ask (``messages.Step``) and is sent the rows that it asked
for. Its continuations are laid out in the teacher's tokens, their rows asked for and realigned
to the student's tokens; it may ask again for what is left open. Whoever runs it decides whether
to go on after ``TextSize`` and ``Plan``, and may close it after any step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
from teacher_proto.rows import Rows, required

from teacher_server.realign.paired import Pair
from teacher_server.realign.requests.extra_rows import ExtraBudget, OpenPaths
from teacher_server.realign.requests.further_rows import (
    context_free_prompt,
    learn_context_free,
    open_paths,
    path_ids,
    with_paths,
)
from teacher_server.realign.requests.messages import (
    Answer,
    Asked,
    AskedContextFree,
    AskedPaths,
    AskedRollouts,
    AskedSpan,
    Pause,
    Realigned,
    RealignRequest,
    Step,
    TextSize,
)
from teacher_server.realign.requests.planned import (
    PlannedContinuation,
    continuation_bytes,
    plan_continuation,
    plan_of,
)
from teacher_server.realign.requests.realigned import (
    RealignedContinuation,
    not_realigned,
    realign_engine_rows,
    realign_rows,
)
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.rows import TeacherRows

# Context-free rows that are asked for at once, and ids of each.
CONTEXT_FREE_ROWS = 256
CONTEXT_FREE_BEST = 128
PAUSE = Pause()


def best_of(request: RealignRequest, limit: int) -> int:
    """M: how many teacher ids to ask for per row, so that they yield K student ids."""
    width = max(request.top_k, request.explicit_width)
    return min(max(2 * width, width + 64), limit)


def realigned(request: RealignRequest, pair: Pair) -> Generator[Step, Answer | None, Realigned]:
    """Realigns a validated request."""
    work = _Work(request, pair, None)
    if request.context_free_rows:
        work.context_free = pair.context_free(request.teacher, request.temperature)
    yield TextSize(continuation_bytes(request, pair.tables.student))
    for continuation in request.continuations:
        work.planned.append(
            plan_continuation(continuation, pair.realigner, request.vocabulary_size)
        )
        yield PAUSE
    limit = min(request.vocabulary_size, pair.tables.teacher.size)
    plan = plan_of(work.planned, limit, pair.tables.wide_ids)
    yield plan
    readable = [index for index, one in enumerate(work.planned) if not one.problem]
    if readable:
        yield from _ask_rollouts(work, readable)
    in_time = yield from _ask_context_free_rows(work)
    budget = ExtraBudget(
        rows=plan.extra_rows(request, best_of(request, plan.limit)),
        rounds=request.extra_rounds,
        most=request.extra_batch(plan.lengths),
    )
    while in_time and budget.rows and budget.rounds and (yield from _extra_round(work, budget)):
        in_time = yield from _ask_context_free_rows(work)
    return Realigned(
        tuple(
            not_realigned(one.problem) if one.problem else work.realigned[index].scores
            for index, one in enumerate(work.planned)
        )
    )


@dataclass
class _Work:
    """One request, and what is known of it so far.

    Attributes:
        context_free: of this teacher and temperature; None to go without.
        planned: every continuation, in order.
        realigned: by index, the continuations that the teacher can read.
        not_finite: by index, the paths after which the teacher's row is not finite: they stay
            open.
    """

    request: RealignRequest
    pair: Pair
    context_free: ContextFreeRows | None
    planned: list[PlannedContinuation] = field(default_factory=list)
    realigned: dict[int, RealignedContinuation] = field(default_factory=dict)
    not_finite: dict[int, set[tuple[int, int]]] = field(default_factory=lambda: defaultdict(set))

    def realign(self, index: int, rows: Rows | None) -> None:
        """Realigns a continuation's rows as the engine gave them."""
        self.realigned[index] = realign_engine_rows(
            self.planned[index], rows, self.pair.realigner, self.request, self.context_free
        )

    def realign_again(self, index: int, rows: TeacherRows) -> None:
        """Realigns a continuation once more, after more rows are known."""
        self.realigned[index] = realign_rows(
            self.planned[index], rows, self.pair.realigner, self.request, self.context_free
        )


def _ask(asked: Asked) -> Generator[Step, Answer | None, list[Rows | None] | None]:
    """The rows of the spans, in order; None where they cannot be had in time."""
    answer = yield asked
    return None if answer is None else list(answer)


def _ask_rollouts(work: _Work, readable: list[int]) -> Generator[Step, Answer | None, None]:
    planned = [work.planned[index] for index in readable]
    spans = tuple(AskedSpan(one.teacher_ids, one.needed) for one in planned)
    found = required((yield from _ask(AskedRollouts(spans))), "answer")
    for place, index in enumerate(readable):
        work.realign(index, found[place])
        found[place] = None  # the walk has its own form of them
        yield PAUSE


def _ask_context_free_rows(work: _Work) -> Generator[Step, Answer | None, bool]:
    """Asks for the context-free rows that are not known yet, and realigns again with them;
    False where they cannot be had in time.

    They depend on nothing of the request but its temperature.
    """
    if work.context_free is None:
        return True
    wanted = {index: one.wanted for index, one in work.realigned.items()}
    asking = [index for index, tokens in wanted.items() if len(tokens)]
    if not asking:
        return True
    tokens = np.unique(np.concatenate([wanted[index] for index in asking]))
    before = context_free_prompt(work.pair.tables.teacher)
    for some in np.split(tokens, range(CONTEXT_FREE_ROWS, len(tokens), CONTEXT_FREE_ROWS)):
        rows = yield from _ask(AskedContextFree(before, some.astype(np.int32)))
        if rows is None:
            return False
        learn_context_free(some, rows, work.pair.realigner, work.context_free)
    for index in asking:
        work.realign_again(index, required(work.realigned[index].rows, "rows"))
        yield PAUSE
    return True


def _extra_round(work: _Work, budget: ExtraBudget) -> Generator[Step, Answer | None, bool]:
    """Asks for the rows that gain most; whether there were any, in time."""
    request = work.request
    longest = request.max_length - request.prompt_tokens
    needed, paths = 0.0, dict[int, OpenPaths]()
    for index, one in work.realigned.items():
        need, paths[index] = open_paths(
            one, request.extra_least_open, longest, work.not_finite[index]
        )
        needed += need
        yield PAUSE
    asked = budget.choose(needed, paths)
    if not asked:
        return False
    sequences = [
        path_ids(work.realigned[index], work.planned[index], path) for index, path in asked
    ]
    found = yield from _ask(AskedPaths(tuple(sequences)))
    if found is None:
        return False
    for index in dict.fromkeys(index for index, _ in asked):
        places = [place for place, (of, _) in enumerate(asked) if of == index]
        chosen = [asked[place][1] for place in places]
        work.not_finite[index] |= {asked[place][1] for place in places if found[place] is None}
        rows = with_paths(work.realigned[index], chosen, [found[place] for place in places])
        if rows is not None:
            work.realign_again(index, rows)
        yield PAUSE
    return True
