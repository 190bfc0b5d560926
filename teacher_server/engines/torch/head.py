"""From hidden states to rows: the LM head over scored rows only, chunk by chunk.

Shapes: N rows, H hidden size, V vocabulary. No more than one chunk of logits,
[block_rows, V] in the model's dtype, and one slice of it in float32 exist at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.rows import Rows, Values, required
from teacher_proto.types import Int32
from torch import Tensor, nn

from teacher_server.engines.torch.supports import SupportSpec, compute_supports

# Bytes of float32 log-probabilities handled at once on a CPU: they stay in its cache.
CPU_LOG_PROB_BYTES = 2 * 2**20


@dataclass(frozen=True)
class RowRequest:
    """The rows of one sequence.

    Attributes:
        sampled_ids: int32 [R], the token each row judges.
        explicit_ids: int32 [R, E] or None; -1 marks an empty slot.
    """

    spec: SupportSpec
    sampled_ids: Int32
    explicit_ids: Int32 | None

    @property
    def count(self) -> int:
        return len(self.sampled_ids)


@dataclass(frozen=True)
class LogitTreatment:
    """What a model does to its head's output x: softcap * tanh(scale * x / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitTreatment:
        """Reads the treatment from a model's configuration."""
        scale = 1.0
        for name in ("logit_scale", "lm_head_multiplier"):
            scale *= float(getattr(config, name, None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(scale, float(softcap) if softcap else None)

    def apply_(self, logits: Tensor) -> Tensor:
        """In place, float32."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits


class LanguageModelHead:
    """The output projection of a loaded model.

    Args:
        module: the model's output embedding.
        treatment: applied to its output.
        block_rows: rows of one matrix product.

    Raises:
        ConfigurationError: ``module`` is not a plain linear layer.
    """

    def __init__(self, module: nn.Module | None, treatment: LogitTreatment, block_rows: int):
        if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
            raise ConfigurationError(
                f"the output head is a {type(module).__name__}, not a plain linear layer",
                where="model",
                fix="serve a checkpoint whose output head is not quantised or replaced",
            )
        self.weight = module.weight
        self.bias: Tensor | None = module.bias
        self.treatment = treatment
        self.block_rows = block_rows
        # Kept between calls: fresh pages for every chunk cost more than its arithmetic.
        self._logits: Tensor | None = None
        self._log_probs: Tensor | None = None

    @property
    def vocabulary_size(self) -> int:
        return int(self.weight.shape[0])

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, V] in the model's dtype, before the treatment; n <= block_rows.

        One buffer serves all chunks: the result lives until the next call.
        """
        if self._logits is None:
            self._logits = self._new_buffer(self.block_rows, self.weight.dtype)
        out = self._logits[: hidden.shape[0]]
        if self.bias is None:
            return torch.mm(hidden, self.weight.t(), out=out)
        return torch.addmm(self.bias, hidden, self.weight.t(), out=out)

    def log_probs(self, logits: Tensor, temperature: float) -> Tensor:
        """float32 [n, V]: treatment, division by the temperature, log-softmax.

        n is at most ``log_prob_rows``. Overwrites float32 ``logits``; the result
        lives until the next call.
        """
        if self._log_probs is None:
            self._log_probs = self._new_buffer(self.log_prob_rows, torch.float32)
        out = self._log_probs[: logits.shape[0]]
        values = logits.to(torch.float32)
        self.treatment.apply_(values)
        if temperature != 1.0:
            values.div_(temperature)
        return torch.log_softmax(values, dim=-1, out=out)

    @property
    def log_prob_rows(self) -> int:
        """Rows whose log-probabilities exist at a time."""
        if self.weight.device.type != "cpu":
            return self.block_rows
        return max(1, min(self.block_rows, CPU_LOG_PROB_BYTES // (4 * self.vocabulary_size)))

    def _new_buffer(self, rows: int, dtype: torch.dtype) -> Tensor:
        shape = (rows, self.vocabulary_size)
        return torch.empty(shape, dtype=dtype, device=self.weight.device)

    def score(
        self, hidden: Tensor, requests: Sequence[RowRequest], check: Callable[[], None]
    ) -> list[Rows | None]:
        """Rows of every request, in order; None for one with a row that is not finite.

        Args:
            hidden: [N, H], the rows of all requests one after the other.
            requests: their counts add up to N.
            check: called before every chunk; what it raises ends the work.
        """
        starts = np.cumsum([0, *(request.count for request in requests)])
        assert hidden.shape[0] == starts[-1]
        groups = _groups_of_equal_spec(requests, starts, hidden.device)
        if len(groups) > 1:
            hidden = hidden[torch.cat([group.rows for group in groups])]
        for start in range(0, hidden.shape[0], self.block_rows):
            check()
            logits = self.logits(hidden[start : start + self.block_rows])
            for group in groups:
                first = max(start, group.offset)
                last = min(start + logits.shape[0], group.offset + group.count)
                for low in range(first, last, self.log_prob_rows):
                    high = min(low + self.log_prob_rows, last)
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
    """Rows of equal spec and the arrays they fill."""

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
        self._finite = np.empty(self.count, np.bool_)
        self._found: Rows | None = None

    def fill(self, start: int, log_probs: Tensor) -> None:
        """Computes rows from ``start`` on; overwrites ``log_probs``."""
        stop = start + log_probs.shape[0]
        explicit = None if self._explicit is None else self._explicit[start:stop]
        supports = compute_supports(log_probs, self.spec, self._sampled[start:stop], explicit)
        self._finite[start:stop] = supports.finite
        found = supports.rows.arrays()
        if self._found is None:
            empty = {n: np.empty((self.count, *a.shape[1:]), a.dtype) for n, a in found.items()}
            self._found = Rows.of(empty)
        for name, array in self._found.arrays().items():
            array[start:stop] = found[name]

    def split(self) -> list[tuple[int, Rows | None]]:
        """Each member's index and rows; None where they are not finite."""
        results: list[tuple[int, Rows | None]] = []
        start = 0
        for index, request in self._members:
            stop = start + request.count
            rows = None
            if self._finite[start:stop].all():
                rows = required(self._found, "row").at(slice(start, stop))
                if request.explicit_ids is not None and not self.spec.explicit_slots:
                    shape = (request.count, 0)
                    nothing = Values(np.zeros(shape, np.float32), np.zeros(shape, np.bool_))
                    rows = replace(rows, explicit=nothing)
            results.append((index, rows))
            start = stop
        return results


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
