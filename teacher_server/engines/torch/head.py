"""From hidden states to rows: the LM head over scored rows only, block by block.

Shapes: N rows, H hidden size, V vocabulary. At any time at most one block of logits
exists, [block_rows, V] in the model's dtype, and a part of it as float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.program.logit_treatment import LogitTreatment
from teacher_proto.rows import Rows, Values, WideRows, required
from teacher_proto.types import Float32, Int32
from torch import Tensor

from teacher_server.engines.torch.projection import Projection
from teacher_server.engines.torch.supports import SupportSpec, WideIds, compute_supports

# On a CPU, bytes of float32 log-probabilities that are handled at once, so that they stay in
# its cache.
CPU_LOG_PROB_BYTES = 2 * 2**20


@dataclass(frozen=True)
class RowRequest:
    """The rows that are wanted of one span.

    Attributes:
        sampled_ids: int32 [R], the span's own token of each row.
        explicit_ids: int32 [R, E] or None; -1 marks an empty slot.
    """

    spec: SupportSpec
    sampled_ids: Int32
    explicit_ids: Int32 | None

    @property
    def count(self) -> int:
        return len(self.sampled_ids)


def apply_treatment_(treatment: LogitTreatment, logits: Tensor) -> Tensor:
    """Applies the treatment to float32 ``logits`` in place, and returns them."""
    if treatment.scale != 1.0:
        logits.mul_(treatment.scale)
    if treatment.softcap is not None:
        logits.div_(treatment.softcap).tanh_().mul_(treatment.softcap)
    return logits


class LanguageModelHead:
    """Computes rows from hidden states, whatever computes the logits.

    Args:
        projection: from hidden states to the output of the model's head.
        treatment: what the model does to that output.
    """

    def __init__(self, projection: Projection, treatment: LogitTreatment) -> None:
        self._projection = projection
        self._treatment = treatment
        # Kept between calls: fresh pages for every block cost more than its arithmetic.
        self._log_probs: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own logits, float32 [N, V] of hidden states [N, H], for any N."""
        rows = self._projection.block_rows
        blocks = [hidden[start : start + rows] for start in range(0, hidden.shape[0], rows)]
        return torch.cat(
            [
                apply_treatment_(
                    self._treatment, self._projection(block).to(torch.float32, copy=True)
                )
                for block in blocks
            ]
        )

    def log_probs(self, projected: Tensor, temperature: float) -> Tensor:
        """float32 [n, V]: treatment, division by the temperature, log-softmax.

        n is at most ``log_prob_rows``. Overwrites ``projected``, the output of the
        projection, where that is float32; the result lives until the next call.
        """
        if self._log_probs is None:
            shape = (self.log_prob_rows, self._projection.vocabulary_size)
            self._log_probs = torch.empty(
                shape, dtype=torch.float32, device=self._projection.device
            )
        out = self._log_probs[: projected.shape[0]]
        values = apply_treatment_(self._treatment, projected.to(torch.float32))
        if temperature != 1.0:
            values.div_(temperature)
        return torch.log_softmax(values, dim=-1, out=out)

    @property
    def log_prob_rows(self) -> int:
        """Rows whose log-probabilities exist at a time."""
        rows = self._projection.block_rows
        if self._projection.device.type != "cpu":
            return rows
        return max(1, min(rows, CPU_LOG_PROB_BYTES // (4 * self._projection.vocabulary_size)))

    def score(
        self, hidden: Tensor, requests: Sequence[RowRequest], check: Callable[[], None]
    ) -> list[Rows | None]:
        """Rows of every request, in order, of which all that qualify are wide; None for one with a
        row that is not finite.

        Args:
            hidden: [N, H], the rows of all requests one after the other.
            requests: their counts add up to N.
            check: called before every block; what it raises ends the work.
        """
        starts = np.cumsum([0, *(request.count for request in requests)])
        assert hidden.shape[0] == starts[-1]
        groups = _groups_of_equal_spec(requests, starts, hidden.device)
        if len(groups) > 1:
            hidden = hidden[torch.cat([group.rows for group in groups])]
        block_rows, step = self._projection.block_rows, self.log_prob_rows
        for start in range(0, hidden.shape[0], block_rows):
            check()
            logits = self._projection(hidden[start : start + block_rows])
            for group in groups:
                first = max(start, group.offset)
                last = min(start + logits.shape[0], group.offset + group.count)
                for low in range(first, last, step):
                    high = min(low + step, last)
                    values = self.log_probs(
                        logits[low - start : high - start], group.spec.temperature
                    )
                    group.fill(low - group.offset, values)
        results: list[Rows | None] = [None] * len(requests)
        for group in groups:
            for index, rows in group.split():
                results[index] = rows
        return results


class _SpecGroup:
    """The rows of all requests with one spec, and what is computed of them.

    Args:
        members: (index, request) of each.
        rows: int64 [count], the places of their rows in the hidden states.
        offset: of the first row once the groups stand one after the other.
    """

    def __init__(
        self,
        spec: SupportSpec,
        members: Sequence[tuple[int, RowRequest]],
        rows: Tensor,
        offset: int,
    ) -> None:
        self.spec = spec
        self.rows = rows
        self.offset = offset
        self.count = len(rows)
        self._members = members
        requests = [request for _, request in members]
        self._sampled = _to_device([r.sampled_ids for r in requests], rows.device)
        self._explicit = None
        if spec.explicit_slots:
            explicit = [r.explicit_ids for r in requests if r.explicit_ids is not None]
            self._explicit = _to_device(explicit, rows.device)
        self._wide_ids: WideIds | None = None
        # Of blocks: places of rows that qualify as wide, and their values.
        self._wide: list[tuple[NDArray[np.int64], Float32]] = []
        self._finite = np.empty(self.count, np.bool_)
        self._found: Rows | None = None

    def fill(self, start: int, log_probs: Tensor) -> None:
        """Computes rows from ``start`` on; overwrites ``log_probs``."""
        stop = start + log_probs.shape[0]
        explicit = None if self._explicit is None else self._explicit[start:stop]
        if self.spec.wide_ids and self._wide_ids is None:
            self._wide_ids = WideIds.of(self.spec, log_probs.shape[1], log_probs.device)
        sampled = self._sampled[start:stop]
        supports = compute_supports(log_probs, self.spec, sampled, explicit, self._wide_ids)
        if isinstance(supports.rows, WideRows):
            self._wide.append((supports.rows.wide + start, supports.rows.wide_log_probs))
        self._finite[start:stop] = supports.finite
        found = supports.rows.arrays()
        if self._found is None:
            empty = {n: np.empty((self.count, *a.shape[1:]), a.dtype) for n, a in found.items()}
            self._found = Rows.of(empty)
        for name, array in self._found.arrays().items():
            array[start:stop] = found[name]

    def split(self) -> list[tuple[int, Rows | None]]:
        """The index and the rows of each request; None where they are not finite."""
        results: list[tuple[int, Rows | None]] = []
        start, wide = 0, _joined(self._wide)
        for index, request in self._members:
            stop = start + request.count
            rows = None
            if self._finite[start:stop].all():
                rows = required(self._found, "rows").at(slice(start, stop))
                if request.explicit_ids is not None and not self.spec.explicit_slots:
                    shape = (request.count, 0)
                    nothing = Values(np.zeros(shape, np.float32), np.zeros(shape, np.bool_))
                    rows = replace(rows, explicit=nothing)
                if wide is not None:
                    rows = _with_wide(rows, start, stop, *wide)
            results.append((index, rows))
            start = stop
        return results


def _joined(
    parts: Sequence[tuple[NDArray[np.int64], Float32]],
) -> tuple[NDArray[np.int64], Float32] | None:
    if not parts:
        return None
    places, values = zip(*parts, strict=True)
    return np.concatenate(places), np.concatenate(values)


def _with_wide(
    rows: Rows, start: int, stop: int, places: NDArray[np.int64], values: Float32
) -> Rows:
    """The rows [start, stop) of a group with those of them that are wide, whose values are not
    copied.

    Args:
        places: int64 [n], ascending, of the group's.
        values: float32 [n, W].
    """
    low, high = np.searchsorted(places, [start, stop])
    return WideRows(
        rows.support,
        rows.sampled,
        rows.log_tail,
        rows.explicit,
        wide=places[low:high] - start,
        wide_log_probs=values[low:high],
    )


def _groups_of_equal_spec(
    requests: Sequence[RowRequest], starts: Any, device: torch.device
) -> list[_SpecGroup]:
    by_spec: dict[SupportSpec, list[tuple[int, RowRequest]]] = {}
    for index, request in enumerate(requests):
        by_spec.setdefault(request.spec, []).append((index, request))
    groups = []
    offset = 0
    for spec, members in by_spec.items():
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i, _ in members])
        groups.append(_SpecGroup(spec, members, torch.from_numpy(rows).to(device), offset))
        offset += len(rows)
    return groups


def _to_device(arrays: Sequence[Int32], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64)).to(device)
