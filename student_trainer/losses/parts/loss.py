"""What every loss is: its settings, what it needs of the teacher, and a call.

A loss is one file: a class that extends ``Loss`` (or, on a support, ``SupportLoss``), whose fields
are its settings and whose call is the loss itself.

    class Mine(SupportLoss):
        sharpness: float = Field(default=2.0, description="...")

        def __call__(self, batch, head): ...

The trainer knows no loss by name. What it has to know of one, the class says in the attributes
and methods below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from teacher_proto.errors import LsmError
from teacher_proto.program.settings_types import (
    Count,
    Positive,
    PositiveInt,
    Settings,
    Share,
    called_by_its_name,
)
from teacher_proto.templates.thinking import THINKING
from torch import Tensor

from student_trainer.losses.parts.base import Head, LossBatch, LossResult, LossSettings
from student_trainer.losses.parts.choose_support import choose_support


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


class Loss(Settings):
    """A loss: its settings, what it needs, and the loss itself, ``loss(batch, head)``.

    Attributes:
        at_sampled_token: whether a row is learnt from at its sampled token, and so needs the
            teacher's log-probability of that token rather than a support. With top-p below 1
            these tokens are drawn from a nucleus.
        own_ratio: whether the definition holds the ratio to the policy that drew the tokens.
            Where it does not, a stale batch's rows get that ratio as their weight.
        rollout_temperature: whether the student is compared with itself as it drew the tokens,
            so that loss and rollout have to have one temperature.
    """

    at_sampled_token: ClassVar[bool] = False
    own_ratio: ClassVar[bool] = False
    rollout_temperature: ClassVar[bool] = False

    kind: str = ""
    temperature: Positive = Field(
        default=1.0, description="Divides the logits of both sides before they are compared."
    )
    mean: Literal["token", "sequence"] = Field(
        default="token",
        description="What the loss of an update is the mean of: all its used tokens (`token`), "
        "or the means of its responses (`sequence`).",
    )
    balance: Literal["rows", "teachers"] = Field(
        default="rows",
        description="With several teachers, what `mean` is taken over: everything that any of "
        "them scored (`rows`); or each teacher's rows by themselves, and then the mean of these "
        "means (`teachers`), so that none counts more for having more rows. Each teacher's part "
        "is multiplied by its `weight`.",
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
                f"coarse rows are compared on their ids and the rest, and {values.get('kind')} "
                "does not compare a rest: it leaves these rows out. Remove loss.coarse"
            )
        return values

    @model_validator(mode="before")
    @classmethod
    def _called_by_its_name(cls, values: Any) -> Any:
        """A class without a kind of its own is called by its dotted name."""
        return called_by_its_name(cls, values)

    @model_validator(mode="after")
    def _is_whole(self) -> Loss:
        """Refuses a class that lacks a part which every loss has to have."""
        for part in ("asks", "__call__"):
            if getattr(type(self), part) is getattr(Loss, part):
                raise ValueError(
                    f"{type(self).__name__} has no {part}: write it, or extend SupportLoss, which "
                    "needs __call__ alone"
                )
        asked = self.asks(realigned=False)
        if not isinstance(asked, RowsAsked):
            raise ValueError(
                f"{type(self).__name__}.asks gives {type(asked).__name__}, and not RowsAsked"
            )
        if not isinstance(asked.top_k, int) or asked.top_k < 0:
            raise ValueError(
                f"{type(self).__name__}.asks gives top_k = {asked.top_k!r}, and not a number of ids"
            )
        return self

    def asks(self, *, realigned: bool) -> RowsAsked:
        """What is asked of the teacher's rows.

        Args:
            realigned: whether the teacher has another tokenizer than the student.
        """
        raise NotImplementedError

    def check_realigned(self) -> None:
        """Refuses a teacher with another tokenizer where the loss cannot have one.

        Raises:
            ConfigurationError: it cannot, as it is set.
        """

    @property
    def student_top_k(self) -> int:
        """At how many of the student's ids the teacher is scored for each row."""
        return 0

    @property
    def renormalised(self) -> bool:
        """Whether both sides are renormalised on a support, so that the loss does not see the mass
        outside. Runs of such a loss are told when their student leaves the support."""
        return False

    def rows(self, batch: LossBatch, *, removed: Tensor, realigned: bool) -> LossBatch:
        """The batch as the loss reads it: with the support of each row.

        Args:
            batch: what the teacher returned for ``asks`` and ``student_top_k``.
            removed: int64 [M], ids that no support may hold.
        """
        if batch.support_ids is None:
            return batch
        return choose_support(batch, "teacher", removed=removed)

    def for_chunks(self) -> LossSettings:
        """The settings of ``chunk_policy``, with ``masked_chunks``."""
        return LossSettings(temperature=self.temperature, chunk_rows=self.chunk_rows)

    def __call__(self, batch: LossBatch, head: Head) -> LossResult:
        """The loss of these rows.

        Args:
            batch: of ``rows``. Rows of weight 0 count in neither numerator nor denominator.
            head: the student's output projection.

        Raises:
            ValueError: the batch lacks values that the loss needs.
        """
        raise NotImplementedError


def checked(result: object, batch: LossBatch, kind: str) -> LossResult:
    """What a loss gave, once it has the form of a result: anybody can write one.

    Raises:
        LsmError: it has not; the part, its dtype and its shape are named.
    """
    wrong = _what_is_wrong(result, tuple(batch.weights.shape))
    if wrong is None and isinstance(result, LossResult):
        return result
    raise LsmError(f"{kind} gives {wrong}", where="loss.kind", fix="mend the class's __call__")


def _what_is_wrong(result: object, rows: tuple[int, ...]) -> str | None:
    if not isinstance(result, LossResult):
        return f"{type(result).__name__}, and not a LossResult"
    for name, of_rows in (("total", False), ("per_row", True), ("used", True)):
        value = getattr(result, name)
        if not isinstance(value, Tensor):
            return f"{name} as {type(value).__name__}, and not as a tensor"
        shape = tuple(value.shape)
        if shape != (rows if of_rows else ()):
            wanted = f" for rows of shape {rows}" if of_rows else ", and not a scalar"
            return f"{name} of shape {shape}{wanted}"
    if result.used.dtype != torch.bool:
        return f"used as {result.used.dtype}, and not as torch.bool"
    if not result.total.requires_grad and bool(result.used.any()):
        return "a total without a gradient: it is detached from the hidden states"
    metrics: list[tuple[object, object]] = [
        *result.metrics.items(),
        *result.coarse_metrics.items(),
    ]
    for metric, number in metrics:
        if not isinstance(metric, str) or not isinstance(number, int | float):
            return f"the metric {metric!r} as {type(number).__name__}, and not as a number"
        if not math.isfinite(number):
            return f"the metric {metric!r} as {number}, which is not finite"
    return None
