"""The longest sequence that a configuration of transformers states, and what may be asked for."""

from __future__ import annotations

from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.models.text_model import max_length
from transformers import (
    DeepseekV3Config,
    Gemma3Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    Mistral3Config,
    Qwen2Config,
)


def rope(kind: str, factor: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "factor": factor, "rope_theta": 1e4, **more}


# Name -> configuration, the length that it states, the longest that may be asked for.
CASES: dict[str, tuple[Any, int, int]] = {
    "plain": (LlamaConfig(max_position_embeddings=2048), 2048, 2048),
    "another name": (GPT2Config(n_positions=700), 700, 700),
    "yarn beside the original length": (
        Qwen2Config(
            max_position_embeddings=32768,
            rope_parameters=rope("yarn", 4.0, original_max_position_embeddings=32768),
        ),
        131072,
        131072,
    ),
    "yarn with the length it reaches": (
        DeepseekV3Config(
            max_position_embeddings=163840,
            rope_parameters=rope("yarn", 40.0, original_max_position_embeddings=4096),
        ),
        163840,
        163840,
    ),
    "yarn by default": (GptOssConfig(), 131072, 131072),
    "linear": (LlamaConfig(max_position_embeddings=2048, rope_parameters=rope("linear", 2.0)),
               2048, 4096),
    "dynamic": (LlamaConfig(max_position_embeddings=2048, rope_parameters=rope("dynamic", 4.0)),
                2048, 8192),
    "nested": (Gemma3Config(text_config={"max_position_embeddings": 8192}), 8192, 8192),
    "nested yarn": (
        Mistral3Config(text_config={
            "model_type": "mistral", "max_position_embeddings": 1024,
            "rope_parameters": rope("yarn", 8.0, original_max_position_embeddings=1024)}),
        8192, 8192),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_length_of_a_configuration(case: str) -> None:
    config, stated, most = CASES[case]
    assert max_length(config, None, "engine.max_length") == stated
    assert max_length(config, most, "engine.max_length") == most
    with pytest.raises(ConfigurationError, match=f"use 2 to {most}"):
        max_length(config, most + 1, "engine.max_length")


def test_a_length_that_is_not_stated_has_to_be_set() -> None:
    config = MambaConfig()
    with pytest.raises(ConfigurationError, match="does not state") as refused:
        max_length(config, None, "engine.max_length")
    assert refused.value.fix == "set engine.max_length, in tokens"
    assert max_length(config, 5000, "engine.max_length") == 5000
