"""Settings of the student's responses, and of when they are updated on. Lengths in
tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from student_trainer.settings.base import Count, Positive, PositiveInt, Settings


class RolloutSettings(Settings):
    temperature: Positive = Field(default=1.0, description="divides the student's logits")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.9,
        description="draw from the smallest set of tokens that reaches this probability",
    )
    group_size: PositiveInt = Field(default=8, description="responses per prompt")
    prompts_per_step: PositiveInt = Field(default=16, description="prompts per step")
    max_new_tokens: PositiveInt = Field(
        default=2048, description="length limit of a response; a longer one is cut and counted"
    )
    batch_size: PositiveInt = Field(default=32, description="responses generated together")


class PipelineSettings(Settings):
    staleness: Count = Field(
        default=0,
        description="steps between the weights that write a batch and those it updates; "
        "0 is strictly on-policy",
    )
    send: Literal["finished", "group"] = Field(
        default="finished",
        description="finished scores a response when it has ended, group when its whole group has",
    )
    importance_cap: Positive | None = Field(
        default=2.0,
        description="tokens of a stale batch have the weight pi/pi_old, at most this; if unset, 1",
    )
