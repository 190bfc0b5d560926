"""What rows are known by on their supports, float64 [R] for each. NaN where a row has no valid id.

Shapes: R rows, K size of the support, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.rows import required
from torch import Tensor

from student_trainer.losses.parts.base import Head, LossBatch
from student_trainer.losses.parts.normaliser import logits_blocks

Float64 = NDArray[np.float64]


def teacher_entropy(rows: LossBatch) -> Float64:
    """The teacher's entropy, renormalised on each row's support, nats."""
    log_q, valid = _teacher(rows)
    renormalised = _renormalised(log_q, valid)
    entropy = -(renormalised.exp() * renormalised.where(valid, 0)).sum(-1)
    return _known(entropy, valid)


def excess_surprise(rows: LossBatch) -> Float64:
    """The teacher's -log q at the sampled token less its entropy, over each row's support and the
    rest as one outcome, nats."""
    log_q, valid = _teacher(rows)
    mass = log_q.exp().where(valid, 0)
    rest = (1 - mass.sum(-1)).clamp_min(0)
    entropy = -(mass * log_q.where(valid, 0)).sum(-1) - torch.special.xlogy(rest, rest)
    sampled = required(rows.teacher_sampled, "teacher_sampled").double()
    return _known(-sampled - entropy, valid)


def of_both_sides(
    rows: LossBatch, head: Head, temperature: float, chunk_rows: int
) -> dict[str, Float64]:
    """``overlap``, ``shared_mass`` and ``disagreement`` (``weights.base.ResponseRows``)."""
    log_q, valid = _teacher(rows)
    ids = required(rows.support_ids, "support_ids").where(valid, 0)
    overlap, shared, disagreement = (torch.full_like(log_q[:, 0], torch.nan) for _ in range(3))
    for here, _, logits in logits_blocks(rows.hidden.detach(), head, chunk_rows):
        there = valid[here]
        own = logits.gather(1, ids[here])
        count = there.sum(-1, keepdim=True)
        best = logits.topk(there.shape[1], -1).values
        # In float32, as logits are: equal ones are equal on both sides.
        inside = (own >= best.gather(1, (count - 1).clamp_min(0))) & there
        overlap[here] = (inside.sum(-1) / count.squeeze(-1)).to(overlap.dtype)
        shared[here] = log_q[here].exp().where(inside, 0).sum(-1)
        p = _renormalised(own.double() / temperature, there)
        q = _renormalised(log_q[here], there)
        disagreement[here] = (q.exp() * (q - p).where(there, 0)).sum(-1)
    return {
        "overlap": _known(overlap, valid),
        "shared_mass": _known(shared, valid),
        "disagreement": _known(disagreement, valid),
    }


def _teacher(rows: LossBatch) -> tuple[Tensor, Tensor]:
    log_q = required(rows.support_log_probs, "support_log_probs").double()
    return log_q, required(rows.support_valid, "support_valid")


def _renormalised(log_weights: Tensor, valid: Tensor) -> Tensor:
    """log-probabilities of the valid slots, -inf elsewhere; NaN where a row has none."""
    return log_weights.masked_fill(~valid, -torch.inf).log_softmax(-1)


def _known(values: Tensor, valid: Tensor) -> Float64:
    found: Float64 = values.where(valid.any(-1), torch.nan).cpu().numpy()
    return found
