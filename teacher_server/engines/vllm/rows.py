"""Rows from the hidden states of a model runner, step by step, inside vLLM's worker.

vLLM reads a request in one pass or in several, together with others. Of each pass only
the hidden states of planned rows reach the LM head, and of their logits only packed rows
are kept. Nothing here imports vLLM.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from teacher_proto.program.logit_treatment import LogitTreatment
from torch import Tensor

from teacher_server.engines.faults import is_fatal, is_out_of_memory
from teacher_server.engines.torch.head import LanguageModelHead
from teacher_server.engines.vllm.wire import PackedRows, RowPlan, RowsStatus
from teacher_server.failures import is_ending

logger = logging.getLogger(__name__)

# Bytes of one block of logits as float32, on a CPU and on other devices.
CPU_BLOCK_BYTES = 48 * 2**20
DEVICE_BLOCK_BYTES = 256 * 2**20


class RunnerProjection:
    """The logits of a model that vLLM runs, a ``torch.projection.Projection``.

    The logits are the model's own: whatever it does to the output of its head is done.

    Args:
        compute_logits: hidden [n, H] -> logits [n, V]; None on a tensor-parallel
            rank that does not get them.
        vocabulary_size: V.
        device: where the hidden states live.

    Attributes:
        calls: products since it was last set to 0.
    """

    def __init__(
        self,
        compute_logits: Callable[[Tensor], Tensor | None],
        vocabulary_size: int,
        device: torch.device,
    ) -> None:
        block_bytes = CPU_BLOCK_BYTES if device.type == "cpu" else DEVICE_BLOCK_BYTES
        self.vocabulary_size = vocabulary_size
        self.device = device
        self.block_rows = max(1, block_bytes // (4 * vocabulary_size))
        self.calls = 0
        self._compute_logits = compute_logits

    def __call__(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        logits = self._compute_logits(hidden)
        assert logits is not None
        return logits

    def follow(self, hidden: Tensor, calls: int = 0) -> None:
        """Takes part in the products that come after the first ``calls``, for the other ranks."""
        for start in range(calls * self.block_rows, hidden.shape[0], self.block_rows):
            self._compute_logits(hidden[start : start + self.block_rows])


@dataclass(frozen=True)
class PassSlice:
    """The tokens [start, start + count) of a request, which one pass of vLLM reads.

    Attributes:
        offset: of their hidden states among those of the pass.
        extra_args: of the request, with its ``RowPlan``.
    """

    request_id: str
    start: int
    count: int
    offset: int
    extra_args: Mapping[str, Any]


@dataclass
class Progress:
    """What a request has so far; seconds are its share of the passes by tokens."""

    packed: PackedRows
    computed_tokens: int = 0
    seconds: float = 0.0


class RowScorer:
    """Turns the hidden states of each step into the rows of finished requests.

    Args:
        leads: this rank computes the rows; the others only take part in the products,
            in the same order.
    """

    def __init__(self, projection: RunnerProjection, leads: bool) -> None:
        self._projection = projection
        self._head = LanguageModelHead(projection, LogitTreatment())
        self._leads = leads
        self._open: dict[str, Progress] = {}

    def step(
        self, hidden: Tensor, slices: Sequence[PassSlice], seconds: Callable[[], float]
    ) -> dict[str, Progress]:
        """Takes the slices of one step and returns the requests that it completes.

        Args:
            hidden: [tokens of the step, H].
            seconds: how long the step has taken when it is called.

        Raises:
            Exception: the device is lost, after which no later step can be trusted.
        """
        work: list[tuple[Progress, int, int]] = []
        places = []
        for part in slices:
            progress = self._progress(part)
            indices = progress.packed.plan.indices
            low, high = np.searchsorted(indices, (part.start, part.start + part.count))
            progress.computed_tokens += part.count
            if low < high and progress.packed.status is RowsStatus.FINITE:
                work.append((progress, int(low), int(high)))
                places.append(indices[low:high] - part.start + part.offset)
        if work:
            rows = torch.from_numpy(np.concatenate(places)).to(hidden.device)
            self._score(hidden[rows], work)
        taken = seconds()
        total = sum(part.count for part in slices)
        finished = {}
        for part in slices:
            progress = self._open[part.request_id]
            progress.seconds += taken * part.count / total
            if part.start + part.count >= progress.packed.plan.length:
                progress.packed.finish()
                finished[part.request_id] = self._open.pop(part.request_id)
        return finished

    def forget(self, alive: Collection[str]) -> None:
        """Drops the rows of requests that are not among ``alive`` any more."""
        for gone in [name for name in self._open if name not in alive]:
            del self._open[gone]

    def _progress(self, part: PassSlice) -> Progress:
        if part.request_id not in self._open:
            plan = RowPlan.from_extra_args(dict(part.extra_args))
            self._open[part.request_id] = Progress(PackedRows(plan))
        return self._open[part.request_id]

    def _score(self, hidden: Tensor, work: Sequence[tuple[Progress, int, int]]) -> None:
        if not self._leads:
            self._projection.follow(hidden)
            for progress, _, high in work:
                progress.packed.filled = high
            return
        requests = [progress.packed.plan.request(low, high) for progress, low, high in work]
        self._projection.calls = 0
        try:
            results = self._head.score(hidden, requests, _no_check)
        except BaseException as error:
            if is_ending(error) or is_fatal(error):
                raise
            logger.exception("%d rows could not be scored", hidden.shape[0])
            lost = RowsStatus.OUT_OF_MEMORY if is_out_of_memory(error) else RowsStatus.FAILED
        else:
            for (progress, low, high), rows in zip(work, results, strict=True):
                progress.packed.fill(low, high, rows)
            return
        for progress, _, _ in work:
            progress.packed.fail(lost)
        # The other ranks continue with their products and wait for this rank's.
        self._projection.follow(hidden, self._projection.calls)


def _no_check() -> None:
    return
