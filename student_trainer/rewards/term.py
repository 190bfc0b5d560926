"""The policy gradient of advantages, at the rows that are in the loss.

    g_t = -min(r A, clip(r, 1 - c, 1 + c) A),   r = π(y_t) / π_old(y_t)

and for A < 0 at most dual_clip |A|. The ratio is in the definition: rows of stale batches have no
importance weight besides, and a student that has just drawn its tokens has the gradient of
-A log π(y_t).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from student_trainer.losses.parts.base import Head, LossBatch, LossResult
from student_trainer.losses.parts.policy_gradient import clipped_policy_gradient


@dataclass(frozen=True)
class TermSettings:
    """Settings of the term.

    Attributes:
        temperature: at which the tokens were drawn.
        chunk_rows: rows of logits [rows, V] computed at a time.
        clip, dual_clip: as ``RewardSettings`` has them.
    """

    temperature: float
    chunk_rows: int
    clip: float
    dual_clip: float


def reward_term(
    batch: LossBatch, advantages: Tensor, head: Head, settings: TermSettings
) -> LossResult:
    """The term as a sum over rows, each with its weight.

    Args:
        batch: T rows of the student's responses, with ``old_log_probs`` and a weight above 0 where
            a row is in the loss. Rows of advantage 0 take no product with the head.
        advantages: float [T], of each row's response.

    Returns:
        ``used`` has the rows whose advantage is not 0; ``per_row`` is the term at the advantage,
        before the row's weight.
    """
    weights = batch.weights.where(advantages != 0, 0)
    there = weights > 0
    return clipped_policy_gradient(
        replace(batch, weights=weights), advantages, there, head, settings
    )
