"""Checkpoints for text and images (...ForConditionalGeneration), scored on text alone."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from teacher_proto.errors import ConfigurationError
from transformers import BartConfig, BartForConditionalGeneration

from teacher_server.engines.torch.transformers import TransformersEngine
from tests.engines.adapted import Adapted
from tests.engines.conformance import Subject, assert_equals_reference, make_job, running
from tests.support.adapters import make_adapter, merged
from tests.support.models import WITH_IMAGES, make_model_with_images
from tests.support.reference import plain_logits


def whole_model(family: str, directory: Path) -> Any:
    """The model as its checkpoint names it, with the parts for images."""
    name = f"{family}ForConditionalGeneration"
    return getattr(transformers, name).from_pretrained(directory, dtype=torch.float32)


@pytest.mark.parametrize("family", WITH_IMAGES)
async def test_its_language_model_is_scored(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = make_model_with_images(family, tmp_path / "model")
    subject = Subject(
        lambda **settings: TransformersEngine(str(directory), device="cpu", **settings),
        plain_logits(whole_model(family, directory)),
        vocabulary_size=320,
    )
    jobs = [
        make_job(1, 320, prompt=5, lengths=(7,)),
        make_job(2, 320, prompt=40, lengths=(25, 3, 14, 25)),
        make_job(3, 320, prompt=33, lengths=(30, 8)),
    ]
    caplog.set_level(logging.INFO, logger="teacher_server")
    async with running(subject.factory(max_batch_tokens=64)) as engine:
        assert engine.description.max_length == 256
        assert engine.description.vocabulary_size == 320
        for job in jobs:
            assert_equals_reference(subject, job, await engine.score(job))
        for job, result in zip(
            jobs, await asyncio.gather(*(engine.score(job) for job in jobs)), strict=True
        ):
            assert_equals_reference(subject, job, result)
    (said,) = [r.getMessage() for r in caplog.records if "language model" in r.getMessage()]
    assert "vis" in said
    assert "M parameters" in said


async def test_an_adapter_of_its_language_model(tmp_path: Path) -> None:
    """Gemma 3 and Llava name their tensors otherwise in files than in memory."""
    directory = make_model_with_images("Llava", tmp_path / "model")
    model = whole_model("Llava", directory)
    adapter = make_adapter(tmp_path / "adapter", model, target_modules=("q_proj", "down_proj"))
    subject = Subject(
        lambda: Adapted(TransformersEngine(str(directory), device="cpu"), adapter),
        plain_logits(merged(whole_model("Llava", directory), adapter)),
        vocabulary_size=320,
    )
    job = make_job(2, 320, prompt=40, lengths=(25, 3))
    async with running(subject.factory()) as engine:
        assert_equals_reference(subject, job, await engine.score(job))


async def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path) -> None:
    config = BartConfig(vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1,
                        encoder_attention_heads=2, decoder_attention_heads=2,
                        encoder_ffn_dim=16, decoder_ffn_dim=16)  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="BartForConditionalGeneration"):
        async with running(TransformersEngine(str(tmp_path), device="cpu")):
            pass


async def test_a_class_that_this_transformers_lacks_is_named(tmp_path: Path) -> None:
    directory = make_model_with_images("Mistral3", tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["Mistral99ForConditionalGeneration"]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="has no Mistral99") as refused:
        async with running(TransformersEngine(str(directory), device="cpu")):
            pass
    assert "upgrade transformers" in refused.value.fix
