"""The student's files become a model of transformers: its folder, its class, what is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from teacher_proto.errors import ConfigurationError, first_line
from teacher_proto.models.folder import MODEL_FILES, model_folder
from teacher_proto.models.text_model import (
    TextModel,
    class_with_images,
    text_model,
)
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

MODEL = "student.model"
ADAPTER = "adapter_config.json"
OTHER_WEIGHTS = "*.bin"
CHAT_TEMPLATE, OLD_CHAT_TEMPLATE = "chat_template.jinja", "chat_template.json"
# What a model for text and images is read with, beside its tokenizer.
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
    CHAT_TEMPLATE,
    OLD_CHAT_TEMPLATE,
)


def student_folder(model: str) -> Path:
    """The folder of the student's model; files of a hub model are fetched first.

    Raises:
        ConfigurationError: there is none, or it holds a LoRA adapter and not a model.
    """
    folder = model_folder(model, where=MODEL)
    if (folder / ADAPTER).is_file():
        raise _is_adapter(model, folder)
    if not any(folder.glob("*.safetensors")):
        folder = model_folder(model, (*MODEL_FILES, OTHER_WEIGHTS), where=MODEL)
    return folder


def load_network(
    source: Path, dtype: torch.dtype | Literal["auto"], shown: str, attention: str = "auto"
) -> tuple[Any, TextModel]:
    """The model of a folder, and its language model, which alone is trained.

    The parts of a model for text and images keep their weights, and are saved with it.

    Args:
        shown: the model's name in errors.
        attention: as ``student.attention``.

    Raises:
        ConfigurationError: it cannot be loaded, is no causal language model, or has no such
            attention here.
    """
    try:
        config = AutoConfig.from_pretrained(source)
        named = getattr(config, "architectures", None)
        loader = class_with_images(config, transformers, MODEL) if named else None
        chosen = {} if attention == "auto" else {"attn_implementation": attention}
        model = (loader or AutoModelForCausalLM).from_pretrained(source, dtype=dtype, **chosen)
    except ConfigurationError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        if attention != "auto" and _is_about(error, attention):
            raise ConfigurationError(
                f"cannot load {shown!r} with {attention}: {first_line(error)}",
                where="student.attention",
                fix="install what it names, or leave student.attention out",
            ) from error
        raise cannot_load(shown, error) from error
    text = text_model(model)
    for name in text.unused:
        model.get_submodule(name).requires_grad_(False)
    return model, text


def _is_about(error: Exception, attention: str) -> bool:
    """Whether an error of loading is about the attention that was asked for: it names it, or a
    part of its name (``flash``), or a package that is missing."""
    text = str(error).lower()
    names = (attention, attention.split("_")[0])
    return isinstance(error, ImportError) or any(name in text for name in names)


def save_processor_files(source: Path, directory: Path) -> None:
    """Copies what a model's processor is read from to ``directory``, where a model and a
    tokenizer were saved; what they wrote stays."""
    for name in PROCESSOR_FILES:
        # A processor would read its old template beside the tokenizer's, and refuse both.
        second = name == OLD_CHAT_TEMPLATE and (directory / CHAT_TEMPLATE).exists()
        if (source / name).is_file() and not (directory / name).exists() and not second:
            shutil.copyfile(source / name, directory / name)


def cannot_load(source: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"cannot load {source!r}: {first_line(error)}",
        where=MODEL,
        fix="give a directory or hub id of a causal language model with its tokenizer",
    )


def _is_adapter(model: str, folder: Path) -> ConfigurationError:
    try:
        base = json.loads((folder / ADAPTER).read_text()).get("base_model_name_or_path")
    except (OSError, ValueError):
        base = None
    named = f"of {base!r}" if base else "that does not name its base"
    return ConfigurationError(
        f"{model!r} is a LoRA adapter {named}, not a model",
        where=MODEL,
        fix=f"merge it (student-trainer merge {model} --output FOLDER) and train FOLDER, or train "
        "new adapters on the base (student.lora)",
    )


def save_network(
    network: Any, directory: Path, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Saves a model with its generation settings as they were loaded.

    Args:
        tensors: by name, what is saved in place of the model's own ``state_dict``.

    Published settings may contradict themselves, such as a temperature without ``do_sample``.
    transformers loads them, and some of its versions then refuse to save the model.
    """
    own = getattr(network, "generation_config", None)
    if own is None or not network.can_generate():
        network.save_pretrained(directory, state_dict=tensors)
        return
    network.generation_config = GenerationConfig()
    try:
        network.save_pretrained(directory, state_dict=tensors)
    finally:
        network.generation_config = own
    own.to_json_file(directory / "generation_config.json")
