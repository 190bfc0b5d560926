"""Losses on a support: the settings that they share, and what they need of the teacher.

``support_rows`` computes them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_types import Positive
from torch import Tensor

from student_trainer.losses.parts.base import LossBatch
from student_trainer.losses.parts.choose_support import (
    SupportKind,
    choose_support,
    single_ids_as_coarse,
)
from student_trainer.losses.parts.loss import Loss, RowsAsked


class OnSupport(Loss):
    """A loss on a support, and what all of these share."""

    top_k: int = Field(
        default=128,
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
        return self._asks(log_tail=False)

    def _asks(self, *, log_tail: bool, coarse: bool = False) -> RowsAsked:
        # The service's tail is outside the teacher's top K, whatever the support.
        top_k = self.top_k if self._holds_teacher or log_tail else 0
        return RowsAsked(top_k, log_tail, coarse)

    @property
    def student_top_k(self) -> int:
        return self.top_k if self.support in ("student", "student+sampled", "union") else 0

    def rows(self, batch: LossBatch, *, removed: Tensor, realigned: bool) -> LossBatch:
        return choose_support(batch, self.support, mass=self.support_mass, removed=removed)

    @property
    def _holds_teacher(self) -> bool:
        return self.support in ("teacher", "teacher+sampled", "union")


class WithTail(OnSupport):
    """A loss on a support that has the setting ``tail``."""

    tail: Literal["none", "bucket"] = Field(
        default="none",
        description="`none` renormalises both sides on the support; `bucket` adds one outcome "
        "for the rest of each side, which needs the student's normaliser.",
    )

    def asks(self, *, realigned: bool) -> RowsAsked:
        return self._asks(log_tail=self.tail == "bucket")

    @property
    def renormalised(self) -> bool:
        return self.tail == "none"

    def check_realigned(self) -> None:
        if self.tail == "bucket":
            raise ConfigurationError(
                'tail = "bucket" compares full rows with their rest too, and across tokenizers a '
                "part of it could belong to their ids; renormalised, these rows keep the ids' "
                "ratios. Rows that cannot be renormalised are compared with their rest by "
                "loss.coarse",
                where="loss.tail",
                fix='set loss.tail = "none"',
            )


class SupportLoss(WithTail):
    """A loss that can compare a support and the rest."""

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

    def rows(self, batch: LossBatch, *, removed: Tensor, realigned: bool) -> LossBatch:
        chosen = super().rows(batch, removed=removed, realigned=realigned)
        return single_ids_as_coarse(chosen) if self.asks(realigned=realigned).coarse else chosen
