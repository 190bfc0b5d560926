"""The clipped policy gradient at the sampled tokens, for any advantages.

    l_t = -min(r A_t, clip(r, 1 - c, 1 + c) A_t),   r = pi(y_t) / pi_old(y_t)

and for A_t < 0 at most dual_clip * |A_t|. Advantages are constants.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Protocol

import torch
from pydantic import Field
from teacher_proto.program.settings_types import Count
from teacher_proto.rows import required
from torch import Tensor

from student_trainer.losses.parts.base import (
    Head,
    LossBatch,
    LossResult,
    LossSettings,
    select_rows,
)
from student_trainer.losses.parts.loss import Loss, RowsAsked
from student_trainer.losses.parts.normaliser import token_log_probs


class ClipTerms(Protocol):
    """What it reads of the settings of a loss."""

    @property
    def temperature(self) -> float: ...
    @property
    def chunk_rows(self) -> int: ...
    @property
    def clip(self) -> float: ...
    @property
    def dual_clip(self) -> float: ...


class PolicyGradientLoss(Loss):
    """A loss that is a clipped policy gradient. A support is only asked for the metrics."""

    at_sampled_token: ClassVar[bool] = True
    own_ratio: ClassVar[bool] = True
    rollout_temperature: ClassVar[bool] = True

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

    def asks(self, *, realigned: bool) -> RowsAsked:
        return RowsAsked(self.top_k)

    def for_chunks(self) -> LossSettings:
        return replace(super().for_chunks(), clip=self.clip, dual_clip=self.dual_clip)


def clipped_policy_gradient(
    batch: LossBatch, advantage: Tensor, finite: Tensor, head: Head, settings: ClipTerms
) -> LossResult:
    """The clipped policy gradient of these advantages.

    Args:
        batch: with ``old_log_probs``.
        advantage: float [T], nats; of rows that are not finite, anything.
        finite: bool [T], rows that count if they have a weight; the others are counted as
            dropped, and so are rows in which the student's log-probability is not finite.
    """
    old = required(batch.old_log_probs, "old_log_probs")
    active = batch.weights > 0
    rows = select_rows(active & finite)

    log_probs = token_log_probs(
        batch.hidden.index_select(0, rows),
        head,
        batch.sampled_ids[rows],
        settings.temperature,
        settings.chunk_rows,
    )
    good = log_probs.detach().isfinite()
    chosen = advantage[rows].to(log_probs.dtype)
    ratio = torch.exp(torch.where(good, log_probs - old[rows], 0))
    clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    gain = torch.minimum(ratio * chosen, clipped * chosen)
    gain = torch.where(chosen < 0, torch.maximum(gain, settings.dual_clip * chosen), gain)
    losses = torch.where(good, -gain, 0)

    used = torch.zeros_like(active)
    used[rows] = good
    per_row = torch.zeros_like(batch.weights)
    per_row[rows] = losses.detach().to(per_row.dtype)
    outside = (ratio.detach() - 1).abs() > settings.clip
    return LossResult(
        total=(losses * batch.weights[rows]).sum(),
        per_row=per_row,
        used=used,
        dropped_non_finite=int((active & ~used).sum()),
        metrics={
            "advantage": float(chosen[good].sum()),
            "ratio": float(ratio.detach()[good].sum()),
            "ratio_clipped": float((outside & good).sum()),
        },
    )
