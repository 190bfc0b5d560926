"""Loads a model of transformers from a directory or a hub id; every refusal names a remedy."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from teacher_proto.errors import ConfigurationError
from teacher_proto.models.text_model import (
    TextModel,
    class_with_images,
    describe_unused,
    rope_sections,
    text_model,
)
from teacher_proto.models.text_model import max_length as longest
from teacher_proto.models.weights import weight_files, weights_digest
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from teacher_server.engines.checkpoint import check_dtype, resolve

logger = logging.getLogger(__name__)

# Kinds of rotary embeddings that depend on the longest sequence of the batch.
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
# Words in the names of settings that limit how far back a layer attends.
REACH_WORDS = ("window", "attention_chunk", "local_attention", "index_topk")
# Settings with such a name that limit nothing: the layers that a window would apply to.
UNBOUNDED = {"max_window_layers"}
PLAIN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model on its device, in evaluation mode.

    Attributes:
        model: as its checkpoint names it, perhaps with parts for images.
        text: its language model, which alone is used.
        text_config: the configuration of the language model itself.
        weights_digest: sha256 in hex (``teacher_proto.models.weights``).
        quantization: name of the method; empty for none.
        max_length: tokens of prompt and continuation.
        cacheable: every layer has plain attention, full or sliding, and its cache.
        full_attention: every layer attends to everything before a token.
        alone: its numbers depend on the batch, so sequences must run alone.
    """

    model: Any
    text: TextModel
    text_config: Any
    weights_digest: str
    quantization: str
    max_length: int
    cacheable: bool
    full_attention: bool
    alone: bool


def load_model(model: str, *, dtype: str, device: str, max_length: int | None) -> LoadedModel:
    """Loads safetensors weights and never runs code of the checkpoint.

    ``dtype`` and ``device`` as in ``TransformersEngine``.

    Raises:
        ConfigurationError: the model, dtype, device or length cannot be served.
    """
    check_dtype(dtype)
    torch_device = parse_device(device)
    directory = resolve(model)
    config = _read_config(model, directory)
    loader = class_with_images(config, transformers, f"model {model}") or AutoModelForCausalLM
    length = longest(config, max_length, "engine.max_length")
    try:
        loaded = loader.from_pretrained(
            directory,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            use_safetensors=True,
        )
        loaded = loaded.to(torch_device).eval().requires_grad_(False)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ConfigurationError(
            f"the model does not fit in the memory of {torch_device}: {error}",
            where=f"model {model}",
            fix="choose a smaller model, a smaller dtype or another device",
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        raise ConfigurationError(
            f"transformers cannot load it: {error}", where=f"model {model}"
        ) from error
    text = text_model(loaded)
    if text.unused:
        logger.info("model %s: %s", model, describe_unused(text.unused))
    _check_rows(loaded, text, f"model {model}")
    text_config = loaded.config.get_text_config()
    quantization = getattr(config, "quantization_config", None) or {}
    if not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    return LoadedModel(
        model=loaded,
        text=text,
        text_config=text_config,
        weights_digest=weights_digest(weight_files(directory)),
        quantization=str(quantization.get("quant_method", "")),
        max_length=length,
        cacheable=has_plain_cache(text_config),
        full_attention=has_full_attention(text_config),
        alone=_rope_type(text_config) in LENGTH_DEPENDENT_ROPE,
    )


def parse_device(device: str) -> torch.device:
    """The torch device of a name; "auto" is the first GPU, or the CPU where there is none.

    Raises:
        ConfigurationError: the device is unknown, not supported or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(
            f"unknown device {device!r}", where="device", fix="use auto, cpu, cuda or cuda:N"
        ) from error
    if parsed.type not in ("cpu", "cuda"):
        raise ConfigurationError(
            f"device {device!r} is not supported", where="device", fix="use auto, cpu or cuda"
        )
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"there is no device {device!r}: torch sees {torch.cuda.device_count()} GPUs",
            where="device",
            fix="use cpu, or install a torch build for this machine's GPU",
        )
    return parsed


def _read_config(model: str, directory: Path) -> Any:
    where = f"model {model}"
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"its config.json cannot be used: {error}",
            where=where,
            fix="give a checkpoint of an architecture that transformers knows by itself",
        ) from error
    weight_files(directory)
    return config


def _check_rows(model: Any, text: TextModel, where: str) -> None:
    """Refuses a model that has a logit for an id that it cannot read."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    logits = int(getattr(getattr(text.head, "weight", None), "shape", (0,))[0])
    if logits > rows:
        raise ConfigurationError(
            f"it has {logits} logits and only {rows} rows of its embedding",
            where=where,
            fix="resize its embedding (resize_token_embeddings) and save it",
        )


def has_plain_cache(config: Any) -> bool:
    """Whether every layer of the model's cache is full or sliding attention."""
    if not set(getattr(config, "layer_types", None) or ()) <= PLAIN_LAYERS:
        return False
    if getattr(config, "attention_chunk_size", None) is not None:
        return False
    layers = DynamicCache(config=config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def has_full_attention(config: Any) -> bool:
    """Whether every layer attends to everything before a token, as far as the config shows.

    Older models have windows that the cache's kinds of layers do not show (GPT-Neo's
    ``window_size``), so every setting with the name of a window counts as one.
    """
    layers = DynamicCache(config=config).layers
    bounded = [
        name
        for name, value in config.to_dict().items()
        if value and name not in UNBOUNDED and any(word in name for word in REACH_WORDS)
    ]
    return not bounded and all(type(layer) is DynamicLayer for layer in layers)


def _rope_type(config: Any) -> str:
    kinds = {str(section.get("rope_type", "default")) for section in rope_sections(config)}
    return next(iter(sorted(kinds & LENGTH_DEPENDENT_ROPE)), "default")
