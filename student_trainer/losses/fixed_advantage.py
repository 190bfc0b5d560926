"""A control without a teacher: the policy gradient of ``sampled_token`` with one fixed negative
advantage in place of the teacher's log-ratio (arXiv 2608.31046, which found it as good).

    A_t = advantage where log pi_old(y_t) <= max_log_prob, and 0 elsewhere
    l_t = -max(min(r A_t, clip(r, 1 - c, 1 + c) A_t), dual_clip A_t),   r = pi(y_t) / pi_old(y_t)

Rows, weights and clipping are those of ``sampled_token``, so that a study compares the advantage
alone. Without ``max_log_prob``, on tokens that the student has just drawn at top-p 1, the mean
gradient is 0: -A E[grad log pi(y)] = 0. It then learns from what the clip, the steps since the
draw and a nucleus leave. With it, tokens that the student itself thinks improbable are suppressed.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field, model_validator

from student_trainer.losses.parts.base import Head, LossBatch, LossResult
from student_trainer.losses.parts.policy_gradient import (
    ClipTerms,
    PolicyGradientLoss,
    clipped_policy_gradient,
)

A_CONTROL = (
    "fixed_advantage learns nothing of the teacher: it is a control for studies of what does. Use "
    "kind = 'sampled_token'; a study sets study = true"
)


class FixedAdvantageTerms(ClipTerms, Protocol):
    """What the loss reads of its settings."""

    @property
    def advantage(self) -> float: ...
    @property
    def max_log_prob(self) -> float | None: ...


def fixed_advantage(batch: LossBatch, head: Head, settings: FixedAdvantageTerms) -> LossResult:
    """The clipped policy gradient with one advantage. Which rows count, and which are dropped, as
    in ``sampled_token``.

    Raises:
        ValueError: the batch has no log-probabilities of the teacher, which decide which rows
            count, or of the rollout.
    """
    if batch.teacher_sampled is None or batch.old_log_probs is None:
        raise ValueError(
            "fixed_advantage needs the teacher's and the rollout's log-probability of the sampled "
            "token"
        )
    ratio = batch.teacher_sampled - batch.old_log_probs
    finite = ratio.isfinite() & batch.hidden.detach().isfinite().all(-1)
    advantage = ratio.new_full(ratio.shape, settings.advantage)
    if settings.max_log_prob is not None:
        advantage = advantage.where(batch.old_log_probs <= settings.max_log_prob, 0)
    return clipped_policy_gradient(batch, advantage, finite, head, settings)


class FixedAdvantageLoss(PolicyGradientLoss):
    """Policy gradient with one fixed negative advantage: a control that learns nothing of the
    teacher."""

    kind: Literal["fixed_advantage"] = "fixed_advantage"
    advantage: Annotated[float, Field(lt=0, allow_inf_nan=False)] = Field(
        default=-1.0, description="The advantage of a token, in nats."
    )
    max_log_prob: Annotated[float, Field(le=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Tokens that the student drew with a higher log-probability have advantage 0; "
        "unset, all have the same.",
    )
    study: bool = Field(
        default=False, description="Confirms that this is a study, and the loss its control."
    )

    @model_validator(mode="after")
    def _for_a_study(self) -> FixedAdvantageLoss:
        if not self.study:
            raise ValueError(A_CONTROL)
        return self

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        return fixed_advantage(batch, head, self)
