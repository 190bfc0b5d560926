"""The result of realigning one request, and what it took; and their sums as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from prometheus_client import CollectorRegistry, Counter
from teacher_proto.program.mask_reasons import COARSE_REASONS
from teacher_proto.types import MaskReason, PositionClass

# The series of the counter by reason: a coarse row has one of two reasons, a masked one any.
CLASSES_AND_REASONS = (
    *((PositionClass.MASKED, reason) for reason in MaskReason),
    *((PositionClass.COARSE, reason) for reason in COARSE_REASONS),
)


class EndedEarly(Enum):
    """Why a request did without wide rows, or extra or context-free ones that the settings allow.

    MEMORY: what they take does not fit into ``tokenizers.worker_memory_bytes``, or what wide ones
    take beside the others into ``limits.max_reply_bytes``.
    DEADLINE: there was no time for them.
    """

    MEMORY = "memory"
    DEADLINE = "deadline"


@dataclass(frozen=True)
class RealignmentTotals:
    """Counts and sums over one request.

    Attributes:
        rows: their number by class.
        reasons: number of masked and coarse rows by class and reason.
        coverage, open_mass, lost_mass: sums over the rows that are not masked.
        not_realigned: continuations that could not be realigned.
        ended_early: why it did without extra or wide rows; None where it had what it may have.
        extra_rows: rows asked for beyond the rollouts' own.
        context_free_rows: asked for once, by the request that needs them first.
        seconds: of the thread that realigned.
    """

    rows: Mapping[PositionClass, int]
    reasons: Mapping[tuple[PositionClass, MaskReason], int]
    coverage: float
    open_mass: float
    lost_mass: float
    not_realigned: int
    ended_early: EndedEarly | None
    extra_rows: int
    context_free_rows: int
    seconds: float


class RealignmentMetrics:
    """Counters by teacher and tokenizer."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ("teacher", "tokenizer", *labels), registry=registry)

        self._rows = counter(
            "lsm_teacher_realigned_rows",
            "Rows realigned for a student with another tokenizer, by class of the position.",
            "position_class",
        )
        self._reasons = counter(
            "lsm_teacher_realigned_mask_reasons",
            "Rows that are masked, or coarse and not more, by the reason.",
            "position_class",
            "mask_reason",
        )
        self._coverage = counter(
            "lsm_teacher_realigned_coverage",
            "Mass of the returned supports, summed over rows that are not masked.",
        )
        self._open_mass = counter(
            "lsm_teacher_realigned_open_mass",
            "Mass whose token is not settled, summed over rows that are not masked.",
        )
        self._lost_mass = counter(
            "lsm_teacher_realigned_lost_mass",
            "Mass that no token can express, summed over rows that are not masked.",
        )
        self._not_realigned = counter(
            "lsm_teacher_not_realigned", "Continuations that could not be realigned."
        )
        self._seconds = counter(
            "lsm_teacher_realign_seconds", "Seconds of one core that realignment took."
        )
        self._extra_rows = counter(
            "lsm_teacher_realign_extra_rows", "Rows that extra rounds asked of the teacher."
        )
        self._ended_early = counter(
            "lsm_teacher_realign_ended_early",
            "Requests that did without extra rows that the settings allow, or without wide "
            "rows, by reason.",
            "reason",
        )
        self._context_free_rows = counter(
            "lsm_teacher_realign_context_free_rows",
            "Context-free rows, which follow a single token, that were asked of the teacher.",
        )

    def add(self, teacher: str, tokenizer: str, totals: RealignmentTotals) -> None:
        """One request."""
        pair = teacher, tokenizer
        # Every class and reason is there from the start: shares of what never occurred are 0.
        for kind in PositionClass:
            self._rows.labels(*pair, kind.name).inc(totals.rows.get(kind, 0))
        for kind, reason in CLASSES_AND_REASONS:
            rows = totals.reasons.get((kind, reason), 0)
            self._reasons.labels(*pair, kind.name, reason.name).inc(rows)
        self._coverage.labels(*pair).inc(totals.coverage)
        self._open_mass.labels(*pair).inc(totals.open_mass)
        self._lost_mass.labels(*pair).inc(totals.lost_mass)
        self._not_realigned.labels(*pair).inc(totals.not_realigned)
        self._seconds.labels(*pair).inc(totals.seconds)
        self._extra_rows.labels(*pair).inc(totals.extra_rows)
        for why in EndedEarly:
            self._ended_early.labels(*pair, why.value).inc(totals.ended_early is why)
        self._context_free_rows.labels(*pair).inc(totals.context_free_rows)
