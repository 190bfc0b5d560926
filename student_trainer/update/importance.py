"""Truncated importance weights of tokens that an older student drew."""

from __future__ import annotations

import torch
from teacher_proto.rows import required
from torch import Tensor

from student_trainer.losses.base import Head, LossBatch
from student_trainer.losses.normaliser import token_log_probs

# The smallest weight: a row of weight 0 would not count in the mean's denominator.
LEAST = 1e-30


@torch.no_grad()
def log_ratios(batch: LossBatch, head: Head, temperature: float, chunk_rows: int) -> Tensor:
    """float32 [T]: log pi(y_t) - log pi_old(y_t) of the sampled tokens.

    A row that is not finite gives 0; the loss drops and counts it.

    Args:
        temperature: of the rollout.
        chunk_rows: rows of logits [rows, V] computed at a time.
    """
    now = token_log_probs(batch.hidden.detach(), head, batch.sampled_ids, temperature, chunk_rows)
    moved = (now - required(batch.old_log_probs, "old_log_probs")).float()
    return torch.where(moved.isfinite(), moved, 0.0)


def truncated_weights(log_ratio: Tensor, cap: float) -> Tensor:
    """float32 [T]: pi / pi_old, bounded by ``cap``."""
    return log_ratio.exp().clamp(LEAST, cap)
