"""Settings of the losses, one class for each kind (docs/training.md).

A new loss has its function and its row in ``student_trainer.losses.LOSSES``, and here a
class in ``LossConfig``. Fields with the names of ``LossSettings`` reach the function by
themselves; what else the trainer must know of a loss, its class declares in the
attributes below. Nothing else names a loss.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from student_trainer.settings.base import Count, Positive, PositiveInt, Settings, Share

SupportKind = Literal["teacher", "teacher+sampled", "student", "student+sampled", "union"]

UNNORMALISED = (
    "reverse KL on a support that is neither renormalised nor given a tail is least at "
    "p = q / e: it collapses the student's mass on the support. Use kind = 'lsm', or "
    "tail = 'bucket'; a study of the collapse itself sets study = true"
)


class MaskSettings(Settings):
    strings: tuple[str, ...] = Field(
        default=("<think>", "</think>"),
        description="literal texts whose tokens are masked, whether one token or several",
    )
    token_ids: tuple[Count, ...] = Field(
        default=(), description="ids that are masked where they are sampled"
    )
    remove_from_support: bool = Field(
        default=False, description="also remove masked single-token ids from every support"
    )

    @field_validator("strings")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty string would match everywhere")
        return value


class LossCommon(Settings):
    """What every loss shares.

    Attributes:
        policy_gradient: whether the loss is a policy gradient at the sampled tokens. It
            then needs the teacher's log-probability of a row's sampled token rather than
            a support, its own definition holds the ratio to the policy that drew the
            token, and loss and rollout have one temperature.
    """

    policy_gradient: ClassVar[bool] = False

    temperature: Positive = Field(
        default=1.0, description="temperature of both sides of the divergence"
    )
    mean: Literal["token", "sequence"] = Field(
        default="token",
        description="over all used tokens of an update, or over its responses' own means",
    )
    chunk_rows: PositiveInt = Field(
        default=128,
        description="rows of logits [rows, V] computed at a time, where they are needed",
    )
    max_non_finite_share: Share = Field(
        default=0.01, description="a step is refused when more of its rows are not finite"
    )
    mask: MaskSettings = Field(default_factory=MaskSettings)
    masked_chunks: bool = Field(
        default=False,
        description="across tokenizers: where the teacher gives no usable row for a token, learn "
        "from its likelihood of the chunk that holds it, a policy gradient",
    )
    chunk_clamp: Positive | None = Field(
        default=None, description="bound on a chunk's |advantage|, nats"
    )

    @property
    def needs_log_tail(self) -> bool:
        """Whether the teacher has to return its mass outside the top K."""
        return False

    @property
    def teacher_top_k(self) -> int:
        """How many of its own ids the teacher returns for each row."""
        raise NotImplementedError

    @property
    def student_top_k(self) -> int:
        """At how many of the student's ids the teacher is scored for each row."""
        return 0


class SupportLoss(LossCommon):
    """Settings that all losses on a support share."""

    top_k: int = Field(default=32, description="K, ids of the support from each side")
    support: SupportKind = Field(
        default="teacher",
        description="ids of the support: the top_k of the teacher, of the student that drew the "
        "rollout, or of both (union); +sampled adds the sampled token",
    )
    support_mass: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="keep the teacher's ids, most likely first, until their probability reaches "
        "this, at least two and at most top_k",
    )
    tail: Literal["none", "bucket"] = Field(
        default="none",
        description="none renormalises on the support; bucket adds one outcome for the rest "
        "of each side, which needs the student's normaliser",
    )
    row_clamp: Positive | None = Field(default=None, description="bound on a row's loss, nats")

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
    def _the_mass_is_the_teachers(self) -> SupportLoss:
        if self.support_mass is not None and not self._holds_teacher:
            raise ValueError(
                "support_mass cuts the teacher's ids: use a support that holds them "
                "(teacher, teacher+sampled, union)"
            )
        return self

    @property
    def needs_log_tail(self) -> bool:
        return self.tail == "bucket"

    @property
    def teacher_top_k(self) -> int:
        # The service's tail is outside the teacher's top K, whatever the support.
        return self.top_k if self._holds_teacher or self.needs_log_tail else 0

    @property
    def student_top_k(self) -> int:
        return self.top_k if self.support in ("student", "student+sampled", "union") else 0

    @property
    def _holds_teacher(self) -> bool:
        return self.support in ("teacher", "teacher+sampled", "union")


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
        default=0.5, description="the teacher's weight in the mixture"
    )


class UnnormalisedReverseKlLoss(SupportLoss):
    """Reverse KL on the support, neither renormalised nor with a tail."""

    kind: Literal["unnormalised_reverse_kl"] = "unnormalised_reverse_kl"
    study: bool = Field(
        default=False, description="must be true: the collapse of this loss is to be studied"
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
        default=32, description="size of the support for metrics alone; 0 leaves it out"
    )
    clip: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="width of the ratio's trust region"
    )
    dual_clip: Annotated[float, Field(gt=1)] = Field(
        default=3.0, description="bound on the loss of negative advantages"
    )
    advantage_clamp: Positive | None = Field(default=None, description="bound on |advantage|, nats")
    gamma: Share = Field(
        default=0.0,
        description="discount of later tokens' rewards in a token's return: 0 is token-level, "
        "1 sequence-level",
    )

    @property
    def teacher_top_k(self) -> int:
        return self.top_k


LossConfig = Annotated[
    LsmLoss | TopkForwardKlLoss | TopkJsdLoss | SampledTokenLoss | UnnormalisedReverseKlLoss,
    Field(discriminator="kind"),
]
