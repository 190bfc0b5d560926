"""Settings of the student's responses, and of when they are updated on. Lengths in
tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from student_trainer.settings.base import Count, Positive, PositiveInt, Settings


class RolloutSettings(Settings):
    """How the student writes its responses."""

    temperature: Positive = Field(
        default=1.0, description="Divides the student's logits before a token is drawn."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.9,
        description="Tokens are drawn from the smallest set that reaches this probability.",
    )
    group_size: PositiveInt = Field(default=8, description="Responses to each prompt.")
    prompts_per_step: PositiveInt = Field(default=16, description="Prompts of one step.")
    max_new_tokens: PositiveInt = Field(
        default=2048, description="Tokens of the longest response; a longer one is cut and counted."
    )
    batch_size: PositiveInt = Field(
        default=32, description="Responses that are generated together."
    )
    stop_ids: tuple[Count, ...] = Field(
        default=(),
        description="Ids that end a response, besides those of the student's generation config, "
        "tokenizer and chat template.",
    )
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="Texts that end a response, also where they are spread over several tokens "
        "or are a part of one. The token that completes one is the response's last: it is scored "
        "and learnt from whole, as an id that ends a response is.",
    )


class PipelineSettings(Settings):
    """How rollouts, scores and updates overlap (docs/training.md)."""

    staleness: Count = Field(
        default=0,
        description="Steps between the weights that write a batch and those that it updates; 0 "
        "is strictly on-policy.",
    )
    send: Literal["finished", "group"] = Field(
        default="finished",
        description="When a response is sent to be scored: once it has ended (`finished`), or "
        "once all responses to its prompt have (`group`).",
    )
    importance_cap: Positive | None = Field(
        default=2.0,
        description="Upper bound of the importance weight π/π_old of a token in a stale batch; "
        "unset, all weigh 1.",
    )
