"""Settings of the prompts (docs/data.md). Lengths in tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from student_trainer.settings.base import PositiveInt, Settings

Name = Annotated[
    str, BeforeValidator(lambda v: str(v) if isinstance(v, Path) else v), Field(min_length=1)
]


class ColumnSettings(Settings):
    prompt: Name | None = Field(
        default=None,
        description="column of the prompt, a text or a conversation; unset, messages or "
        "prompt, whichever a row has",
    )
    template_arguments: Name | None = Field(
        default=None,
        description="column of keyword arguments of the chat template, over those of "
        "data.template_arguments",
    )
    tools: Name | None = Field(
        default=None, description="column of the tools the chat template lists, JSON schemas"
    )


class DataSettings(Settings):
    train: Name = Field(
        description="a .jsonl or .parquet file, or the name of a dataset on the hub"
    )
    held_out: Name | None = Field(default=None, description="prompts to evaluate on, given alike")
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="share of the train prompts held out, when held_out is not given",
    )
    subset: Name | None = Field(default=None, description="configuration of a hub dataset")
    train_split: Name = Field(default="train", description="split of a hub dataset to train on")
    held_out_split: Name = Field(default="test", description="split of a hub dataset held_out")
    revision: Name | None = Field(default=None, description="revision of hub datasets")
    columns: ColumnSettings = Field(default_factory=ColumnSettings)
    max_prompt_tokens: PositiveInt = Field(default=2048, description="longest prompt, rendered")
    over_long: Literal["error", "drop"] = Field(
        default="error",
        description="what happens to a longer prompt: refused, or left out and counted; "
        "none is ever cut",
    )
    final_assistant: Literal["error", "drop"] = Field(
        default="error",
        description="what happens to an assistant's turn at a conversation's end: refused, or "
        "left out for the student to write",
    )
    template_arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="keyword arguments of the chat template, such as enable_thinking",
    )

    @model_validator(mode="after")
    def _one_source(self) -> DataSettings:
        if self.held_out is not None and self.held_out_fraction > 0:
            raise ValueError("held_out and held_out_fraction exclude each other")
        return self
