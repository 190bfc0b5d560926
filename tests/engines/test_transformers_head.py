"""The head: memory, ties, values that are not finite, and heads we must refuse."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.logit_treatment import LogitTreatment
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from teacher_server.engines.torch.head import LanguageModelHead, RowRequest
from teacher_server.engines.torch.projection import LinearProjection
from teacher_server.engines.torch.supports import SupportSpec
from teacher_server.engines.torch.transformers import TransformersEngine
from tests.engines.conformance import (
    Subject,
    assert_close,
    assert_equals_reference,
    every_row,
    ids,
    make_job,
    running,
)
from tests.support.models import save_model, tiny_llama_config
from tests.support.reference import plain_logits


class LargestTensor(TorchDispatchMode):
    """Records the most elements any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("k", [0, 8, 64])
def test_no_more_than_one_block_of_logits_exists(k: int) -> None:
    rows, hidden_size, vocabulary, block = 300, 16, 20_000, 8
    projection = LinearProjection(torch.nn.Linear(hidden_size, vocabulary, bias=False), block)
    head = LanguageModelHead(projection, LogitTreatment())
    spec = SupportSpec(k, 1.0, vocabulary, True, True, 0)
    requests = [RowRequest(spec, ids(0, rows // 2, vocabulary), None) for _ in range(2)]
    hidden = torch.randn(rows, hidden_size)
    with torch.inference_mode(), LargestTensor() as largest:
        results = head.score(hidden, requests, lambda: None)
    assert len(results) == 2
    weight = hidden_size * vocabulary
    assert largest.elements <= max(block * vocabulary, weight) < rows * vocabulary / 10


@pytest.mark.parametrize(("limit", "rows"), [(4 * 500 * 6, 6), (4 * 500 * 6 - 1, 5), (1, 1)])
def test_on_a_cpu_a_block_has_no_more_bytes_than_its_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int, rows: int
) -> None:
    monkeypatch.setattr("teacher_server.engines.torch.projection.CPU_BLOCK_BYTES", limit)
    layer = torch.nn.Linear(16, 500)
    hidden = torch.randn(20, 16)
    projection = LinearProjection(layer, None)
    assert projection.block_rows == rows
    with torch.inference_mode():
        logits = LanguageModelHead(projection, LogitTreatment()).logits(hidden)
        torch.testing.assert_close(logits, layer(hidden))
    assert LinearProjection(layer, 8).block_rows == 8, "what is given is not changed"


def test_requests_that_ask_different_things_share_blocks() -> None:
    vocabulary = 500
    projection = LinearProjection(torch.nn.Linear(16, vocabulary), 7)
    head = LanguageModelHead(projection, LogitTreatment(2.0, 5.0))
    base = SupportSpec(5, 1.0, vocabulary, True, True, 0)
    specs = [base, replace(base, temperature=0.5), base, replace(base, top_k=0, explicit_slots=3)]
    requests = [
        RowRequest(
            spec,
            ids(index, 6, vocabulary),
            ids(9, 18, vocabulary).reshape(6, 3) if spec.explicit_slots else None,
        )
        for index, spec in enumerate(specs)
    ]
    hidden = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = head.score(hidden, requests, lambda: None)
        for index, request in enumerate(requests):
            part = hidden[6 * index : 6 * index + 6]
            (alone,) = head.score(part, [request], lambda: None)
            assert_close(together[index], alone, 1e-5)


async def test_equal_logits_are_ordered_by_id(tmp_path: Path) -> None:
    """Half of the head's rows are copies of the other half, so every id has a twin."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama_config(320, pad_token_id=0, eos_token_id=2))
    weight = model.get_output_embeddings().weight.data
    weight[160:] = weight[:160]
    directory = save_model(model, tmp_path / "twins")
    subject = Subject(lambda **_: None, plain_logits(directory), 320)
    async with running(TransformersEngine(str(directory), device="cpu")) as engine:
        for k in (1, 2, 7, 8, 320):
            job = make_job(1, 320, prompt=20, lengths=(15, 4), top_k=k)
            result = await engine.score(job)
            assert_equals_reference(subject, job, result)
            for rows in result.rows:
                assert rows.support is not None
                assert (rows.support.ids[:, 0::2] < 160).all()
                twins = rows.support.ids[:, 1::2]
                np.testing.assert_array_equal(
                    twins, rows.support.ids[:, 0::2][:, : twins.shape[1]] + 160
                )


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
async def test_values_that_are_not_finite_stay_with_their_sequence(
    tmp_path: Path, poison: float
) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama_config(320, pad_token_id=0, eos_token_id=2))
    save_model(model, tmp_path / "clean")
    model.get_input_embeddings().weight.data[300] = poison
    directory = save_model(model, tmp_path / "poisoned")
    subject = Subject(lambda **_: None, plain_logits(tmp_path / "clean"), 320)
    clean = [ids(seed, 20, 300) for seed in range(4)]
    bad = clean[1].copy()
    bad[6] = 300
    job = replace(
        make_job(9, 300, prompt=30),
        vocabulary_limit=320,
        spans=tuple(every_row(tokens) for tokens in (clean[0], bad, clean[2], clean[3])),
    )
    poisoned_prompt = make_job(10, 300, prompt=30, lengths=(8, 8))
    poisoned_prompt.prompt_ids[10] = 300
    async with running(TransformersEngine(str(directory), device="cpu")) as engine:
        result, other = await asyncio.gather(engine.score(job), engine.score(poisoned_prompt))
        assert [rows is not None for rows in result.rows] == [True, False, True, True]
        assert [rows is not None for rows in other.rows] == [False, False]
        kept = [0, 2, 3]
        assert_equals_reference(
            subject,
            replace(job, spans=tuple(job.spans[i] for i in kept)),
            replace(result, rows=tuple(result.rows[i] for i in kept)),
        )
        before = replace(job, spans=(replace(every_row(bad), positions=np.arange(6)),))
        assert_equals_reference(subject, before, await engine.score(before))


async def test_tokens_the_model_excludes_shorten_the_support(tmp_path: Path) -> None:
    """A head with a bias of -inf gives probability 0."""
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, initializer_range=0.15,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = PhiForCausalLM(config)
    model.get_output_embeddings().bias.data[10:] = -float("inf")
    directory = save_model(model, tmp_path / "excluded")
    job = make_job(1, 300, lengths=(9, 5), top_k=20)
    async with running(TransformersEngine(str(directory), device="cpu")) as engine:
        result = await engine.score(job)
    for span, rows in zip(job.spans, result.rows, strict=True):
        assert rows is not None
        assert rows.support is not None
        assert rows.sampled is not None
        assert rows.log_tail is not None
        assert (rows.support.counts == 10).all()
        assert (np.sort(rows.support.ids[:, :10]) == np.arange(10)).all()
        assert (rows.support.ids[:, 10:] == -1).all()
        assert (rows.support.log_probs[:, 10:] == 0).all()
        np.testing.assert_array_equal(rows.sampled.valid, span.token_ids < 10)
        assert not rows.log_tail.valid.any()


async def test_a_treatment_we_do_not_know_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start-up probe compares our head with the model's own logits."""
    config = GPTNeoXConfig(
        vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128,
    )  # fmt: skip
    directory = save_model(GPTNeoXForCausalLM(config), tmp_path / "model")
    original = GPTNeoXForCausalLM.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        output.logits = output.logits * 1.01
        return output

    monkeypatch.setattr(GPTNeoXForCausalLM, "forward", forward)
    with pytest.raises(ConfigurationError, match="its own logits differ"):
        async with running(TransformersEngine(str(directory), device="cpu")):
            pass


def test_a_head_that_is_not_linear_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Embedding, not a plain linear layer"):
        LinearProjection(torch.nn.Embedding(4, 4), 8)
