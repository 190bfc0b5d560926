"""What the realignment of one request gave and took."""

from __future__ import annotations

from dataclasses import dataclass

from teacher_proto.types import PositionClass


@dataclass(frozen=True)
class RealignmentTotals:
    """What carrying one request over gave and took.

    Attributes:
        rows: by class.
        coverage, open_mass, lost_mass: sums over the rows that are not masked.
        not_realigned: continuations.
        extra_rows: rows asked for beyond the rollouts' own.
        context_free_rows: rows behind single tokens, asked for once by whoever needs them first.
        seconds: of one core.
    """

    rows: dict[PositionClass, int]
    coverage: float
    open_mass: float
    lost_mass: float
    not_realigned: int
    extra_rows: int
    context_free_rows: int
    seconds: float
