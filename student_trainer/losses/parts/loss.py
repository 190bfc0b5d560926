"""What every loss is: its settings, what it needs of the teacher, and a call.

A loss is one file: a class that extends ``Loss`` (or, on a support, ``SupportLoss``), whose fields
are its settings and whose call is the loss itself.

    class Mine(Loss):
        sharpness: float = Field(default=2.0, description="...")

        def __call__(self, batch, head): ...

The trainer knows no loss by name. What it has to know of one, the class says in the attributes
and methods below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from teacher_proto.errors import LsmError
from teacher_proto.program.settings_types import Count, Positive, PositiveInt, Settings, Share
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
        if isinstance(values, dict) and not (
            values.get("kind") or cls.model_fields["kind"].default
        ):
            return {**values, "kind": f"{cls.__module__}:{cls.__qualname__}"}
        return values

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
    rows = tuple(batch.weights.shape)
    if not isinstance(result, LossResult):
        wrong = f"gives {type(result).__name__}, and not a LossResult"
    elif result.total.ndim != 0:
        wrong = f"gives a total of shape {tuple(result.total.shape)}, and not a scalar"
    elif tuple(result.per_row.shape) != rows:
        wrong = f"gives per_row of shape {tuple(result.per_row.shape)} for rows of shape {rows}"
    elif tuple(result.used.shape) != rows or result.used.dtype != torch.bool:
        found = f"{result.used.dtype} of shape {tuple(result.used.shape)}"
        wrong = f"gives used as {found}, and not torch.bool of shape {rows}"
    elif not result.total.requires_grad and bool(result.used.any()):
        wrong = "gives a total without a gradient: it is detached from the hidden states"
    else:
        return result
    raise LsmError(f"{kind} {wrong}", where="loss.kind", fix="mend the class's __call__")
