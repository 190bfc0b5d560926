"""Which of vLLM's arguments pass through, and what is said of those that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError

from teacher_server.engines.vllm.options import CPU_CACHE_BYTES, engine_arguments

KNOWN = {
    *("tensor_parallel_size", "dtype", "max_num_seqs", "speculative_config", "block_size"),
    "hf_overrides",
}


def arguments(
    options: dict[str, Any],
    *,
    model: str = "/m",
    deterministic: bool = False,
    on_cpu: bool = True,
) -> Any:
    return engine_arguments(
        model=model,
        dtype="float32",
        max_length=128,
        max_batch_tokens=64,
        deterministic=deterministic,
        options=options,
        known=KNOWN,
        on_cpu=on_cpu,
    )


def test_options_pass_through_and_ours_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    given = arguments({"tensor_parallel_size": 2, "block_size": 16})
    assert given["tensor_parallel_size"] == 2
    assert given["block_size"] == 16
    assert given["max_model_len"] == 128
    assert given["max_num_batched_tokens"] == 64
    assert given["max_num_seqs"] == 64
    assert given["kv_cache_memory_bytes"] == CPU_CACHE_BYTES
    assert given["load_format"] == "safetensors"
    assert "kv_cache_memory_bytes" not in arguments({}, on_cpu=False)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    assert "kv_cache_memory_bytes" not in arguments({})


YARN = {
    "max_position_embeddings": 64,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("nested", [False, True], ids=["text", "with images"])
def test_a_length_that_yarn_reaches_is_said_where_the_model_has_it(
    tmp_path: Path, nested: bool
) -> None:
    config = {"text_config": YARN, "max_position_embeddings": 64} if nested else YARN

    def overrides(own: dict[str, Any]) -> Any:
        (tmp_path / "config.json").write_text(json.dumps(config))
        options = {"hf_overrides": {"text_config": own} if nested else own}
        found = arguments(options, model=str(tmp_path))["hf_overrides"]
        return found.pop("text_config") if nested else found

    assert overrides({}) == {"max_position_embeddings": 256}
    assert overrides({"x": 1}) == {"max_position_embeddings": 256, "x": 1}
    assert overrides({"max_position_embeddings": 99}) == {"max_position_embeddings": 99}


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("tensor_paralel_size", "tensor_parallel_size"),
        ("dtype", "engine.dtype"),
        ("speculative_config", "nothing is generated"),
        ("trust_remote_code", "vLLM knows by itself"),
        ("load_format", "safetensors"),
    ],
)
def test_refused_options_say_what_to_do(option: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        arguments({option: 1})
    assert refused.value.where == f"engine.vllm.{option}"
    assert says in str(refused.value)


def test_deterministic_reads_sequences_alone() -> None:
    given = arguments({}, deterministic=True)
    assert given["max_num_seqs"] == 1
    assert given["enable_prefix_caching"] is False
    with pytest.raises(ConfigurationError, match="deterministic"):
        arguments({"max_num_seqs": 8}, deterministic=True)
