"""Requests that are realigned in the process of the test, for a teacher without a model."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.types import Int32

from teacher_server.frames import Frame, pack, unpack
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.paired import Pair
from teacher_server.realign.requests.messages import (
    Answer,
    Asked,
    AskedContextFree,
    AskedContinuation,
    AskedPaths,
    AskedRollouts,
    Realigned,
    RealignRequest,
    Step,
)
from teacher_server.realign.requests.request import CONTEXT_FREE_BEST, best_of
from teacher_server.realign.requests.request_frames import GO, rows_frame, start_frame
from teacher_server.realign.requests.serve import serve
from teacher_server.realign.requests.step_frames import StepReader
from tests.realign.toys import SPACE, toy

STUDENT = toy("abcd" + SPACE, [("c", "d"), (SPACE, "a"), ("a", "b")])
TEACHER = toy("abcd" + SPACE, [("b", "c"), (SPACE, "a")])


def toy_pair() -> Pair:
    return Pair(PairTables(STUDENT, TEACHER, build_static(STUDENT, TEACHER)))


def student_ids(text: str) -> Int32:
    return STUDENT.encoder.encode(text.encode()).ids


def toy_request(*texts: str, **changes: Any) -> RealignRequest:
    """One continuation for each text, all of whose rows are asked for."""
    tokens = [student_ids(text) for text in texts]
    given: dict[str, Any] = {
        "teacher": "toy",
        "continuations": tuple(
            AskedContinuation(ids, np.arange(len(ids), dtype=np.int32)) for ids in tokens
        ),
        "top_k": 3,
        "temperature": 1.0,
        "student_vocabulary_size": None,
        "sampled": True,
        "log_tail": True,
        "coarse": False,
        "vocabulary_size": TEACHER.size,
        "prompt_tokens": 1,
        "max_length": 64,
        "context_free_rows": True,
        "extra_rounds": 1,
        "extra_rows_per_token": 1.0,
        "extra_rows": 8,
        "extra_least_open": 0.001,
        "memory_bytes": 1 << 30,
    }
    return RealignRequest(**{**given, **changes})


def toy_row(before: int, own: int, best: int) -> tuple[Int32, np.ndarray[Any, Any], float]:
    """ids and log-probabilities [best], and the own token's: they depend on the token before."""
    rng = np.random.default_rng(before)
    masses = rng.dirichlet(np.full(TEACHER.size, 0.4)) + 1e-6
    masses /= masses.sum()
    order = np.argsort(-masses, kind="stable")[:best].astype(np.int32)
    return order, np.log(masses[order]), float(np.log(masses[own]))


def toy_rows(ids: Int32, positions: Int32, best: int, *, sampled: bool) -> Rows:
    found = [toy_row(int(ids[at - 1]) if at else 0, int(ids[at]), best) for at in positions]
    top, values, own = zip(*found, strict=True)
    return Rows(
        Support(
            np.stack(top), np.stack(values).astype(np.float32), np.full(len(top), best, np.int32)
        ),
        sampled=Values(np.array(own, np.float32), np.ones(len(own), np.bool_)) if sampled else None,
    )


def toy_answer(asked: Asked, request: RealignRequest) -> Answer:
    """What the toy teacher answers."""
    best = best_of(request, TEACHER.size)
    match asked:
        case AskedRollouts():
            return tuple(
                toy_rows(span.token_ids, span.positions, best, sampled=True) for span in asked.spans
            )
        case AskedContextFree():
            best = min(CONTEXT_FREE_BEST, TEACHER.size)
            spans = [np.array([token, token], np.int32) for token in asked.tokens.tolist()]
        case AskedPaths():
            spans = list(asked.sequences)
    last = [np.array([len(ids) - 1], np.int32) for ids in spans]
    return tuple(
        toy_rows(ids, at, best, sampled=False) for ids, at in zip(spans, last, strict=True)
    )


def follow(step: Step, request: RealignRequest) -> Frame:
    """What the service sends after a step."""
    if isinstance(step, Asked):
        return rows_frame(toy_answer(step, request))
    return GO


class InProcess:
    """A session whose messages are packed and unpacked, as they are between processes.

    Attributes:
        said: the messages it answered with.
    """

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._work: Generator[Frame, Frame, None] | None = None
        self.said: list[Frame] = []

    def next(self, frame: Frame) -> Frame:
        """What it says after ``frame``."""
        frame = unpack(pack(frame))
        if self._work is None:
            self._work = serve(self._pair, frame)
            said = next(self._work)
        else:
            said = self._work.send(frame)
        self.said.append(unpack(pack(said)))
        return self.said[-1]

    async def ask(self, frame: Frame) -> Frame:
        return self.next(frame)

    async def reserve(self, size: int) -> None:
        """There is always room."""


def converse(request: RealignRequest, session: InProcess) -> Generator[Step, None, Realigned]:
    """The whole conversation, step by step."""
    reader = StepReader(request)
    frame = start_frame(request)
    while True:
        step = reader.read(session.next(frame))
        if isinstance(step, Realigned):
            return step
        yield step
        frame = follow(step, request)


def result(conversation: Generator[Step, None, Realigned]) -> Realigned:
    """What comes in the end."""
    while True:
        try:
            next(conversation)
        except StopIteration as end:
            found: Realigned = end.value
            return found
