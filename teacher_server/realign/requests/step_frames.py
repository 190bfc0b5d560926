"""What a realigned request says as messages, and what of it is believed.

A student's tokenizer runs where these messages come from, so ``StepReader`` takes them as it
would take them from a stranger: what is asked of the teacher must be what was planned, within
the request's own bounds, and every array must have its type, its shape and ids that there are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
from teacher_proto.types import Int32

from teacher_server.frames import Frame, FrameError, texts_array
from teacher_server.realign.pair.tables import MOST_WIDE
from teacher_server.realign.requests.messages import (
    Asked,
    AskedContextFree,
    AskedPaths,
    AskedRollouts,
    AskedSpan,
    Pause,
    Plan,
    Realigned,
    RealignRequest,
    Step,
    TextSize,
)
from teacher_server.realign.requests.request import CONTEXT_FREE_ROWS, best_of
from teacher_server.realign.requests.request_frames import joined, lengths, split
from teacher_server.realign.requests.result_frames import details_of, result_frame, result_of

MAX_TOKENS = 1 << 31
# Seconds by which the steps may say that they took longer than all took here.
CLOCKS_APART = 1.0


def step_frame(step: Step | Realigned, seconds: float) -> Frame:
    """A step as a message, which took ``seconds`` to come to."""
    frame = _frame(step)
    return replace(frame, header={**frame.header, "seconds": seconds})


def asked_counts(step: Asked) -> list[int]:
    """Rows of each span that is asked."""
    match step:
        case AskedRollouts():
            return [len(span.positions) for span in step.spans]
        case AskedContextFree():
            return [1] * len(step.tokens)
        case AskedPaths():
            return [1] * len(step.sequences)


def _frame(step: Step | Realigned) -> Frame:
    match step:
        case TextSize():
            return Frame("size", {"text_bytes": step.text_bytes})
        case Pause():
            return Frame("working")
        case Plan():
            return Frame(
                "plan",
                {"limit": step.limit},
                {
                    **texts_array(list(step.problems)),
                    "lengths": np.array(step.lengths, np.int64),
                    "needed": np.array(step.needed, np.int64),
                    "wide_ids": np.array(step.wide_ids, np.int32),
                },
            )
        case AskedRollouts():
            ids = [span.token_ids for span in step.spans]
            positions = [span.positions for span in step.spans]
            return Frame(
                "rollouts",
                {},
                {"token_ids": joined(ids, np.int32), "positions": joined(positions, np.int32)},
            )
        case AskedContextFree():
            return Frame("context_free", {}, {"before": step.before, "tokens": step.tokens})
        case AskedPaths():
            found = step.sequences
            return Frame(
                "paths",
                {},
                {"token_ids": joined(found, np.int32), "lengths": lengths(found)},
            )
        case Realigned():
            return result_frame(step)


@dataclass
class StepReader:
    """Reads the messages of one request, in their order.

    Attributes:
        request: what was asked.
        seconds: that the steps took, as they say.
        context_free_rows, extra_rows: asked for so far.
    """

    request: RealignRequest
    seconds: float = 0.0
    context_free_rows: int = 0
    extra_rows: int = 0
    _expected: str = "size"
    _plan: Plan | None = None
    _rounds: int = 0
    _pauses: int = 0
    _began: float = field(default_factory=time.monotonic)

    def read(self, frame: Frame) -> Step | Realigned:
        """The step in the next message; raises FrameError for whatever it may not hold."""
        seconds = frame.header.get("seconds")
        passed = time.monotonic() - self._began + CLOCKS_APART
        if not isinstance(seconds, float) or not 0 <= seconds <= passed - self.seconds:
            raise FrameError(f"{frame.kind}: seconds is no duration, or longer than it took")
        self.seconds += seconds
        if frame.kind == "working":
            return self._pause()
        if self._expected != "more" and frame.kind != self._expected:
            raise FrameError(f"a message {frame.kind[:32]!r} where {self._expected!r} comes")
        match frame.kind:
            case "size":
                return self._size(frame)
            case "plan":
                return self._planned(frame)
            case "rollouts":
                return self._rollouts(frame)
            case "context_free":
                return self._context_free(frame)
            case "paths":
                return self._paths(frame)
            case "done":
                return result_of(frame, self.request, self.plan)
        raise FrameError(f"a message of the unknown kind {frame.kind[:32]!r}")

    @property
    def plan(self) -> Plan:
        """Raises FrameError before it was read."""
        if self._plan is None:
            raise FrameError("there is no plan yet")
        return self._plan

    def _pause(self) -> Pause:
        self._pauses += 1
        passes = 2 + 3 * (1 + self.request.extra_rounds)
        if self._pauses > passes * len(self.request.continuations):
            raise FrameError("it pauses more often than there is work")
        return Pause()

    def _size(self, frame: Frame) -> TextSize:
        self._expected = "plan"
        return TextSize(frame.integer("text_bytes"))

    def _planned(self, frame: Frame) -> Plan:
        count = len(self.request.continuations)
        sizes, needed = (frame.array(n, np.int64, count) for n in ("lengths", "needed"))
        problems = details_of(frame, count)
        if ((sizes < 0) | (sizes > MAX_TOKENS) | (needed < 0) | (needed > sizes)).any():
            raise FrameError("plan: a length that none can have")
        if any(size for size, problem in zip(sizes.tolist(), problems, strict=True) if problem):
            raise FrameError("plan: teacher tokens of what it cannot read")
        limit = frame.integer("limit", 1, self.request.vocabulary_size)
        wide = frame.array("wide_ids", np.int32, None)
        if len(wide) > MOST_WIDE or not _ascend(wide):
            raise FrameError("plan: ids of wide rows that do not ascend, or too many")
        if len(wide) and not (wide.min() >= 0 and wide.max() < limit):
            raise FrameError("plan: an id of wide rows that no row may have")
        self._plan = Plan(
            lengths=tuple(sizes.tolist()),
            needed=tuple(needed.tolist()),
            problems=problems,
            limit=limit,
            wide_ids=tuple(wide.tolist()),
        )
        self._expected = "rollouts" if not all(problems) else "more"
        return self._plan

    def _rollouts(self, frame: Frame) -> AskedRollouts:
        self._expected = "more"
        readable = np.array([not problem for problem in self.plan.problems], np.bool_)
        sizes, needed = np.array(self.plan.lengths)[readable], np.array(self.plan.needed)[readable]
        ids = self._ids(frame.array("token_ids", np.int32, int(sizes.sum())))
        positions = frame.array("positions", np.int32, int(needed.sum()))
        pairs = zip(split(ids, sizes), split(positions, needed), strict=True)
        spans = tuple(AskedSpan(*pair) for pair in pairs)
        for span in spans:
            rows = span.positions
            inside = not len(rows) or (rows.min() >= 0 and rows.max() < len(span.token_ids))
            if not inside or not _ascend(rows):
                raise FrameError("rollouts: rows that do not ascend within their tokens")
        return AskedRollouts(spans)

    def _context_free(self, frame: Frame) -> AskedContextFree:
        tokens = self._ids(frame.array("tokens", np.int32, None))
        self.context_free_rows += len(tokens)
        if not self.request.context_free_rows or self.context_free_rows > self.plan.limit:
            raise FrameError("context_free: more rows than there may be")
        if not 1 <= len(tokens) <= CONTEXT_FREE_ROWS or not _ascend(tokens):
            raise FrameError("context_free: tokens that do not ascend, or too many")
        return AskedContextFree(self._ids(frame.array("before", np.int32, 1)), tokens)

    def _paths(self, frame: Frame) -> AskedPaths:
        self._rounds += 1
        ids = self._ids(frame.array("token_ids", np.int32, None))
        sizes = frame.array("lengths", np.int64, None)
        self.extra_rows += len(sizes)
        best = best_of(self.request, self.plan.limit)
        if (
            self._rounds > self.request.extra_rounds
            or len(sizes) > self.request.extra_batch(self.plan.lengths)
            or self.extra_rows > self.plan.extra_rows(self.request, best)
        ):
            raise FrameError("paths: more than may be asked for")
        longest = self.request.max_length - self.request.prompt_tokens
        if not len(sizes) or ((sizes < 1) | (sizes > longest)).any():
            raise FrameError(f"paths: sequences that are not of 1 to {longest} tokens")
        return AskedPaths(tuple(split(ids, sizes)))

    def _ids(self, ids: Int32) -> Int32:
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.request.vocabulary_size):
            raise FrameError("an id that the teacher's model does not have")
        return ids


def _ascend(values: Int32) -> bool:
    """Whether each is above the one before it; their differences need not fit into 32 bits."""
    return bool((values[1:] > values[:-1]).all())
