"""Other architectures, random and tiny: softcaps, windows, learned positions, state spaces."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from teacher_server.engines.torch.transformers import TransformersEngine
from tests.engines.conformance import (
    Subject,
    assert_equals_reference,
    make_job,
    running,
)
from tests.support.models import save_model
from tests.support.reference import plain_logits

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "initializer_range": 0.15,
}
MAMBA_SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "state_size": 8,
    "initializer_range": 0.15,
}
DYNAMIC_ROPE = {
    "rope_type": "dynamic",
    "rope_theta": 10000.0,
    "factor": 4.0,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with tied embeddings": ("Llama", SIZES | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", SIZES),
    "qwen3": ("Qwen3", SIZES),
    "gemma2: softcaps and alternating windows": ("Gemma2", SIZES | {"sliding_window": 16}),
    "mistral with a window": ("Mistral", SIZES | {"sliding_window": 16}),
    "gpt2: learned positions": ("GPT2", GPT2_SIZES),
    "gpt-neox": ("GPTNeoX", SIZES),
    "granite: scaled logits": ("Granite", SIZES | {"logits_scaling": 3.0}),
    "cohere: scaled logits": ("Cohere", SIZES | {"logit_scale": 0.25}),
    "phi: a head with a bias": ("Phi", SIZES),
    "dynamic rope: numbers depend on the longest neighbour": (
        "Llama",
        SIZES | {"max_position_embeddings": 32, "rope_parameters": DYNAMIC_ROPE},
    ),
    "mamba: no attention cache": ("Mamba", MAMBA_SIZES),
}


def build(name: str, sizes: dict[str, Any], directory: Path) -> Path:
    config = getattr(transformers, f"{name}Config")(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(config)
        if getattr(model.get_output_embeddings(), "bias", None) is not None:
            torch.nn.init.normal_(model.get_output_embeddings().bias)
    return save_model(model, directory)


@pytest.mark.parametrize("case", CASES)
async def test_an_architecture_equals_its_plain_forward(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Flat, grouped with equal and unequal prompts, beyond the window, and in blocks."""
    name, sizes = CASES[case]
    directory = build(name, sizes, tmp_path / "model")
    stateful = name == "Mamba"
    # Dynamic frequencies depend on how many tokens are read; the last one never is.
    short = "dynamic rope" in case
    length = 256 if stateful else None
    subject = Subject(
        lambda **settings: TransformersEngine(
            str(directory), device="cpu", max_length=length, **settings
        ),
        plain_logits(directory, read_last=not short),
        vocabulary_size=300,
    )
    jobs = [
        make_job(1, 300, prompt=5, lengths=(7,)),
        make_job(2, 300, prompt=40, lengths=(25, 3, 14, 25)),
        make_job(3, 300, prompt=33, lengths=(30, 8)),
        make_job(4, 300, prompt=37, lengths=(11, 12, 13), temperature=0.7),
        make_job(5, 300, prompt=90, lengths=(60,)),
    ]
    for settings in ({}, {"max_batch_tokens": 32, "head_block_rows": 5}):
        async with running(subject.factory(**settings)) as engine:
            assert engine.description.max_length == (32 if short else 256)
            for job in jobs:
                assert_equals_reference(subject, job, await engine.score(job))
            # Together, prompts of different lengths share a pass, padded on the left.
            together = [jobs[3], jobs[1], jobs[2]]
            results = await asyncio.gather(*(engine.score(job) for job in together))
            for job, result in zip(together, results, strict=True):
                assert_equals_reference(subject, job, result)
                alone = sum(len(job.prompt_ids) + len(s.token_ids) - 1 for s in job.spans)
                shared = result.computed_tokens < alone
                assert shared != (stateful or short), "prompts are shared where they can be"
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING and "teacher" in r.name]
