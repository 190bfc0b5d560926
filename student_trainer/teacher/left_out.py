"""Responses that a teacher refuses by themselves: they are left out and counted, and the run
goes on with the others."""

from __future__ import annotations

from teacher_proto.errors import EngineError, InvalidRequestError, LsmError
from teacher_proto.types import ContinuationScores, Status

REFUSED = "the teacher refuses it: "
# What a refusal is about, when it is about one prompt or its responses.
OF_A_ROW = ("prompt", "teacher_prompt", "continuations")
TOO_LARGE = ("MESSAGE_TOO_LARGE", "REQUEST_TOO_LARGE")
OUT_OF_MEMORY = "OUT_OF_MEMORY"


def is_of_a_row(error: LsmError) -> bool:
    """Whether an error is about what one request holds: its prompt, or its responses and how
    long they are. Any other, such as one about K, is about every request of the run."""
    if isinstance(error, EngineError):
        return error.reason == OUT_OF_MEMORY
    large = error.reason in TOO_LARGE
    return isinstance(error, InvalidRequestError) and (large or error.where.startswith(OF_A_ROW))


def left_out(error: LsmError) -> ContinuationScores:
    """Scores in place of those that the teacher refuses to give: without rows."""
    return ContinuationScores(status=Status.NOT_REALIGNED, detail=f"{REFUSED}{error.what}")


def is_left_out(scores: ContinuationScores) -> bool:
    """Whether these are of ``left_out``."""
    return scores.status is Status.NOT_REALIGNED and scores.detail.startswith(REFUSED)
