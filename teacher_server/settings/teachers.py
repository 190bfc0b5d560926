"""What is served, and how models are run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from teacher_proto.program.files import expand_home
from teacher_proto.program.settings_types import Settings

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class EngineSettings(Settings):
    """How models are run. A teacher may set any of these for itself."""

    name: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="`transformers` for a CPU or one GPU, `vllm` for production (docs/vllm.md).",
    )
    device: str = Field(
        default="auto",
        description="`cpu`, `cuda` or `cuda:N`; `auto` takes CUDA where there is a GPU. vLLM "
        "takes `auto` alone.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Data type of weights and activations; `auto` is the checkpoint's.",
    )
    deterministic: bool = Field(
        default=False,
        description="Equal requests give equal bytes, whatever else is computed with them; slower.",
    )
    max_batch_tokens: int = Field(default=8192, ge=1, description="Tokens of one forward pass.")
    max_length: int | None = Field(
        default=None,
        ge=2,
        description="Tokens of the longest prompt plus continuation; unset, the model's own limit.",
    )
    vllm: dict[str, Any] = Field(
        default_factory=dict,
        description="vLLM's own engine arguments by their names, passed through (docs/vllm.md).",
    )

    @model_validator(mode="after")
    def _options_fit_the_engine(self) -> Self:
        if self.vllm and self.name != "vllm":
            raise ValueError(f"options of vllm are set and engine.name is {self.name}")
        return self


class TeacherSettings(Settings):
    """One teacher, by the name that requests use. An unset key is taken from ``engine``."""

    model: Annotated[str, AfterValidator(expand_home)] = Field(
        min_length=1,
        description="A folder with safetensors and `tokenizer.json`, a hub name, or the folder "
        "of a LoRA adapter.",
    )
    base: Name | None = Field(
        default=None,
        description="Of an adapter, the teacher that it belongs to; unset, the one whose model "
        "the adapter's folder names.",
    )
    device: str | None = Field(default=None, description="As `engine.device`.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(
        default=None, description="As `engine.dtype`."
    )
    deterministic: bool | None = Field(default=None, description="As `engine.deterministic`.")
    max_batch_tokens: int | None = Field(
        default=None, ge=1, description="As `engine.max_batch_tokens`."
    )
    max_length: int | None = Field(default=None, ge=2, description="As `engine.max_length`.")
    vllm: dict[str, Any] | None = Field(
        default=None, description="As `engine.vllm`, which it replaces whole."
    )

    def engine(self, shared: EngineSettings) -> EngineSettings:
        """The shared engine settings with this teacher's own on top."""
        return shared.model_copy(update=self.own_engine_settings)

    @property
    def own_engine_settings(self) -> dict[str, Any]:
        """The engine settings that this teacher sets for itself."""
        return self.model_dump(exclude={"model", "base"}, exclude_none=True)
