"""A realigned request over messages: the generator where the student's tokenizer runs."""

from __future__ import annotations

import time
from collections.abc import Generator

from teacher_server.frames import Frame, FrameError
from teacher_server.realign.paired import Pair
from teacher_server.realign.requests.messages import (
    Answer,
    AskedContextFree,
    AskedPaths,
    AskedRollouts,
    Pause,
    Realigned,
    Step,
)
from teacher_server.realign.requests.request import realigned
from teacher_server.realign.requests.request_frames import ENOUGH, answer_of, request_of
from teacher_server.realign.requests.step_frames import asked_counts, step_frame

# A step gives way to others after so long, between two continuations.
TURN_SECONDS = 0.05


def serve(pair: Pair, start: Frame) -> Generator[Frame, Frame, None]:
    """Realigns the request in ``start``: yields messages and is sent what follows on each.

    The last message is ``done``; after it the generator ends.

    Raises:
        FrameError: what was sent is not what follows.
    """
    began = time.perf_counter()
    work = realigned(request_of(start), pair)
    answer: Answer | None = None
    while True:
        step, answer = _next(work, answer), None
        if isinstance(step, Pause) and time.perf_counter() - began < TURN_SECONDS:
            continue
        sent = yield step_frame(step, time.perf_counter() - began)
        began = time.perf_counter()
        match step:
            case Realigned():
                return
            case AskedContextFree() | AskedPaths() if sent.kind == ENOUGH.kind:
                pass
            case AskedRollouts() | AskedContextFree() | AskedPaths():
                answer = answer_of(sent, asked_counts(step))
            case _:
                if sent.kind != "go":
                    raise FrameError(f"a message {sent.kind!r} where nothing was asked")
        del sent


def _next(
    work: Generator[Step, Answer | None, Realigned], answer: Answer | None
) -> Step | Realigned:
    """What the request says next, or its result."""
    try:
        return work.send(answer)
    except StopIteration as end:
        result: Realigned = end.value
        return result
