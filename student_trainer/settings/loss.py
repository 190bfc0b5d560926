"""Settings of the losses, one class for each kind (docs/training.md).

A new loss has its function and its row in ``student_trainer.losses.LOSSES``, and here a
class in ``LossConfig``. Fields with the names of ``LossSettings`` reach the function by
themselves; what else the trainer must know of a loss, its class declares in the
attributes below. Nothing else names a loss.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from student_trainer.settings.base import Count, Positive, Share
from student_trainer.settings.every_loss import LossCommon, RowsAsked

SupportKind = Literal["teacher", "teacher+sampled", "student", "student+sampled", "union"]

UNNORMALISED = (
    "reverse KL on a support that is neither renormalised nor given a tail is least at "
    "p = q / e: it collapses the student's mass on the support. Use kind = 'lsm', or "
    "tail = 'bucket'; a study of the collapse itself sets study = true"
)


class OnSupport(LossCommon):
    """Settings that all losses on a support share."""

    top_k: int = Field(
        default=32,
        description="K, the number of ids that each side adds to the support; at least 2.",
    )
    support: SupportKind = Field(
        default="teacher",
        description="Whose ids the support holds: the teacher's top K, those of the student as "
        "it drew the rollout, or both (`union`); `+sampled` adds the sampled token.",
    )
    support_mass: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Keep the teacher's ids, most likely first, until they hold this "
        "probability: at least two, at most K. Unset, all K.",
    )
    tail: Literal["none", "bucket"] = Field(
        default="none",
        description="`none` renormalises both sides on the support; `bucket` adds one outcome "
        "for the rest of each side, which needs the student's normaliser.",
    )
    row_clamp: Positive | None = Field(
        default=None, description="Bound on the loss of one row, in nats; unset, none."
    )

    @field_validator("top_k")
    @classmethod
    def _at_least_two(cls, value: int) -> int:
        if value < 2:
            raise ValueError(
                "top_k must be at least 2: on a support of one token both renormalised "
                "distributions are 1 and the loss is identically 0"
            )
        return value

    @model_validator(mode="after")
    def _the_mass_is_the_teachers(self) -> OnSupport:
        if self.support_mass is not None and not self._holds_teacher:
            raise ValueError(
                "support_mass cuts the teacher's ids: use a support that holds them "
                "(teacher, teacher+sampled, union)"
            )
        return self

    def asks(self, *, realigned: bool) -> RowsAsked:
        return self._asks(log_tail=self.tail == "bucket")

    def _asks(self, *, log_tail: bool, coarse: bool = False) -> RowsAsked:
        # The service's tail is outside the teacher's top K, whatever the support.
        top_k = self.top_k if self._holds_teacher or log_tail else 0
        return RowsAsked(top_k, log_tail, coarse)

    @property
    def student_top_k(self) -> int:
        return self.top_k if self.support in ("student", "student+sampled", "union") else 0

    @property
    def _holds_teacher(self) -> bool:
        return self.support in ("teacher", "teacher+sampled", "union")


class SupportLoss(OnSupport):
    """Settings of the losses that can compare a support and the rest."""

    coarse: Literal["bucket", "mask"] = Field(
        default="bucket",
        description="Across tokenizers, positions at which the teacher's ids are certain and one "
        "that it does not return may be the most likely (class COARSE), and those with a single "
        "id. `bucket` compares them on their ids and the rest; `mask` leaves them out. With one "
        "tokenizer the setting does nothing.",
    )

    def asks(self, *, realigned: bool) -> RowsAsked:
        coarse = realigned and self.coarse == "bucket"
        return self._asks(log_tail=coarse or self.tail == "bucket", coarse=coarse)


class LsmLoss(SupportLoss):
    """Local Support Matching: reverse KL on the support."""

    kind: Literal["lsm"] = "lsm"


class TopkForwardKlLoss(SupportLoss):
    """Forward KL on the support."""

    kind: Literal["topk_forward_kl"] = "topk_forward_kl"


class TopkJsdLoss(SupportLoss):
    """Generalised Jensen-Shannon divergence on the support."""

    kind: Literal["topk_jsd"] = "topk_jsd"
    beta: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="The teacher's weight in the mixture."
    )


class UnnormalisedReverseKlLoss(OnSupport):
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


class SampledTokenLoss(LossCommon):
    """Policy gradient on the teacher's log-ratio at the sampled token. A support is only
    asked for the metrics."""

    policy_gradient: ClassVar[bool] = True
    support: ClassVar[SupportKind] = "teacher"
    support_mass: ClassVar[float | None] = None

    kind: Literal["sampled_token"] = "sampled_token"
    top_k: Count = Field(
        default=32,
        description="Ids of a support that is asked for diagnostics alone; 0 asks for none.",
    )
    clip: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2,
        description="How far the importance ratio may leave 1 before a token's gradient is cut, "
        "as in PPO.",
    )
    dual_clip: Annotated[float, Field(gt=1)] = Field(
        default=3.0,
        description="Bound on the loss of a token with a negative advantage, in multiples of "
        "that advantage.",
    )
    advantage_clamp: Positive | None = Field(
        default=None,
        description="Bound on the absolute advantage of a token, in nats; unset, none.",
    )
    gamma: Share = Field(
        default=0.0,
        description="Discount of later tokens' rewards in a token's return: 0 is token-level, 1 "
        "is sequence-level.",
    )

    def asks(self, *, realigned: bool) -> RowsAsked:
        return RowsAsked(self.top_k)


LossConfig = Annotated[
    LsmLoss | TopkForwardKlLoss | TopkJsdLoss | SampledTokenLoss | UnnormalisedReverseKlLoss,
    Field(discriminator="kind"),
]
