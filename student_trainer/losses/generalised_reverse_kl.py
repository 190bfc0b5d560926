"""Generalised reverse KL on the support, which is not renormalised (arXiv 2606.30406).

    l = sum over the support of p (log p - log q) - p + q

with p and q as probabilities of the whole vocabulary. Each term is at least 0, and 0 at p = q
alone. So is the gradient log p - log q with respect to p; what is outside the support has no term,
but the student's normaliser joins it to the rest: where the student has more outside than the
teacher has, it has too little inside, and its mass is drawn back. The normaliser is computed in
blocks of rows, forward and backward.
"""

from __future__ import annotations

from typing import Literal

from teacher_proto.errors import ConfigurationError

from student_trainer.losses.parts.base import Head, LossBatch, LossResult
from student_trainer.losses.parts.divergences import generalised_kl
from student_trainer.losses.parts.on_support import OnSupport
from student_trainer.losses.parts.support_rows import RowTerms, unnormalised_loss


def generalised_reverse_kl(batch: LossBatch, head: Head, settings: RowTerms) -> LossResult:
    """sum p (log p - log q) - p + q over the support, p and q not renormalised.

    The gradient with respect to logit u is p_u (s_u - sum over the support of p s) / temperature
    with s = log p - log q on the support, and s = 0 outside.

    One valid id is enough. A coarse row needs no rest: it is computed on its ids as the others
    are, and its metrics are kept apart.

    Raises:
        ValueError: the batch has no support.
    """
    return unnormalised_loss(batch, head, settings, generalised_kl, least_ids=1)


class GeneralisedReverseKlLoss(OnSupport):
    """Generalised reverse KL on the support, not renormalised: the student's mass outside
    is drawn to the teacher's."""

    kind: Literal["generalised_reverse_kl"] = "generalised_reverse_kl"

    def check_realigned(self) -> None:
        raise ConfigurationError(
            "generalised_reverse_kl compares the probabilities themselves, and across tokenizers "
            "those of the teacher's ids may all be too small by one factor: the student would "
            "learn to have too much outside of them",
            where="loss.kind",
            fix="use lsm, which compares their ratios, or a teacher with the student's tokenizer",
        )

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        return generalised_reverse_kl(batch, head, self)
