"""A loss of your own: reverse KL to a mixture of teacher and student, which no token can make
infinite.

    sum p (log p - log m),   m = (1 - skew) q + skew p

p and q are the student and the teacher, renormalised on the support. A row's loss is at most
-log(skew), whatever the teacher thinks of a token. ``run.toml`` beside this file uses it.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from student_trainer.losses import Head, LossBatch, LossResult, SupportLoss, support_loss


class SkewedReverseKl(SupportLoss):
    """Reverse KL to a mixture of teacher and student."""

    skew: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="The student's weight in the mixture."
    )

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        def divergence(log_p: Tensor, log_q: Tensor, valid: Tensor) -> Tensor:
            """[T] of float [T, K]; slots that are not valid count for nothing."""
            log_p, log_q = log_p.where(valid, 0), log_q.where(valid, 0)
            log_m = torch.logaddexp(log_q + math.log1p(-self.skew), log_p + math.log(self.skew))
            return (log_p.exp() * (log_p - log_m)).where(valid, 0).sum(-1)

        return support_loss(batch, head, self, divergence)
