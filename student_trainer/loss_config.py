"""Settings of the losses, one class a kind (docs/training.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from student_trainer.settings_base import Count, Positive, PositiveInt, Settings, Share


class MaskSettings(Settings):
    strings: tuple[str, ...] = Field(
        default=("<think>", "</think>"),
        description="literal texts whose tokens are left out, spelled as one token or several",
    )
    token_ids: tuple[Count, ...] = Field(default=(), description="sampled ids that are left out")
    remove_from_support: bool = Field(
        default=False, description="also take the masked single-token ids out of every support"
    )

    @field_validator("strings")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty string would match everywhere")
        return value


class LossCommon(Settings):
    temperature: Positive = Field(default=1.0, description="of both sides of the divergence")
    mean: Literal["token", "sequence"] = Field(
        default="token",
        description="over all used tokens of an update, or over its responses' own means",
    )
    chunk_rows: PositiveInt = Field(
        default=128, description="rows per chunk where [rows, V] is needed"
    )
    max_non_finite_share: Share = Field(
        default=0.01, description="a step with more of its rows not finite is refused"
    )
    mask: MaskSettings = Field(default_factory=MaskSettings)

    @property
    def needs_log_tail(self) -> bool:
        """Whether the teacher's mass outside its support is asked for."""
        return False


class SupportLoss(LossCommon):
    """What the losses on the teacher's support share."""

    top_k: int = Field(default=32, description="size of the teacher's support")
    support: Literal["teacher", "teacher+sampled"] = Field(
        default="teacher",
        description="ids of the support: the teacher's top_k, or these and the sampled token",
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
    def _the_tail_is_the_services(self) -> SupportLoss:
        changed = self.support != "teacher" or self.mask.remove_from_support
        if self.tail == "bucket" and changed:
            raise ValueError(
                "tail = 'bucket' takes the service's log_tail, which is of the teacher's own "
                "top_k: leave support at 'teacher' and mask.remove_from_support off"
            )
        return self

    @property
    def needs_log_tail(self) -> bool:
        return self.tail == "bucket"


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


class SampledTokenLoss(LossCommon):
    kind: Literal["sampled_token"] = "sampled_token"
    top_k: Count = Field(
        default=32, description="size of the support asked for the diagnostics; 0 asks for none"
    )
    clip: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="ratio's trust region"
    )
    dual_clip: Annotated[float, Field(gt=1)] = Field(
        default=3.0, description="bound on the loss of negative advantages"
    )
    advantage_clamp: Positive | None = Field(default=None, description="bound on |advantage|, nats")


LossConfig = Annotated[
    LsmLoss | TopkForwardKlLoss | TopkJsdLoss | SampledTokenLoss, Field(discriminator="kind")
]
