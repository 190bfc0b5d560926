"""The text part of a model of transformers, and the longest sequence that it takes.

Models for text and images wrap a language model; only that one is used here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from teacher_proto.errors import ConfigurationError

# Names under which configurations state the longest sequence.
LENGTH_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "seq_len",
    "context_length",
    "max_target_positions",
    "model_max_length",
)
# Kinds of rotary embeddings that take sequences longer than the stated length by ``factor``.
STRETCHED_ROPE = ("linear", "dynamic", "ntk")
CAUSAL, WITH_IMAGES = ("ForCausalLM", "LMHeadModel"), "ForConditionalGeneration"


@dataclass(frozen=True)
class TextModel:
    """The parts of a causal language model of transformers.

    Attributes:
        decoder: takes ids; its output holds the hidden states after the final norm.
        head: the output projection; None for a model without one.
        unused: names of the parts of the whole model that text does not use, with their
            parameters' number; empty for a model of text alone.
    """

    decoder: Any
    head: Any
    unused: Mapping[str, int]


def text_model(model: Any) -> TextModel:
    """The language model inside a model of transformers, or the model itself."""
    head = model.get_output_embeddings()
    if not is_composite(model.config):
        return TextModel(model.base_model, head, {})
    decoder = model.get_decoder()
    if getattr(decoder, "lm_head", None) is not None:  # it is a language model with its head
        head, decoder = decoder.lm_head, decoder.model
    used = {id(p) for part in (decoder, head) if part is not None for p in part.parameters()}
    return TextModel(decoder, head, dict(_unused(model, "", used)))


def _unused(module: Any, name: str, used: set[int]) -> Iterator[tuple[str, int]]:
    """The largest modules none of whose parameters are used."""
    own = list(module.parameters())
    if own and not any(id(parameter) in used for parameter in own):
        yield name, sum(parameter.numel() for parameter in own)
        return
    for child, inner in module.named_children():
        if any(id(parameter) not in used for parameter in inner.parameters()):
            yield from _unused(inner, f"{name}.{child}" if name else child, used)


def is_composite(config: Any) -> bool:
    """Whether the configuration wraps that of a text model."""
    return config.get_text_config() is not config


def describe_unused(unused: Mapping[str, int]) -> str:
    """One sentence on the parts that text does not use."""
    size = sum(unused.values()) / 1e6
    return f"only its language model is used; {', '.join(unused)} ({size:.0f} M parameters) is not"


def class_with_images(config: Any, library: Any, where: str) -> Any:
    """The class of a decoder for text and images; None where the model is for text alone.

    Args:
        library: the module transformers.

    Raises:
        ConfigurationError: it is no causal language model, or the library lacks its class.
    """
    names = list(getattr(config, "architectures", None) or [])
    causal = [str(name) for name in names if name.endswith((*CAUSAL, WITH_IMAGES))]
    encodes = any(
        getattr(part, "is_encoder_decoder", False) for part in (config, config.get_text_config())
    )
    if not causal or encodes:
        raise ConfigurationError(
            f"it is not a causal language model (architectures: {names})",
            where=where,
            fix="give a ...ForCausalLM checkpoint, or a decoder-only ...ForConditionalGeneration",
        )
    if not causal[0].endswith(WITH_IMAGES):
        return None
    found = getattr(library, causal[0], None)
    if found is None:
        raise ConfigurationError(
            f"this transformers ({library.__version__}) has no {causal[0]}",
            where=where,
            fix="upgrade transformers, or give another checkpoint",
        )
    return found


def max_length(config: Any, asked: int | None, where: str) -> int:
    """Tokens of the longest sequence: ``asked``, or what the model states when it is None.

    Args:
        config: of the model; its text part is read.
        where: the setting that asks.

    Raises:
        ConfigurationError: the model states no length and none is asked for, or it cannot
            take the length that is asked for.
    """
    stated, most = stated_length(config.get_text_config())
    if asked is None:
        if stated is None:
            raise ConfigurationError(
                "the model does not state its maximum length",
                where=where,
                fix=f"set {where}, in tokens",
            )
        return stated
    if asked < 2 or (most is not None and asked > most):
        raise ConfigurationError(
            f"{asked} is not a length the model can serve",
            where=where,
            fix=f"use 2 to {most}" if most is not None else "use 2 or more",
        )
    return asked


def stated_length(config: Any) -> tuple[int | None, int | None]:
    """The length that a text configuration states, and the longest that may be asked for.

    YaRN reaches ``factor`` times its original length, whether or not
    ``max_position_embeddings`` was raised with it. Linear and dynamic scaling leave open
    which of the two the configuration states, so the longer one has to be asked for.
    """
    stated = next(
        (
            int(value)
            for name in LENGTH_FIELDS
            if isinstance(value := getattr(config, name, None), int | float) and value > 0
        ),
        None,
    )
    if stated is None:
        return None, None
    most = stated
    for section in rope_sections(config):
        factor = float(section.get("factor") or 1.0)
        kind = section.get("rope_type", section.get("type"))
        if kind == "yarn":
            original = section.get("original_max_position_embeddings") or stated
            stated = max(stated, int(original * factor))
        elif kind in STRETCHED_ROPE:
            most = max(most, int(stated * factor))
    return stated, max(stated, most)


def rope_sections(config: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of the rotary embeddings; several where kinds of layers have their own."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if isinstance(parameters, Mapping):
        yield parameters
        yield from (value for value in parameters.values() if isinstance(value, Mapping))
