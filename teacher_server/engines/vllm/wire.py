"""What travels between the server and vLLM's workers: plans of rows one way, packed rows back.

Both are raw bytes or tensors inside vLLM's own messages, which are msgpack to the engine
core and shared memory to its workers. Nothing here imports vLLM.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from teacher_proto.errors import EngineError
from teacher_proto.rows import Rows, Support, Values, WideRows, may_be_wide, required
from teacher_proto.types import Float32, Int32

from teacher_server.engines.base import Job, JobResult, ScoredSpan, empty_rows
from teacher_server.engines.torch.head import RowRequest
from teacher_server.engines.torch.supports import SupportSpec

# Keys of ``SamplingParams.extra_args``.
PLAN = "lsm_rows"
FIRST_ROW = "lsm_first_row"
MINUS_INFINITY = np.float32("-inf")
NO_PLACES = np.zeros(0)


class RowsStatus(enum.IntEnum):
    """Whether the rows of a request were computed, or why not."""

    FINITE = 0
    NOT_FINITE = 1
    # The token before a row came from the prefix cache, so that its hidden state is unknown.
    ROW_MISSING = 2
    OUT_OF_MEMORY = 3
    FAILED = 4


@dataclass(frozen=True)
class RowPlan:
    """The rows that are wanted of one vLLM request, which reads N tokens.

    Attributes:
        indices: int64 [R], strictly increasing: row r comes from the hidden state of the
            token ``indices[r]`` of the request. The last one is N - 1.
        sampled: int32 [R], the span's own token of each row.
        explicit: int32 [R, E] or None; -1 marks an empty slot.
    """

    spec: SupportSpec
    indices: NDArray[np.int64]
    sampled: Int32
    explicit: Int32 | None

    @classmethod
    def of(cls, job: Job, span: ScoredSpan) -> RowPlan:
        """``span`` has at least one position."""
        explicit = span.explicit_ids
        return cls(
            spec=SupportSpec.of(job, span),
            indices=span.positions.astype(np.int64) + len(job.prompt_ids) - 1,
            sampled=span.token_ids[span.positions].astype(np.int32),
            explicit=None if explicit is None else explicit.astype(np.int32),
        )

    @property
    def count(self) -> int:
        return len(self.indices)

    @property
    def length(self) -> int:
        """N, the tokens that vLLM reads."""
        return int(self.indices[-1]) + 1

    @property
    def columns(self) -> int:
        """Values of a packed row: those of the top K, sampled token, tail and explicit ids."""
        spec = self.spec
        return spec.top_k + spec.want_sampled + spec.want_log_tail + spec.explicit_slots

    @property
    def wide_count(self) -> int:
        """W, the ids of wide rows."""
        return len(self.spec.wide_ids) // 4

    def to_extra_args(self) -> dict[str, Any]:
        spec = self.spec
        explicit = self.explicit
        return {
            FIRST_ROW: int(self.indices[0]),
            PLAN: [
                [
                    spec.top_k,
                    spec.temperature,
                    spec.vocabulary_limit,
                    spec.want_sampled,
                    spec.want_log_tail,
                    spec.explicit_slots,
                    spec.wide_ids,
                ],
                self.indices.tobytes(),
                self.sampled.tobytes(),
                None if explicit is None else np.ascontiguousarray(explicit).tobytes(),
            ],
        }

    @classmethod
    def from_extra_args(cls, arguments: dict[str, Any]) -> RowPlan:
        given, indices, sampled, explicit = arguments[PLAN]
        rows, spec = np.frombuffer(sampled, np.int32), SupportSpec(*given)
        return cls(
            spec=spec,
            indices=np.frombuffer(indices, np.int64),
            sampled=rows,
            explicit=None
            if explicit is None
            else np.frombuffer(explicit, np.int32).reshape(len(rows), spec.explicit_slots),
        )

    def request(self, low: int, high: int) -> RowRequest:
        """The rows [low, high) as the head takes them."""
        explicit = None if self.explicit is None else self.explicit[low:high]
        return RowRequest(self.spec, self.sampled[low:high], explicit)


class PackedRows:
    """The rows of one request, which are filled pass by pass.

    Attributes:
        ids: int32 [R, K], -1 in the slots that a row does not fill.
        values: float32 [R, columns], -inf where a value is not valid.
        wide, wide_values: int64 [n], float32 [n, W], the wide rows, no more than may be.
        status: FINITE until something fails.
        filled: the rows [0, filled) are there.
    """

    def __init__(self, plan: RowPlan) -> None:
        self.plan = plan
        self.ids = np.empty((plan.count, plan.spec.top_k), np.int32)
        self.values = np.empty((plan.count, plan.columns), np.float32)
        self.wide = np.zeros(0, np.int64)
        self.wide_values = np.zeros((0, plan.wide_count), np.float32)
        self.status = RowsStatus.FINITE
        self.filled = 0

    def fill(self, low: int, high: int, rows: Rows | None) -> None:
        """Takes the rows [low, high), None where they are not finite.

        A row comes again when its request starts over.
        """
        if low > self.filled:
            self.fail(RowsStatus.ROW_MISSING)
        elif rows is None:
            self.fail(RowsStatus.NOT_FINITE)
        if rows is None or self.status is not RowsStatus.FINITE:
            return
        self.filled = high
        spec = self.plan.spec
        support = required(rows.support, "support")
        self.ids[low:high] = support.ids
        self.values[low:high, : spec.top_k] = support.log_probs
        column = spec.top_k
        for part in (rows.sampled, rows.log_tail):
            if part is not None:
                self.values[low:high, column] = _join(part)
                column += 1
        if rows.explicit is not None:
            self.values[low:high, column:] = _join(rows.explicit)
        if isinstance(rows, WideRows):
            before = int(np.searchsorted(self.wide, low))
            places = rows.wide + low
            kept = may_be_wide(places, before)
            self.wide = np.append(self.wide[:before], places[kept])
            more = rows.wide_log_probs[kept]
            self.wide_values = np.append(self.wide_values[:before], more, axis=0)

    def fail(self, status: RowsStatus) -> None:
        """Keeps the first failure as the status, and drops the rows."""
        if self.status is RowsStatus.FINITE:
            self.status = status
            self.ids, self.values = self.ids[:0].copy(), self.values[:0].copy()
            self.wide, self.wide_values = self.wide[:0], self.wide_values[:0].copy()

    def finish(self) -> None:
        """The whole request was read: rows that did not come are missing."""
        if self.filled < self.plan.count:
            self.fail(RowsStatus.ROW_MISSING)

    def arrays(self) -> tuple[Int32, Float32, NDArray[np.float64]]:
        """(ids, values, places) as they travel. Where the plan has ids of wide rows, ``values`` is
        float32 [R * columns + n * W], those of all rows and then those of the n wide ones, else
        [R, columns]; ``places`` is float64 [n], which rows are wide."""
        values = self.values
        if self.plan.wide_count:
            values = np.concatenate([values.reshape(-1), self.wide_values.reshape(-1)])
        return self.ids, values, self.wide.astype(np.float64)


def unpack(
    plan: RowPlan, ids: Int32, values: Float32, places: NDArray[np.float64] = NO_PLACES
) -> Rows:
    """The rows of a finite request, out of the arrays of ``PackedRows``."""
    spec, count = plan.spec, plan.count * plan.columns
    wide_values = values.reshape(-1)[count:]
    values = values.reshape(-1)[:count].reshape(plan.count, plan.columns)
    ids = np.ascontiguousarray(ids)
    best = np.ascontiguousarray(values[:, : spec.top_k])
    support = Support(ids, best, (ids >= 0).sum(axis=1, dtype=np.int32))
    column = spec.top_k
    sampled = log_tail = explicit = None
    if spec.want_sampled:
        sampled = _split(values[:, column])
        column += 1
    if spec.want_log_tail:
        log_tail = _split(values[:, column])
        column += 1
    if plan.explicit is not None:
        explicit = _split(values[:, column:])
    if not plan.wide_count:
        return Rows(support, sampled, log_tail, explicit)
    return WideRows(
        support,
        sampled,
        log_tail,
        explicit,
        wide=places.astype(np.int64),
        wide_log_probs=wide_values.reshape(-1, plan.wide_count).copy(),
    )


def _join(part: Values) -> Float32:
    """The values, with -inf where they are not valid."""
    return np.where(part.valid, part.values, MINUS_INFINITY)


def _split(values: Float32) -> Values:
    valid = values > MINUS_INFINITY
    return Values(np.where(valid, values, np.float32(0)), valid)


def job_result(job: Job, plans: Sequence[RowPlan | None], outputs: Iterable[Any]) -> JobResult:
    """The result of a job from the outputs of its requests.

    Args:
        plans: one for each span; None for a span without rows, which was no request.
        outputs: of vLLM, in the order of the plans that are not None.

    Raises:
        EngineError: see ``rows_of``.
    """
    left = iter(outputs)
    rows: list[Rows | None] = []
    computed, seconds = 0, 0.0
    for plan, span in zip(plans, job.spans, strict=True):
        if plan is None:
            rows.append(empty_rows(job, span))
            continue
        output = next(left)
        result, count, share = rows_of(
            output.new_prompt_logprobs_tensors, plan, output.finish_reason
        )
        rows.append(result)
        computed += count
        seconds += share
    return JobResult(tuple(rows), computed, seconds)


def rows_of(packed: Any, plan: RowPlan, reason: object) -> tuple[Rows | None, int, float]:
    """Rows (None: they are not finite), computed tokens and seconds of a finished request.

    Args:
        packed: the three tensors of the request; None when vLLM ended it without.
        reason: why vLLM ended it.

    Raises:
        EngineError: the rows could not be computed.
    """
    if packed is None:
        raise EngineError(f"vLLM ended a request without its rows ({reason})")
    facts = packed.selected_token_ranks.numpy()
    status, computed, seconds = facts[:3].tolist()
    rows: Rows | None = None
    if status == RowsStatus.FINITE:
        rows = unpack(plan, packed.logprob_token_ids.numpy(), packed.logprobs.numpy(), facts[3:])
    elif status == RowsStatus.OUT_OF_MEMORY:
        raise EngineError(
            "memory ran out between the hidden states and the rows",
            where="engine",
            fix="leave more memory beside the cache: lower engine.vllm.gpu_memory_utilization",
            reason="OUT_OF_MEMORY",
        )
    elif status != RowsStatus.NOT_FINITE:
        raise EngineError(f"rows could not be computed: {RowsStatus(int(status)).name}")
    return rows, int(computed), seconds
