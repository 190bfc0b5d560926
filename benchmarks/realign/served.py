"""The product, driven over a teacher as the service drives it over an engine.

The requests are those of the service, with its default settings, and what they ask of the
teacher is answered here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from teacher_proto.rows import (
    LEAST_BELOW,
    LEAST_BELOW_OWN,
    Rows,
    Support,
    Values,
    WideRows,
    may_be_wide,
    required,
)
from teacher_proto.types import Int32, PositionClass, Realignment

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.paired import Pair
from teacher_server.realign.requests.messages import (
    Answer,
    Asked,
    AskedContextFree,
    AskedContinuation,
    AskedPaths,
    AskedRollouts,
    Plan,
    RealignRequest,
)
from teacher_server.realign.requests.planned import PlannedContinuation
from teacher_server.realign.requests.realigned import rows_of
from teacher_server.realign.requests.request import CONTEXT_FREE_BEST, best_of, realigned
from teacher_server.realign.walk.rows import TeacherRows
from teacher_server.refusals.sizes import session_memory
from teacher_server.scoring.realigned_path import EXTRA_ROUNDS
from teacher_server.settings.tokenizers import TokenizerSettings

Float64 = NDArray[np.float64]
TOP_K = 64
# Ids of a row that are read: 2K.
BEST = 128
TEMPERATURE = 1.0


class Teacher(Protocol):
    def scored(self, before: Sequence[int], own: int, best: int) -> tuple[Int32, Float64, float]:
        """The row after ``before``: the best ids, -1 where there is none, and their
        log-probabilities [best]; and the log-probability of ``own``."""
        ...

    def probability(self, before: Sequence[int], token: int) -> float:
        """Of ``token`` after ``before``."""
        ...


def engine_rows(
    model: Teacher,
    contexts: Sequence[Sequence[int]],
    best: int,
    own: Int32 | None = None,
    wide: Sequence[int] = (),
) -> Rows:
    """One row after each context as an engine gives it, and the log-probabilities of the tokens
    ``own``; with ``wide``, ids of wide rows, as a rollout's rows are."""
    tokens = [0] * len(contexts) if own is None else own.tolist()
    each = zip(contexts, tokens, strict=True)
    found = [model.scored(context, token, best) for context, token in each]
    ids, values, masses = (np.stack(part) for part in zip(*found, strict=True))
    there = ids >= 0
    support = Support(
        ids, np.where(there, values, 0.0).astype(np.float32), there.sum(1).astype(np.int32)
    )
    if own is None:
        return Rows(support)
    sampled = Values(masses.astype(np.float32), np.ones(len(masses), np.bool_))
    if not len(wide):
        return Rows(support, sampled=sampled)
    every = np.array([[model.probability(one, token) for token in wide] for one in contexts])
    listed = np.array([np.isin(wide, row) for row in ids])
    below = np.where(listed, 0.0, every).sum(1)
    least = np.where(np.isin(own, wide), LEAST_BELOW_OWN, LEAST_BELOW)
    which = np.flatnonzero(below >= least)
    which = which[may_be_wide(which)]
    with np.errstate(divide="ignore"):
        log_probs = np.log(every[which]).astype(np.float32)
    return WideRows(support, sampled, wide=which, wide_log_probs=log_probs)


def rows_for(
    model: Teacher, before: Sequence[int], layout: Layout, tables: PairTables
) -> TeacherRows:
    """The rows of a rollout's teacher tokens, as the walk reads them."""
    ids, count = layout.teacher_ids, len(layout.teacher_ids)
    contexts = [[*before, *ids[:at].tolist()] for at in range(count)]
    rows = engine_rows(model, contexts, BEST, ids, tables.wide_ids.tolist())
    asked = AskedContinuation(
        layout.student_ids, np.arange(len(layout.student_ids), dtype=np.int32)
    )
    planned = PlannedContinuation(asked, ids, np.arange(count, dtype=np.int32), layout)
    return rows_of(planned, rows, tables)


@dataclass(frozen=True)
class Served:
    """What a student is told of n positions.

    Attributes:
        rows: student id -> probability, of each position; empty where it is masked.
        sampled: float64 [n], log-probabilities of the rollout's own tokens; NaN where they
            are not told.
        block: the rows' classes and masses.
        told: the rows as they are returned.
        own: the teacher's own rows along the rollout, by which it was realigned.
        extra_rows, rounds: that were asked for after paths.
    """

    rows: list[Mapping[int, float]]
    sampled: Float64
    block: Realignment
    told: Rows
    own: Rows
    extra_rows: int
    rounds: int

    @property
    def masked(self) -> NDArray[np.bool_]:
        """bool [n]."""
        found: NDArray[np.bool_] = self.block.position_class == PositionClass.MASKED
        return found

    @property
    def coarse(self) -> NDArray[np.bool_]:
        """bool [n]."""
        found: NDArray[np.bool_] = self.block.position_class == PositionClass.COARSE
        return found


class ServedPair:
    """A pair and its teacher: each context-free row is asked for once.

    Attributes:
        context_free_rows: that were asked for so far.
    """

    def __init__(self, pair: Pair, model: Teacher, **changes: Any) -> None:
        """``changes``: of the service's default settings of tokenizers."""
        self.pair = pair
        self.context_free_rows = 0
        self._model = model
        self._settings = TokenizerSettings(**changes)

    def score(self, ids: Int32, positions: Int32, before: Sequence[int]) -> Served:
        """The rows at ``positions`` (int32 [n], ascending) of a rollout of student ids, which
        follows the teacher's tokens ``before``."""
        request = self._request(ids, positions, len(before))
        work, extra_rows, rounds = realigned(request, self.pair), 0, 0
        answer: Answer | None = None
        own: Answer = ()
        wide: tuple[int, ...] = ()
        while True:
            try:
                step = work.send(answer)
            except StopIteration as end:
                (scores,) = end.value.scores
                break
            answer = None
            if isinstance(step, Plan):
                best = best_of(request, step.limit)
                wide = step.wide_ids if step.wide_rows(request, best) else ()
            if isinstance(step, Asked):
                answer = self._answer(step, request, before, wide)
            if isinstance(step, AskedRollouts):
                own = required(answer, "answer")
            if isinstance(step, AskedPaths):
                extra_rows, rounds = extra_rows + len(step.sequences), rounds + 1
        if scores.detail:
            raise RuntimeError(f"the rollout was not realigned: {scores.detail}")
        told = required(scores.rows, "rows")
        support = required(told.support, "support")
        rows = [
            dict(zip(row[:count].tolist(), np.exp(values[:count]).tolist(), strict=True))
            for row, values, count in zip(
                support.ids, support.log_probs.astype(np.float64), support.counts, strict=True
            )
        ]
        sampled = required(told.sampled, "sampled tokens")
        return Served(
            rows=rows,
            sampled=np.where(sampled.valid, sampled.values.astype(np.float64), np.nan),
            block=required(scores.realignment, "realignment"),
            told=told,
            own=required(own[0], "the rollout's rows"),
            extra_rows=extra_rows,
            rounds=rounds,
        )

    def microseconds(self, ids: Int32, before: Sequence[int], times: int = 3) -> float:
        """Of the processor, a token: the walk and certification of a rollout's rows, once its
        context-free rows are known; the best of ``times``."""
        realigner = self.pair.realigner
        layout = realigner.lay_out(ids)
        rows = rows_for(self._model, before, layout, self.pair.tables)
        known = self.pair.context_free("ngram", TEMPERATURE)
        taken = []
        for _ in range(times):
            started = time.process_time()
            realigner.realign(layout, np.arange(len(ids)), rows, top_k=TOP_K, context_free=known)
            taken.append(time.process_time() - started)
        return min(taken) / len(ids) * 1e6

    def _request(self, ids: Int32, positions: Int32, prompt_tokens: int) -> RealignRequest:
        given: dict[str, Any] = {
            "teacher": "ngram",
            "continuations": (AskedContinuation(ids, positions),),
            "top_k": TOP_K,
            "temperature": TEMPERATURE,
            "student_vocabulary_size": None,
            "sampled": True,
            "log_tail": True,
            "coarse": True,
            "vocabulary_size": self.pair.tables.teacher.size,
            "prompt_tokens": prompt_tokens,
            "max_length": 1 << 20,
            "memory_bytes": session_memory(self._settings.worker_memory_bytes),
        }
        rest = {field.name for field in fields(RealignRequest)} - given.keys()
        settings = {name: getattr(self._settings, name) for name in rest}
        if settings["extra_rounds"] is None:
            settings["extra_rounds"] = EXTRA_ROUNDS  # as beside vllm
        return RealignRequest(**given, **settings)

    def _answer(
        self,
        asked: Asked,
        request: RealignRequest,
        before: Sequence[int],
        wide: tuple[int, ...],
    ) -> Answer:
        best = best_of(request, request.vocabulary_size)
        match asked:
            case AskedRollouts():
                return tuple(
                    engine_rows(
                        self._model,
                        [[*before, *span.token_ids[:at].tolist()] for at in span.positions],
                        best,
                        span.token_ids[span.positions],
                        wide,
                    )
                    for span in asked.spans
                )
            case AskedContextFree():
                self.context_free_rows += len(asked.tokens)
                contexts = [[token] for token in asked.tokens.tolist()]
                return tuple(engine_rows(self._model, [one], CONTEXT_FREE_BEST) for one in contexts)
            case AskedPaths():
                contexts = [[*before, *ids[:-1].tolist()] for ids in asked.sequences]
                return tuple(engine_rows(self._model, [one], best) for one in contexts)
