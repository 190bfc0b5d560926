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
    """Names of the columns of a row."""

    prompt: Name | None = Field(
        default=None,
        description="Column of the prompt, a text or a conversation; unset, `messages` or "
        "`prompt`, whichever a row has.",
    )
    template_arguments: Name | None = Field(
        default=None,
        description="Column of a row's own keyword arguments of the chat template; they "
        "override `data.template_arguments`.",
    )
    tools: Name | None = Field(
        default=None,
        description="Column of the tools, as JSON schemas, that the chat template lists.",
    )


class DataSettings(Settings):
    """The prompts (docs/data.md)."""

    train: Name = Field(
        description="A `.jsonl` or `.parquet` file, or the name of a dataset on the hub."
    )
    held_out: Name | None = Field(
        default=None, description="Prompts to evaluate on, named as `data.train` is."
    )
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Share of the training prompts that is held out where `data.held_out` is "
        "unset.",
    )
    subset: Name | None = Field(default=None, description="Configuration of the hub dataset.")
    train_split: Name = Field(default="train", description="Split of the hub dataset to train on.")
    held_out_split: Name = Field(
        default="test", description="Split of the hub dataset that `data.held_out` names."
    )
    revision: Name | None = Field(
        default=None, description="Revision of the hub datasets: a branch, a tag or a commit."
    )
    columns: ColumnSettings = Field(default_factory=ColumnSettings)
    max_prompt_tokens: PositiveInt = Field(
        default=2048,
        description="Tokens of the longest prompt allowed, as the chat template renders it.",
    )
    over_long: Literal["error", "drop"] = Field(
        default="error",
        description="What happens to a longer prompt: it is an error, or it is dropped and "
        "counted. None is ever cut.",
    )
    final_assistant: Literal["error", "drop"] = Field(
        default="error",
        description="What happens to an assistant's turn at the end of a conversation: it is an "
        "error, or it is dropped so that the student writes its own.",
    )
    template_arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="Keyword arguments of the chat template, such as `enable_thinking`.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> DataSettings:
        if self.held_out is not None and self.held_out_fraction > 0:
            raise ValueError("held_out and held_out_fraction exclude each other")
        return self
