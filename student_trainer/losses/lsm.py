"""Local Support Matching: reverse KL on the support, the default (arXiv 2603.25562)."""

from __future__ import annotations

from typing import Literal

from student_trainer.losses.parts.base import Head, LossBatch, LossResult
from student_trainer.losses.parts.divergences import reverse_kl
from student_trainer.losses.parts.on_support import SupportLoss
from student_trainer.losses.parts.support_rows import SupportTerms, support_loss


def lsm(batch: LossBatch, head: Head, settings: SupportTerms) -> LossResult:
    """sum p (log p - log q) on the support, p and q renormalised there.

    Without a tail the gradient with respect to logit u of the support is
    p_u (log p_u - log q_u - l) / temperature, and exactly 0 outside.
    """
    return support_loss(batch, head, settings, reverse_kl)


class LsmLoss(SupportLoss):
    """Local Support Matching: reverse KL on the support."""

    kind: Literal["lsm"] = "lsm"

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        return lsm(batch, head, self)
