"""Settings of the responses of a step: how the student writes them, which are answers of the
data, how much of them is scored, and when they are updated on. Lengths in tokens."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, model_validator

from student_trainer.settings.base import Count, NonNegative, Positive, PositiveInt, Settings
from student_trainer.settings.rollout_vllm import VllmSettings


class RolloutSettings(Settings):
    """How the student writes its responses."""

    engine: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="What writes the responses: `transformers`, the model that is trained "
        "itself, on its own device; or `vllm`, which is handed the weights after every update "
        "(docs/rollouts.md).",
    )
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
        default=32,
        description="Responses that are written together; where one ends the next begins.",
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
    vllm: VllmSettings = Field(default_factory=VllmSettings)

    @model_validator(mode="after")
    def _of_the_engine(self) -> RolloutSettings:
        if self.engine != "vllm" and self.vllm != VllmSettings():
            raise ValueError(
                f'rollout.vllm is for engine = "vllm", and the engine is "{self.engine}"'
            )
        return self


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
    importance_weights: bool = Field(
        default=True,
        description="Weigh the tokens of a stale batch by π/π_old, at most `importance_cap`; "
        "`false`, all weigh 1. A policy gradient has the ratio in its definition and is not "
        "weighed.",
    )
    importance_cap: Positive | None = Field(
        default=2.0,
        description="Upper bound of that weight; none (from Python alone) is no weight at all.",
    )


class ScoringSettings(Settings):
    """How much of each response is scored and learnt from: its first tokens (docs/training.md).

    This is neither how a response is written, which stays whole and as long as before, nor what
    is computed at a row, which is the loss's: so it is a section of its own.
    """

    max_scored_tokens: PositiveInt | None = Field(
        default=None,
        description="Score at most so many first tokens of a response; unset, no such bound.",
    )
    scored_share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Score this share of each response's tokens, the first ones, rounded up; "
        "unset, all. Where `scoring.max_scored_tokens` is set too, the smaller number counts.",
    )

    @property
    def cuts(self) -> bool:
        """Whether a response may be scored in part."""
        return self.max_scored_tokens is not None or self.scored_share is not None

    def scored(self, length: int) -> int:
        """How many first tokens are scored of a response of ``length`` tokens, at least 1.

        The share counts as it is written: 0.1 of 30 tokens are 3.
        """
        most = length if self.max_scored_tokens is None else min(length, self.max_scored_tokens)
        if self.scored_share is None:
            return most
        return min(most, math.ceil(Fraction(repr(self.scored_share)) * length))


PartOfAStep = Annotated[float, Field(gt=0, le=1)]


class MixingSettings(Settings):
    """Answers of the data, `data.columns.response`, in place of responses of the student
    (docs/training.md)."""

    share: PartOfAStep | None = Field(
        default=None,
        description="Share of a step's responses that are answers of the data, in steps after "
        "`mixing.cold_start_steps`; unset, none.",
    )
    cold_start_steps: Count = Field(
        default=0, description="First steps of a run that have `mixing.cold_start_share` instead."
    )
    cold_start_share: PartOfAStep = Field(
        default=1.0, description="Share of the responses of these steps that are answers."
    )
    nll_weight: NonNegative = Field(
        default=0.0,
        description="Weight of the negative log-likelihood of an answer's token, which is added "
        "to the loss of its row; 0 adds none.",
    )

    @model_validator(mode="after")
    def _of_something(self) -> MixingSettings:
        if self.nll_weight > 0 and not self.mixes:
            raise ValueError(
                "nll_weight is for answers of the data, and no step has any: set share or "
                "cold_start_steps"
            )
        if "cold_start_share" in self.model_fields_set and not self.cold_start_steps:
            default = type(self).model_fields["cold_start_share"].default
            if self.cold_start_share != default:
                raise ValueError("cold_start_share is that of no step: set cold_start_steps")
        return self

    @property
    def mixes(self) -> bool:
        """Whether a step may have answers of the data."""
        return self.share is not None or self.cold_start_steps > 0

    def groups_until(self, step: int, prompts: int) -> int:
        """How many groups of answers the steps up to ``step`` have together, of steps of
        ``prompts`` groups: as many as the shares give, rounded down. So a step has the share to
        within a group, and many steps have it exactly."""
        cold = min(step, self.cold_start_steps)
        shares = cold * Fraction(repr(self.cold_start_share))
        if self.share is not None:
            shares += (step - cold) * Fraction(repr(self.share))
        return int(prompts * shares)
