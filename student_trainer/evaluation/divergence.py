"""Divergences of full distributions. Pure functions; R rows, V ids, nats."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowDivergence:
    """Divergences of R rows: float64 [R] in nats, and bool [R]."""

    reverse_kl: Tensor
    forward_kl: Tensor
    agrees: Tensor


def row_divergence(student_logits: Tensor, teacher_log_probs: Tensor) -> RowDivergence:
    """KL(pi || q), KL(q || pi) and arg-max agreement of each row, in float64.

    Both sides are normalised over the V ids that are given, so constants added to a row do
    not matter. Every entry must be finite.

    Args:
        student_logits: [R, V].
        teacher_log_probs: [R, V].
    """
    log_pi = torch.log_softmax(student_logits.double(), -1)
    log_q = torch.log_softmax(teacher_log_probs.double(), -1)
    log_ratio = log_pi - log_q
    return RowDivergence(
        reverse_kl=(log_pi.exp() * log_ratio).sum(-1),
        forward_kl=-(log_q.exp() * log_ratio).sum(-1),
        agrees=log_pi.argmax(-1) == log_q.argmax(-1),
    )
