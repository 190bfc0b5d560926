"""Rows from a model runner's hidden states, step by step, inside vLLM's worker.

A request is read in one pass or several, next to slices of others. Of every
slice only the hidden states of planned rows reach the LM head, and of their
logits only packed rows are kept. Nothing here imports vLLM.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from teacher_server.engines.torch.engine_thread import is_fatal, is_out_of_memory
from teacher_server.engines.torch.head import LanguageModelHead, LogitTreatment
from teacher_server.engines.vllm.wire import PackedRows, RowPlan, RowsStatus
from teacher_server.failures import is_ending

logger = logging.getLogger(__name__)

# Bytes of one block of logits as float32, on a CPU and elsewhere.
CPU_BLOCK_BYTES = 48 * 2**20
DEVICE_BLOCK_BYTES = 256 * 2**20


class RunnerHead(LanguageModelHead):
    """The head of a model that vLLM runs: its own logits, treatment included.

    Args:
        compute_logits: hidden [n, H] -> logits [n, V]; None on a tensor-parallel
            rank that does not get them.
        device: where hidden states live.
    """

    def __init__(
        self,
        compute_logits: Callable[[Tensor], Tensor | None],
        vocabulary_size: int,
        device: torch.device,
    ) -> None:
        block_bytes = CPU_BLOCK_BYTES if device.type == "cpu" else DEVICE_BLOCK_BYTES
        # A projection of nothing: it tells V and the device, the model multiplies.
        stand_in = nn.Linear(1, 1, bias=False)
        nothing = torch.empty((vocabulary_size, 0), device=device)
        stand_in.weight = nn.Parameter(nothing, requires_grad=False)
        super().__init__(stand_in, LogitTreatment(), max(1, block_bytes // (4 * vocabulary_size)))
        self._compute_logits = compute_logits
        self.calls = 0

    def logits(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        logits = self._compute_logits(hidden)
        assert logits is not None
        return logits

    def follow(self, hidden: Tensor, calls: int = 0) -> None:
        """Takes part in the products after the first ``calls`` without using them."""
        for start in range(calls * self.block_rows, hidden.shape[0], self.block_rows):
            self._compute_logits(hidden[start : start + self.block_rows])


@dataclass(frozen=True)
class PassSlice:
    """Tokens [start, start + count) of a request, at ``offset`` of the step's hidden states."""

    request_id: str
    start: int
    count: int
    offset: int
    extra_args: Mapping[str, Any]


@dataclass
class Progress:
    packed: PackedRows
    computed_tokens: int = 0
    seconds: float = 0.0


class RowScorer:
    """Turns steps into finished requests.

    Args:
        leads: this rank computes the supports; others only take part in the
            products, in the same order.
    """

    def __init__(self, head: RunnerHead, leads: bool) -> None:
        self._head = head
        self._leads = leads
        self._open: dict[str, Progress] = {}

    def step(
        self, hidden: Tensor, slices: Sequence[PassSlice], seconds: Callable[[], float]
    ) -> dict[str, Progress]:
        """Takes one step's slices; gives the requests that it completes.

        Args:
            hidden: [tokens of the step, H].
            seconds: what the step has taken until it is called.

        Raises:
            Exception: the device is lost, or another rank may be.
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
        """Drops what was gathered for requests that are gone."""
        for gone in [name for name in self._open if name not in alive]:
            del self._open[gone]

    def _progress(self, part: PassSlice) -> Progress:
        if part.request_id not in self._open:
            plan = RowPlan.from_extra_args(dict(part.extra_args))
            self._open[part.request_id] = Progress(PackedRows(plan))
        return self._open[part.request_id]

    def _score(self, hidden: Tensor, work: Sequence[tuple[Progress, int, int]]) -> None:
        if not self._leads:
            self._head.follow(hidden)
            for progress, _, high in work:
                progress.packed.filled = high
            return
        requests = [progress.packed.plan.request(low, high) for progress, low, high in work]
        self._head.calls = 0
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
        # Other ranks go on with their products and wait for this one's.
        self._head.follow(hidden, self._head.calls)


def _no_check() -> None:
    return
