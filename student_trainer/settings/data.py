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
        description="column of the prompt, a text or a conversation; if unset, messages or "
        "prompt, whichever a row has",
    )
    template_arguments: Name | None = Field(
        default=None,
        description="column of keyword arguments of the chat template, which override "
        "data.template_arguments",
    )
    tools: Name | None = Field(
        default=None, description="column of the tools for the chat template, JSON schemas"
    )


class DataSettings(Settings):
    train: Name = Field(
        description="a .jsonl or .parquet file, or the name of a data set on the hub"
    )
    held_out: Name | None = Field(
        default=None, description="prompts to evaluate on, named as train"
    )
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="share of the train prompts that is held out, if held_out is unset",
    )
    subset: Name | None = Field(default=None, description="configuration of a data set on the hub")
    train_split: Name = Field(
        default="train", description="split of a data set on the hub to train on"
    )
    held_out_split: Name = Field(
        default="test", description="split of a data set on the hub to hold out"
    )
    revision: Name | None = Field(default=None, description="revision of data sets on the hub")
    columns: ColumnSettings = Field(default_factory=ColumnSettings)
    max_prompt_tokens: PositiveInt = Field(
        default=2048, description="longest prompt, after rendering"
    )
    over_long: Literal["error", "drop"] = Field(
        default="error",
        description="error refuses a longer prompt, drop leaves it out and counts it; "
        "no prompt is ever cut",
    )
    final_assistant: Literal["error", "drop"] = Field(
        default="error",
        description="an assistant's turn at the end of a conversation: error refuses it, drop "
        "leaves it out for the student to write",
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
