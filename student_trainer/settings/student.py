"""Settings of the student: its model, adapters and chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from student_trainer.settings.base import Positive, PositiveInt, Settings


class LoraSettings(Settings):
    rank: PositiveInt = Field(default=16, description="rank of the update")
    alpha: Positive = Field(default=32.0, description="the update is scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="dropout on the adapter's input"
    )
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        default="all-linear",
        description="modules that get an adapter; all-linear leaves out the head",
    )
    merge_final: bool = Field(
        default=True, description="merge adapters into the base weights of the final model"
    )


class StudentSettings(Settings):
    model: str = Field(min_length=1, description="directory or hub id of a causal language model")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="dtype of weights and activations; for bfloat16 the optimiser keeps "
        "float32 master weights and adds gradients up in float32",
    )
    device: str = Field(
        default="auto", description="cpu, cuda, cuda:N; auto takes CUDA when there is one"
    )
    chat_template: Path | None = Field(
        default=None,
        description="file of a Jinja chat template in place of the tokenizer's own; it is "
        "saved with the model",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward"
    )
    lora: LoraSettings | None = Field(
        default=None, description="train adapters instead of the weights"
    )
