"""What is loaded, what is refused, and the digest of the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from teacher_proto.errors import ConfigurationError
from teacher_proto.models.weights import weight_files, weights_digest
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from teacher_server.engines.torch.transformers import TransformersEngine
from tests.engines.conformance import running


@pytest.fixture
def copied(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


async def refusal(model: Path | str, **settings: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        async with running(TransformersEngine(str(model), device="cpu", **settings)):
            pass
    return caught.value


async def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    error = await refusal(tmp_path / "nothing")
    assert "there is no such directory" in str(error)
    assert str(tmp_path / "nothing") in error.where
    assert error.fix


async def test_a_hub_model_that_is_not_here() -> None:
    error = await refusal("nobody/no-such-model")
    assert "neither a directory here nor a model the hub gives us" in error.what


async def test_a_file_is_not_a_model(copied: Path) -> None:
    assert "no such directory" in (await refusal(copied / "config.json")).what


async def test_a_directory_without_a_configuration(tmp_path: Path) -> None:
    assert "config.json" in (await refusal(tmp_path)).what


async def test_a_model_that_is_not_a_language_model(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, vocab_size=50)  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    error = await refusal(tmp_path)
    assert "not a causal language model" in error.what
    assert "BertModel" in error.what


async def test_weights_that_are_not_safetensors(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    assert "no safetensors weights" in (await refusal(copied)).what


async def test_an_index_that_names_missing_files(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in (await refusal(copied)).what


async def test_weights_cut_short(copied: Path) -> None:
    content = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert str(copied) in str(await refusal(copied))


async def test_code_of_a_checkpoint_is_never_run(copied: Path) -> None:
    marker = copied / "ran"
    (copied / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((copied / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (copied / "config.json").write_text(json.dumps(config))
    assert "cannot be used" in (await refusal(copied)).what
    assert not marker.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"max_length": 513}, "513 is not a length"),
        ({"max_length": 1}, "1 is not a length"),
    ],
)
async def test_settings_the_model_cannot_serve(
    tiny_model_dir: Path, settings: dict[str, Any], message: str
) -> None:
    assert message in (await refusal(tiny_model_dir, **settings)).what


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "unknown device"), ("meta", "not supported"), ("cuda:99", "there is no device")],
)
async def test_devices_that_are_not_there(tiny_model_dir: Path, device: str, message: str) -> None:
    engine = TransformersEngine(str(tiny_model_dir), device=device)
    with pytest.raises(ConfigurationError, match=message):
        async with running(engine):
            pass


async def test_logits_that_are_not_finite(tiny_model_dir: Path, copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    assert "not finite" in (await refusal(copied)).what


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_the_dtype_is_the_one_asked_for(tiny_model_dir: Path, dtype: str) -> None:
    async with running(
        TransformersEngine(str(tiny_model_dir), dtype=dtype, device="cpu")
    ) as engine:
        assert engine.description.dtype == dtype


async def test_the_description(tiny_model_dir: Path) -> None:
    engine = TransformersEngine(str(tiny_model_dir), device="cpu", max_length=100)
    async with running(engine):
        description = engine.description
        assert description.engine == "transformers"
        assert description.model == str(tiny_model_dir)
        assert description.dtype == "float32"
        assert description.quantization == ""
        assert description.adapter_digest == ""
        assert description.vocabulary_size == 320
        assert description.max_length == 100
        assert description.weights_digest == weights_digest(weight_files(tiny_model_dir))


def test_the_digest_does_not_depend_on_sharding(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = weight_files(tmp_path)
    assert len(shards) > 1
    assert weights_digest(shards) == weights_digest(weight_files(tiny_model_dir))


def test_the_digest_sees_every_byte_name_and_dtype(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6, dtype=torch.float32), "b": torch.ones(2, 3)}
    variants = [
        tensors,
        {**tensors, "a": tensors["a"] + torch.tensor([0, 0, 0, 0, 0, 1e-6])},
        {"c": tensors["a"], "b": tensors["b"]},
        {**tensors, "b": torch.ones(3, 2)},
        {**tensors, "a": tensors["a"].view(torch.int32)},
        {"a": tensors["a"]},
    ]
    digests = set()
    for number, variant in enumerate(variants):
        path = tmp_path / f"{number}.safetensors"
        save_file(variant, path)
        digests.add(weights_digest([path]))
    assert len(digests) == len(variants)
