"""Scores of continuations that have no rows."""

from __future__ import annotations

from teacher_proto.types import ContinuationScores, Status

NON_FINITE_DETAIL = "the teacher's logits are not finite"


def not_finite() -> ContinuationScores:
    """The teacher's logits are not finite."""
    return ContinuationScores(status=Status.NON_FINITE, detail=NON_FINITE_DETAIL)


def not_realigned(detail: str) -> ContinuationScores:
    """The continuation cannot be read in the teacher's tokens; ``detail`` gives the reason."""
    return ContinuationScores(status=Status.NOT_REALIGNED, detail=detail)
