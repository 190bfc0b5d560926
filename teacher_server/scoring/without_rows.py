"""Scores of continuations that have no rows."""

from __future__ import annotations

from teacher_proto.types import ContinuationScores, Status

NON_FINITE_DETAIL = "the teacher's logits are not finite"


def not_finite() -> ContinuationScores:
    """The teacher's logits are not finite."""
    return ContinuationScores(status=Status.NON_FINITE, detail=NON_FINITE_DETAIL)
