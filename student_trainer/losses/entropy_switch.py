"""Reverse KL, with forward KL added where the teacher is unsure (arXiv 2603.07079).

    l = KL(p || q) + [H(q) > entropy_threshold] forward_weight KL(q || p)

p and q are renormalised on the support (``tail="bucket"``, and coarse rows: with the rest of each
side as one more outcome, as in the other losses on a support). H(q) is the entropy of the
teacher's distribution renormalised on its valid ids, in nats, without the rest; it is at most
log K. Where the teacher is sure, reverse KL alone says which token to take; where it is not,
forward KL keeps the student from giving up all choices but one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Protocol

from pydantic import Field
from teacher_proto.program.settings_types import NonNegative, Positive
from torch import Tensor

from student_trainer.losses.parts.base import Head, LossBatch, LossResult
from student_trainer.losses.parts.divergences import forward_kl, renormalise, reverse_kl
from student_trainer.losses.parts.on_support import SupportLoss
from student_trainer.losses.parts.support_rows import (
    SupportTerms,
    support_loss,
    support_of,
)


class EntropySwitchTerms(SupportTerms, Protocol):
    """What the loss reads of its settings."""

    @property
    def entropy_threshold(self) -> float: ...
    @property
    def forward_weight(self) -> float: ...


def entropy_switch(batch: LossBatch, head: Head, settings: EntropySwitchTerms) -> LossResult:
    """Reverse KL on the support, and forward KL where the teacher's entropy there is above the
    threshold. ``metrics`` count the used rows, coarse ones aside, that have both
    (``entropy_switched``).

    Raises:
        ValueError: as ``support_loss``.
    """
    ids, log_q, valid = support_of(batch)
    width = ids.shape[1]
    threshold, weight = settings.entropy_threshold, settings.forward_weight

    def divergence(log_p: Tensor, of_teacher: Tensor, there: Tensor) -> Tensor:
        # A rest is the outcome after the support's slots.
        unsure = _entropy(of_teacher[:, :width], there[:, :width]) > threshold
        added = forward_kl(log_p, of_teacher, there).where(unsure, 0)
        return reverse_kl(log_p, of_teacher, there) + weight * added

    result = support_loss(batch, head, settings, divergence)
    rows = result.used & ~batch.coarse_rows
    unsure = _entropy(log_q[rows], valid[rows]) > threshold
    return replace(result, metrics={**result.metrics, "entropy_switched": float(unsure.sum())})


def _entropy(log_q: Tensor, valid: Tensor) -> Tensor:
    """Of each row's weights, renormalised on its valid slots, [T]."""
    normalised = renormalise(log_q, valid)
    return -(normalised.exp() * normalised.where(valid, 0)).sum(-1)


class EntropySwitchLoss(SupportLoss):
    """Reverse KL on the support, with forward KL added where the teacher's entropy there is
    high."""

    kind: Literal["entropy_switch"] = "entropy_switch"
    entropy_threshold: NonNegative = Field(
        default=0.8,
        description="Forward KL is added where the entropy of the teacher's distribution, "
        "renormalised on the support, is above this, in nats.",
    )
    forward_weight: Positive = Field(
        default=1.0, description="Factor on the forward KL that is added."
    )

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        return entropy_switch(batch, head, self)
