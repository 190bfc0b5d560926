"""What the settings of every loss have: temperature, mean, masks, chunks, and what is asked of
the teacher's rows (``settings.loss`` has the losses themselves)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from teacher_proto.templates.thinking import THINKING

from student_trainer.settings.base import Count, Positive, PositiveInt, Settings, Share


@dataclass(frozen=True)
class RowsAsked:
    """What a loss asks of the teacher's rows, beside the sampled token's log-probability and
    those at the student's ids.

    Attributes:
        top_k: how many of its own ids; 0 asks for none.
        log_tail: whether also its mass outside these.
        coarse: whether also rows of class COARSE, in place of masked ones.
    """

    top_k: int
    log_tail: bool = False
    coarse: bool = False


class MaskSettings(Settings):
    """Positions that are left out of the loss, by their sampled token."""

    strings: tuple[str, ...] = Field(
        default=THINKING[0],
        description="Literal texts whose tokens are left out, whether one token spells them or "
        "several.",
    )
    token_ids: tuple[Count, ...] = Field(default=(), description="Sampled ids that are left out.")
    remove_from_support: bool = Field(
        default=False,
        description="Also take those of the masked ids that are single tokens out of every "
        "support.",
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
        default=1.0, description="Divides the logits of both sides before they are compared."
    )
    mean: Literal["token", "sequence"] = Field(
        default="token",
        description="What the loss of an update is the mean of: all its used tokens (`token`), "
        "or the means of its responses (`sequence`).",
    )
    chunk_rows: PositiveInt = Field(
        default=128,
        description="Rows computed at once where [rows, vocabulary] is needed; fewer take less "
        "memory.",
    )
    max_non_finite_share: Share = Field(
        default=0.01, description="A step is refused when a larger share of its rows is not finite."
    )
    mask: MaskSettings = Field(default_factory=MaskSettings)
    masked_chunks: bool = Field(
        default=False,
        description="Across tokenizers, learn from masked positions too: a policy gradient on "
        "the likelihood of the chunk that holds them (docs/losses.md).",
    )
    nucleus_weights: bool = Field(
        default=True,
        description="With `rollout.top_p` below 1, weigh what is learnt at drawn tokens "
        "(`sampled_token`, `masked_chunks`) by the student's probability of the nucleus that "
        "they were drawn from (docs/losses.md). Losses on a support do not depend on it.",
    )
    chunk_clamp: Positive | None = Field(
        default=None,
        description="Bound on the absolute advantage of a chunk, in nats; unset, none.",
    )

    @model_validator(mode="before")
    @classmethod
    def _coarse_where_it_means_something(cls, values: Any) -> Any:
        if isinstance(values, dict) and "coarse" in values and "coarse" not in cls.model_fields:
            raise ValueError(
                f"coarse rows are compared on their ids and the rest, and "
                f"{cls.model_fields['kind'].default} does not compare a rest: it leaves these rows "
                "out. Remove loss.coarse"
            )
        return values

    def asks(self, *, realigned: bool) -> RowsAsked:
        """What is asked of the teacher's rows.

        Args:
            realigned: whether the teacher has another tokenizer than the student.
        """
        raise NotImplementedError

    @property
    def student_top_k(self) -> int:
        """At how many of the student's ids the teacher is scored for each row."""
        return 0
