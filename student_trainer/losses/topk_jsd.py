"""Generalised Jensen-Shannon divergence on the support."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field

from student_trainer.losses.parts.base import Head, LossBatch, LossResult
from student_trainer.losses.parts.divergences import jsd
from student_trainer.losses.parts.on_support import SupportLoss
from student_trainer.losses.parts.support_rows import SupportTerms, support_loss


class JsdTerms(SupportTerms, Protocol):
    """What the loss reads of its settings."""

    @property
    def beta(self) -> float: ...


def topk_jsd(batch: LossBatch, head: Head, settings: JsdTerms) -> LossResult:
    """beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p, on the support."""
    return support_loss(batch, head, settings, jsd(settings.beta))


class TopkJsdLoss(SupportLoss):
    """Generalised Jensen-Shannon divergence on the support."""

    kind: Literal["topk_jsd"] = "topk_jsd"
    beta: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="The teacher's weight in the mixture."
    )

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        return topk_jsd(batch, head, self)
