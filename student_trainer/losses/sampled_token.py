"""The sampled-token baseline: a policy gradient whose advantage is the log-ratio of teacher
to student at the sampled token (arXiv 2603.25562, token level).

    A_t = log q(y_t) - log pi_old(y_t)
    l_t = -min(r A, clip(r, 1 - c, 1 + c) A),   r = pi(y_t) / pi_old(y_t)

and for A < 0 at most dual_clip * |A|. With ``gamma`` the advantage includes later tokens
of the response: A_t = -R_t with the return R_t = sum over t' >= t of gamma^(t' - t) r_t',
r = log pi_old - log q; gamma 0 is token-level, gamma 1 sequence-level.
"""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field
from teacher_proto.program.settings_types import Positive, Share
from torch import Tensor

from student_trainer.losses.parts.base import Head, LossBatch, LossResult
from student_trainer.losses.parts.policy_gradient import (
    ClipTerms,
    PolicyGradientLoss,
    clipped_policy_gradient,
)
from student_trainer.losses.parts.returns import discounted_returns


class SampledTokenTerms(ClipTerms, Protocol):
    """What the loss reads of its settings."""

    @property
    def advantage_clamp(self) -> float | None: ...
    @property
    def gamma(self) -> float: ...


def sampled_token(batch: LossBatch, head: Head, settings: SampledTokenTerms) -> LossResult:
    """Clipped policy gradient. Rows with weight 0, and rows without a finite log-probability
    on both sides, count in neither numerator nor denominator; the latter are counted as
    dropped. Neither adds to the returns of earlier rows.

    Raises:
        ValueError: the batch has no log-probabilities of the teacher or of the rollout, or
            no responses and steps although ``gamma`` needs them.
    """
    if batch.teacher_sampled is None or batch.old_log_probs is None:
        raise ValueError(
            "sampled_token needs the teacher's and the rollout's log-probability of the sampled "
            "token"
        )
    active = batch.weights > 0
    advantage = batch.teacher_sampled - batch.old_log_probs
    finite = advantage.isfinite() & batch.hidden.detach().isfinite().all(-1)
    if settings.gamma != 0:
        advantage = _returns(batch, advantage.where(active & finite, 0), settings.gamma)
    if settings.advantage_clamp is not None:
        advantage = advantage.clamp(-settings.advantage_clamp, settings.advantage_clamp)
    return clipped_policy_gradient(batch, advantage, finite, head, settings)


def _returns(batch: LossBatch, advantage: Tensor, gamma: float) -> Tensor:
    """-R_t of the rewards -advantage, float [T]."""
    if batch.responses is None or batch.steps is None:
        raise ValueError("gamma needs to know which response and step each row is of")
    # Negating twice, the reward and the return, cancels.
    total = discounted_returns(advantage, batch.responses, batch.steps, gamma)
    return total.to(advantage.dtype)


class SampledTokenLoss(PolicyGradientLoss):
    """Policy gradient on the teacher's log-ratio at the sampled token. A support is only
    asked for the metrics."""

    kind: Literal["sampled_token"] = "sampled_token"
    advantage_clamp: Positive | None = Field(
        default=None,
        description="Bound on the absolute advantage of a token, in nats; unset, none.",
    )
    gamma: Share = Field(
        default=0.0,
        description="Discount of later tokens' rewards in a token's return: 0 is token-level, 1 "
        "is sequence-level.",
    )

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        return sampled_token(batch, head, self)
