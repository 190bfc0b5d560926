"""vLLM with models for text and images, stretched lengths, and none at all."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from teacher_proto.errors import ConfigurationError
from teacher_proto.tokenizer_hash import tokenizer_hash
from transformers import (
    AutoTokenizer,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from student_trainer.settings.student import StudentSettings
from student_trainer.student.tokenizer import load_tokenizer as load_student_tokenizer
from teacher_server.teachers.tokenizer import load_tokenizer
from tests.engines.adapted import Adapted
from tests.engines.conformance import Subject, assert_equals_reference, make_job, running
from tests.engines.vllm_subjects import vllm_engine
from tests.support.adapters import make_adapter, merged
from tests.support.models import (
    ENGLISH,
    TEXT_SIZES,
    make_model_with_images,
    make_tiny_model,
    save_model,
    train_tokenizer,
)
from tests.support.reference import plain_logits

pytestmark = pytest.mark.vllm

# vLLM imports it for every model with images, and its CPU build brings none that can be imported.
with_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)
# vLLM's attention on a CPU takes heads of 32 and more.
HEADS = {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 64}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}


def whole(family: str, directory: Path) -> Any:
    name = f"{family}ForConditionalGeneration"
    return getattr(transformers, name).from_pretrained(directory, dtype=torch.float32)


@with_torchvision
async def test_the_language_model_of_gemma_3_and_its_adapter(tmp_path: Path) -> None:
    directory = make_model_with_images("Gemma3", tmp_path / "model", **HEADS)
    adapter = make_adapter(
        tmp_path / "adapter", whole("Gemma3", directory), target_modules=(r"q_proj", "down_proj")
    )
    base = Subject(lambda: None, plain_logits(whole("Gemma3", directory)), 320)  # type: ignore[arg-type, return-value]
    adapted = Subject(
        lambda: Adapted(vllm_engine(directory), adapter),
        plain_logits(merged(whole("Gemma3", directory), adapter)),
        320,
    )
    job = make_job(2, 320, prompt=40, lengths=(25, 3))
    async with running(adapted.factory()) as engine:
        assert isinstance(engine, Adapted)
        assert engine.description.max_length == 256
        assert_equals_reference(base, job, await engine.whole.score(job))
        assert_equals_reference(adapted, job, await engine.score(job))


@with_torchvision
async def test_the_language_model_of_mistral_small_3(tmp_path: Path) -> None:
    directory = make_model_with_images("Mistral3", tmp_path / "model", **HEADS)
    subject = Subject(
        lambda: vllm_engine(directory), plain_logits(whole("Mistral3", directory)), 320
    )
    job = make_job(2, 320, prompt=40, lengths=(25, 3))
    async with running(subject.factory()) as engine:
        assert_equals_reference(subject, job, await engine.score(job))


async def test_a_stretched_length(tmp_path: Path) -> None:
    directory = make_tiny_model(
        tmp_path / "model",
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        rope_parameters=YARN,
    )
    subject = Subject(lambda: vllm_engine(directory), plain_logits(directory), 320)
    job = make_job(2, 320, prompt=150, lengths=(60,))
    async with running(subject.factory()) as engine:
        assert engine.description.max_length == 256
        assert_equals_reference(subject, job, await engine.score(job))


async def test_a_model_that_states_no_length_is_not_given_one(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=300, hidden_size=48, num_hidden_layers=1, state_size=8)
    directory = save_model(MambaForCausalLM(config), tmp_path / "model")
    with pytest.raises(ConfigurationError, match="does not state its maximum length"):
        async with running(vllm_engine(directory)):
            pass


def test_a_folder_of_mistral_is_read_by_its_tokenizer_json(tmp_path: Path) -> None:
    """vLLM brings mistral-common, with which transformers would take its tokenizer instead."""
    import mistral_common

    tokenizer = train_tokenizer(ENGLISH, 320)
    config = MistralConfig(**TEXT_SIZES)
    directory = save_model(MistralForCausalLM(config), tmp_path / "model", tokenizer)
    data = Path(mistral_common.__file__).parent / "data"
    shutil.copyfile(next(data.glob("tekken_*.json")), directory / "tekken.json")
    assert not hasattr(AutoTokenizer.from_pretrained(directory), "backend_tokenizer")
    expected = tokenizer_hash(tokenizer.backend_tokenizer.to_str())
    assert load_tokenizer(str(directory)).hash == expected
    student = load_student_tokenizer(StudentSettings(model=str(directory)))
    assert tokenizer_hash(student.backend_tokenizer.to_str()) == expected
    assert student.chat_template == tokenizer.chat_template
