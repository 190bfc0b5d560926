"""Forward KL on the support."""

from __future__ import annotations

from typing import Literal

from student_trainer.losses.parts.base import Head, LossBatch, LossResult
from student_trainer.losses.parts.divergences import forward_kl
from student_trainer.losses.parts.on_support import SupportLoss
from student_trainer.losses.parts.support_rows import SupportTerms, support_loss


def topk_forward_kl(batch: LossBatch, head: Head, settings: SupportTerms) -> LossResult:
    """sum q (log q - log p) on the support, p and q renormalised there."""
    return support_loss(batch, head, settings, forward_kl)


class TopkForwardKlLoss(SupportLoss):
    """Forward KL on the support."""

    kind: Literal["topk_forward_kl"] = "topk_forward_kl"

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        return topk_forward_kl(batch, head, self)
