"""Rows from log-probabilities: the exact top K, sampled and explicit ids, and the tail.

Pure functions over ``log_probs`` float32 [R, V], the natural logarithm of the softmax over
the whole vocabulary. A row with a NaN anywhere counts as not finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.rows import LEAST_BELOW, LEAST_BELOW_OWN, Rows, Support, Values, WideRows
from torch import Tensor

from teacher_server.engines.base import Job, ScoredSpan

# Ids in a block of the first selection. 64 measured fastest at V=49,152 and K=64.
BLOCK = 64
_LOW_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class SupportSpec:
    """What is asked of a row; rows with equal specs are computed together.

    Attributes:
        explicit_slots: E, the explicit ids of each row.
        wide_ids: ``Job.wide_ids``, the bytes of int32 [W].
    """

    top_k: int
    temperature: float
    vocabulary_limit: int
    want_sampled: bool
    want_log_tail: bool
    explicit_slots: int
    wide_ids: bytes = b""

    @classmethod
    def of(cls, job: Job, span: ScoredSpan) -> SupportSpec:
        """What ``job`` asks of the rows of ``span``."""
        return cls(
            top_k=job.top_k,
            temperature=job.temperature,
            vocabulary_limit=job.vocabulary_limit,
            want_sampled=job.want_sampled,
            want_log_tail=job.want_log_tail,
            explicit_slots=0 if span.explicit_ids is None else span.explicit_ids.shape[1],
            wide_ids=b"" if job.wide_ids is None else job.wide_ids.astype(np.int32).tobytes(),
        )


@dataclass(frozen=True)
class WideIds:
    """The ids of wide rows where the log-probabilities are: ``ids`` int64 [W], and ``among``,
    bool [V], which these are."""

    ids: Tensor
    among: Tensor

    @classmethod
    def of(cls, spec: SupportSpec, vocabulary_size: int, device: torch.device) -> WideIds | None:
        """Those of ``spec``; None where there are none."""
        if not spec.wide_ids:
            return None
        found = np.frombuffer(spec.wide_ids, np.int32).astype(np.int64)
        ids = torch.from_numpy(found).to(device)
        among = torch.zeros(vocabulary_size, dtype=torch.bool, device=device)
        return cls(ids, among.index_fill_(0, ids, True))


@dataclass(frozen=True)
class Supports:
    """R rows as far as they were asked for; those that are not ``finite``, bool [R], hold
    nothing of meaning. ``rows`` are ``WideRows`` where ids of wide rows are given: all that qualify
    are wide."""

    finite: NDArray[np.bool_]
    rows: Rows


def top_k(log_probs: Tensor, k: int, limit: int) -> tuple[Tensor, Tensor]:
    """The k likeliest ids below ``limit``: (ids int64 [R, k], log-probabilities [R, k]).

    In descending order of log-probability, and of equal ones the lower id first. This
    holds exactly, also between the k-th id and the first one that is left out.
    0 <= k <= limit <= V.

    Only the k blocks with the highest maxima can hold an id of the top k, so that k * BLOCK
    ids are sorted and not V.
    """
    rows = log_probs.shape[0]
    if k == 0:
        return (
            torch.zeros((rows, 0), dtype=torch.int64, device=log_probs.device),
            log_probs.new_zeros((rows, 0)),
        )
    if 2 * k * BLOCK >= limit:
        ids = torch.arange(limit, device=log_probs.device)
        return _smallest(_keys(log_probs[:, :limit], ids), k)
    blocks = limit // BLOCK
    blocked = log_probs[:, : blocks * BLOCK].view(rows, blocks, BLOCK)
    order = _keys(blocked.amax(-1), torch.arange(blocks, device=log_probs.device))
    chosen = order.topk(k, largest=False, sorted=False).indices
    values = blocked.gather(1, chosen.unsqueeze(-1).expand(rows, k, BLOCK)).flatten(1)
    within = torch.arange(BLOCK, device=log_probs.device)
    keys = _keys(values, (chosen.unsqueeze(-1) * BLOCK + within).flatten(1))
    if blocks * BLOCK < limit:
        rest = torch.arange(blocks * BLOCK, limit, device=log_probs.device)
        keys = torch.cat([keys, _keys(log_probs[:, blocks * BLOCK : limit], rest)], dim=-1)
    return _smallest(keys, k)


def _keys(log_probs: Tensor, ids: Tensor) -> Tensor:
    """int64 keys: their ascending order is log-probability descending, then id ascending.

    Non-negative float32 have the same order as the integers of their bits.
    """
    return ((-log_probs).view(torch.int32).to(torch.int64) << 32) | ids


def _smallest(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = keys.topk(k, dim=-1, largest=False, sorted=True).values
    return best & _LOW_WORD, -((best >> 32).to(torch.int32).view(torch.float32))


def compute_supports(
    log_probs: Tensor,
    spec: SupportSpec,
    sampled: Tensor,
    explicit: Tensor | None,
    wide: WideIds | None = None,
) -> Supports:
    """Everything ``spec`` asks of R rows; overwrites ``log_probs``.

    Args:
        log_probs: float32 [R, V].
        sampled: int64 [R], the span's own token of each row.
        explicit: int64 [R, E] with -1 in empty slots, or None.
        wide: those of ``spec``.
    """
    minus_infinity = float("-inf")
    finite = ~torch.isnan(log_probs[:, 0])
    ids, values = top_k(log_probs, spec.top_k, spec.vocabulary_limit)
    possible = values > minus_infinity
    # Everything is computed before the first array waits for the device.
    own = outside = at_explicit = at_wide = below = None
    if spec.want_sampled:
        own = log_probs.gather(1, sampled.unsqueeze(-1)).squeeze(-1)
    if explicit is not None:
        gathered = log_probs.gather(1, explicit.clamp(min=0))
        at_explicit = gathered.masked_fill(explicit < 0, minus_infinity)
    if wide is not None:
        at_wide = log_probs.index_select(1, wide.ids)
        listed = values.exp().masked_fill_(~wide.among[ids], 0.0).sum(-1)
        least = torch.where(wide.among[sampled], LEAST_BELOW_OWN, LEAST_BELOW)
        below = at_wide.exp().sum(-1) - listed >= least
    if spec.want_log_tail:
        outside = _log_tail(log_probs, ids)
    rows = Rows(
        support=Support(
            ids=_array(ids.where(possible, -1).to(torch.int32)),
            log_probs=_array(values.where(possible, 0.0)),
            counts=_array(possible.sum(-1, dtype=torch.int32)),
        ),
        sampled=None if own is None else _values(own),
        log_tail=None if outside is None else _values(outside),
        explicit=None if at_explicit is None else _values(at_explicit),
    )
    if at_wide is not None and below is not None:
        which = torch.nonzero(below).squeeze(-1)
        rows = WideRows(
            rows.support,
            rows.sampled,
            rows.log_tail,
            rows.explicit,
            wide=_array(which),
            wide_log_probs=_array(at_wide[which]),
        )
    return Supports(_array(finite), rows)


def _values(log_probs: Tensor) -> Values:
    """Of log-probabilities that are -inf where they are not valid."""
    valid = log_probs > float("-inf")
    return Values(_array(log_probs.where(valid, 0.0)), _array(valid))


def _array(values: Tensor) -> NDArray[Any]:
    return values.cpu().numpy()


def _log_tail(log_probs: Tensor, returned: Tensor) -> Tensor:
    """Logarithm of the probability of all ids that are not ``returned``; -inf for none.

    It is summed over those ids and not subtracted from 1, so that nothing cancels. The
    clamp removes what rounding adds to a sum that is at most 1. Overwrites ``log_probs``.
    """
    if returned.shape[1] == 0:
        return log_probs.new_zeros(log_probs.shape[0])
    log_probs.scatter_(1, returned, float("-inf"))
    return torch.logsumexp(log_probs, dim=-1).clamp_(max=0.0)
