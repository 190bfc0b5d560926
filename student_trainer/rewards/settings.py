"""Settings of the policy gradient of scores beside the loss."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator
from teacher_proto.program.settings_types import NonNegative, Settings, Share


class RewardSettings(Settings):
    """A policy gradient of the scores that the verifiers of tasks give, which is added to the loss
    (docs/rewards.md)."""

    weight: NonNegative = Field(
        default=0.0,
        description="Weight of the policy gradient of the scores beside the loss, in the first "
        "step. With 0 and no `reward.last_weight` scores are measured and not learnt from.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="Course of the weight over the steps of the run, from `reward.weight` to "
        "`reward.last_weight`.",
    )
    last_weight: NonNegative | None = Field(
        default=None,
        description="Weight in the last step; for the schedules `linear` and `cosine` alone, which "
        "need it.",
    )
    normalise: Literal["mean", "deviation"] = Field(
        default="mean",
        description="What a score is compared with: the mean score of its group is subtracted "
        "(`mean`), and the difference divided by the group's sample standard deviation "
        "(`deviation`).",
    )
    failed_score: Share | None = Field(
        default=None,
        description="Score of a response whose verification began and failed (time, memory, an "
        "error and so on); unset, it has none: it is left out of its group's mean, and nothing is "
        "learnt from its score.",
    )
    clip: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2,
        description="How far the ratio π/π_old may leave 1 before a token's gradient is cut, as in "
        "PPO.",
    )
    dual_clip: Annotated[float, Field(gt=1)] = Field(
        default=3.0,
        description="Bound on the term of a token with a negative advantage, in multiples of that "
        "advantage.",
    )

    @model_validator(mode="after")
    def _course(self) -> RewardSettings:
        if self.schedule == "constant" and self.last_weight is not None:
            raise ValueError(
                "last_weight is where a schedule ends, and this one is constant: set schedule to "
                "linear or cosine, or unset last_weight"
            )
        if self.schedule != "constant" and self.last_weight is None:
            raise ValueError(f"schedule = {self.schedule} ends somewhere: set last_weight")
        return self

    @property
    def learns(self) -> bool:
        """Whether a step may learn from scores."""
        return self.weight > 0 or (self.last_weight or 0) > 0

    def weight_at(self, step: int, steps: int) -> float:
        """The weight in one of ``steps`` steps, which are counted from 1."""
        if self.last_weight is None or steps == 1:
            return self.weight
        done = (step - 1) / (steps - 1)
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.last_weight + (self.weight - self.last_weight) * left
