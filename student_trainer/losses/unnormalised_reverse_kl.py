"""Reverse KL on the support without a normaliser or a tail: only for studies of its collapse."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field, model_validator

from student_trainer.losses.parts.base import Head, LossBatch, LossResult
from student_trainer.losses.parts.divergences import reverse_kl
from student_trainer.losses.parts.on_support import WithTail
from student_trainer.losses.parts.support_rows import RowTerms, refuse_coarse, unnormalised_loss

UNNORMALISED = (
    "reverse KL on a support that is neither renormalised nor given a tail is least at "
    "p = q / e: it collapses the student's mass on the support. Use kind = 'lsm', "
    "'generalised_reverse_kl', or tail = 'bucket'; a study of the collapse itself sets study = true"
)


class StudyTerms(RowTerms, Protocol):
    """What the loss reads of its settings."""

    @property
    def study(self) -> bool: ...


def unnormalised_reverse_kl(batch: LossBatch, head: Head, settings: StudyTerms) -> LossResult:
    """sum over the support of p (log p - log q), neither renormalised nor with a tail. It is
    least at p = q / e on the support, so it drives the student's mass there down. Only for
    studies of that collapse.

    Raises:
        ValueError: ``settings.study`` is not set, or a row is coarse.
    """
    if not settings.study:
        raise ValueError(
            "unnormalised_reverse_kl collapses the student's mass on the support: it is for "
            "studies of that alone, with LossSettings.study = true"
        )
    refuse_coarse(batch, "unnormalised_reverse_kl")
    return unnormalised_loss(batch, head, settings, reverse_kl, least_ids=2)


class UnnormalisedReverseKlLoss(WithTail):
    """Reverse KL on the support, neither renormalised nor with a tail."""

    kind: Literal["unnormalised_reverse_kl"] = "unnormalised_reverse_kl"
    study: bool = Field(
        default=False,
        description="Confirms that the collapse which this loss causes is what is to be studied.",
    )

    @model_validator(mode="after")
    def _for_a_study(self) -> UnnormalisedReverseKlLoss:
        if not self.study:
            raise ValueError(UNNORMALISED)
        return self

    @property
    def renormalised(self) -> bool:
        return False

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        return unnormalised_reverse_kl(batch, head, self)
