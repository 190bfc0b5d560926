"""The result of realigning one request, and what it took."""

from __future__ import annotations

from dataclasses import dataclass

from teacher_proto.types import PositionClass


@dataclass(frozen=True)
class RealignmentTotals:
    """Counts and sums over one request.

    Attributes:
        rows: their number by class.
        coverage, open_mass, lost_mass: sums over the rows that are not masked.
        not_realigned: continuations that could not be realigned.
        extra_rows: rows asked for beyond the rollouts' own.
        context_free_rows: asked for once, by the request that needs them first.
        seconds: of the thread that realigned.
    """

    rows: dict[PositionClass, int]
    coverage: float
    open_mass: float
    lost_mass: float
    not_realigned: int
    extra_rows: int
    context_free_rows: int
    seconds: float
