"""Settings of the student: its model, adapters and chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from student_trainer.settings.base import PathOrName, Positive, PositiveInt, Settings


class LoraSettings(Settings):
    """LoRA adapters, trained instead of the weights."""

    rank: PositiveInt = Field(default=16, description="Rank of an adapter's update.")
    alpha: Positive = Field(default=32.0, description="The update is scaled by alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of an adapter's inputs that is dropped in training."
    )
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        default="all-linear",
        description="Names of the modules that get an adapter; `all-linear` is every linear "
        "layer of the language model but the LM head and the routers of experts.",
    )
    merge_final: bool = Field(
        default=True, description="Merge the adapters into the base weights in the final model."
    )


class StudentSettings(Settings):
    """The student model."""

    model: PathOrName = Field(description="Directory or hub name of a causal language model.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Data type of weights and activations. With `bfloat16` the optimizer keeps "
        "float32 master weights and sums gradients in float32.",
    )
    device: str = Field(
        default="auto",
        description="`cpu`, `cuda` or `cuda:N`; `auto` takes CUDA where there is a GPU.",
    )
    chat_template: Path | None = Field(
        default=None,
        description="File of a Jinja chat template, used in place of the tokenizer's own and "
        "saved with the model.",
    )
    max_length: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="Tokens of the longest prompt with its response; unset for what the model "
        "states. A model that states none needs it.",
    )
    dropout: bool = Field(
        default=False,
        description="Keep the model's own dropout (and layer dropping) on in updates. Rollouts "
        "never have it, so with it the update reads other logits than those that were sampled. "
        "`lora.dropout` is a setting of its own.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass, which saves memory and costs "
        "time.",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        default="auto",
        description="Implementation of attention, by its name in transformers; `auto` is what it "
        "takes itself. Those of flash attention need `bfloat16`, a GPU and their package, and read "
        "all sequences of a packed micro-batch in one call.",
    )
    packing: Literal["auto", "off"] = Field(
        default="auto",
        description="`auto` reads the sequences of a micro-batch side by side, without padding, "
        "and the prompt of several responses once, where the model can; the start of a run says "
        "where it cannot. `off` pads them.",
    )
    lora: LoraSettings | None = Field(
        default=None,
        description="Train LoRA adapters instead of the weights; unset unless a key of this "
        "section is set.",
    )

    @property
    def needs_flash_attention(self) -> bool:
        return self.attention.startswith("flash_attention")

    @model_validator(mode="after")
    def _flash_attention_has_its_dtype(self) -> StudentSettings:
        if self.needs_flash_attention and self.dtype != "bfloat16":
            raise ValueError(f'attention = "{self.attention}" needs dtype = "bfloat16"')
        return self
