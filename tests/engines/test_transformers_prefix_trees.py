"""Prefix trees in the transformers engine: what is read, by which models, and what may go wrong."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, LlamaModel

from teacher_server.engines.base import Engine, Job
from teacher_server.engines.torch.prefix_tree import prefix_tree
from teacher_server.engines.torch.transformers import TransformersEngine
from teacher_server.engines.torch.trunk import Trunk
from tests.engines.conformance import (
    Subject,
    assert_equals_reference,
    every_row,
    ids,
    make_job,
    prefix_tree_job,
    running,
)
from tests.engines.test_transformers_architectures import GPT2_SIZES, SIZES, build
from tests.support.gate import Gate
from tests.support.models import save_model, tiny_llama_config
from tests.support.reference import plain_logits

V = 320
NEO_SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "num_layers": 2,
    "num_heads": 4,
    "max_position_embeddings": 256,
    "window_size": 64,
    "attention_types": [[["global", "local"], 1]],
    "initializer_range": 0.15,
}
BLOOM_SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "n_layer": 2,
    "n_head": 4,
    "initializer_range": 0.15,
}
# Whether trees are read.
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "qwen3": ("Qwen3", SIZES, True),
    "gpt2: learned positions": ("GPT2", GPT2_SIZES, True),
    "mistral without a window": ("Mistral", SIZES | {"sliding_window": None}, True),
    "mistral with a window": ("Mistral", SIZES | {"sliding_window": 64}, False),
    "gemma2: every other layer with a window": ("Gemma2", SIZES | {"sliding_window": 64}, False),
    "gpt-neo: a window of its own kind": ("GPTNeo", NEO_SIZES, False),
    "bloom: positions by index": ("Bloom", BLOOM_SIZES, False),
}


def nodes(job: Job) -> int:
    """Distinct beginnings of what the job reads after its prompt, the empty one too."""
    read = [span.token_ids[: span.positions[-1]].tolist() for span in job.spans]
    return len({tuple(one[:stop]) for one in read for stop in range(len(one) + 1)})


@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-10), ("eager", 1e-5)])
def test_hidden_states_of_a_tree_are_those_of_its_sequences(
    attention: str, tolerance: float
) -> None:
    """In float64 (eager attention's softmax is of float32), in one forward and in blocks."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama_config(attn_implementation=attention)).double().eval()
    trunk = Trunk(model.base_model, model.config, 4096, cacheable=True)
    job = prefix_tree_job(1, V, prompt=12, stem=60, count=25)
    read = sorted(one.token_ids[:-1].astype(np.int32).tobytes() for one in job.spans)
    tree = prefix_tree(int(job.prompt_ids[-1]), read)
    whole = [np.concatenate([job.prompt_ids, np.frombuffer(one, np.int32)]) for one in read]

    def no_check() -> None:
        return

    with torch.inference_mode():
        apart = [trunk.flat([one], [np.arange(11, len(one))], no_check) for one in whole]
        for step in (4096, 16):
            trunk.block_tokens = step
            cached = trunk.prompts([job.prompt_ids], no_check)
            found = trunk.prefix_tree(cached, tree, np.concatenate(tree.paths), no_check)
            torch.testing.assert_close(found, torch.cat(apart), rtol=tolerance, atol=tolerance)


async def test_what_spans_begin_with_is_read_once(
    engine: Engine, gate: Gate, subject: Subject
) -> None:
    job = prefix_tree_job(2, V, prompt=20, stem=200, count=40)
    result = await engine.score(job)
    assert_equals_reference(subject, job, result)
    assert gate.shapes == [(1, 19), (1, nodes(job))]
    assert result.computed_tokens == 19 + nodes(job) < 20 + 200 + 40 * 4


async def test_short_sequences_are_one_tree_after_their_prompt(
    engine: Engine, gate: Gate, subject: Subject
) -> None:
    job = make_job(3, V, prompt=1, lengths=(2,) * 200)
    result = await engine.score(job)
    assert_equals_reference(subject, job, result)
    assert gate.shapes == [(1, nodes(job))]


async def test_jobs_with_one_prompt_share_its_trees_and_keep_their_rows(
    engine: Engine, gate: Gate, subject: Subject
) -> None:
    gate.shut()
    first = asyncio.ensure_future(engine.score(make_job(99, V, prompt=3, lengths=(2,))))
    await gate.reached()
    gate.forget()
    one = prefix_tree_job(4, V, prompt=10, stem=50, count=20)
    other = replace(prefix_tree_job(5, V, prompt=10, stem=50, count=20), prompt_ids=one.prompt_ids)
    elsewhere = make_job(6, V, prompt=30, lengths=(12, 9))
    tasks = [asyncio.ensure_future(engine.score(job)) for job in (one, other, elsewhere)]
    await asyncio.sleep(0)
    gate.open()
    results = await asyncio.gather(*tasks)
    for job, result in zip((one, other, elsewhere), results, strict=True):
        assert_equals_reference(subject, job, result)
    # The root, which is the prompt's last token, is one for both.
    assert gate.shapes[:2] == [(1, 9), (1, nodes(one) + nodes(other) - 1)]
    assert sum(r.computed_tokens for r in results[:2]) == 9 + nodes(one) + nodes(other) - 1
    await first


async def test_large_trees_are_cut_and_run_in_bounded_forwards(
    gate: Gate, tiny_model_dir: Path, subject: Subject
) -> None:
    async with running(
        TransformersEngine(str(tiny_model_dir), device="cpu", max_batch_tokens=64)
    ) as engine:
        gate.forget()
        job = prefix_tree_job(7, V, prompt=40, stem=70, count=60)
        result = await engine.score(job)
        assert_equals_reference(subject, job, result)
        assert all(batch == 1 and length <= 64 for batch, length in gate.shapes)
        assert 39 + nodes(job) < result.computed_tokens == sum(n for _, n in gate.shapes)
        assert result.computed_tokens < sum(len(s.token_ids) for s in job.spans) / 3


async def test_a_cancelled_tree_stops_between_its_forwards(
    gate: Gate, tiny_model_dir: Path, subject: Subject
) -> None:
    async with running(
        TransformersEngine(str(tiny_model_dir), device="cpu", max_batch_tokens=32)
    ) as engine:
        gate.forget()
        gate.shut()
        job = prefix_tree_job(8, V, prompt=10, stem=100, count=60)
        task = asyncio.ensure_future(engine.score(job))
        await gate.reached()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        other = make_job(9, V, prompt=5, lengths=(6,))
        assert_equals_reference(subject, other, await engine.score(other))
        assert gate.shapes == [(1, 9), (1, 10)], "the prompt was read, then the next job"


async def test_out_of_memory_cuts_a_tree_in_halves(
    engine: Engine, gate: Gate, subject: Subject
) -> None:
    gate.fails = lambda shape: torch.OutOfMemoryError("full") if shape[1] > 120 else None
    job = prefix_tree_job(10, V, prompt=10, stem=90, count=40)
    assert_equals_reference(subject, job, await engine.score(job))
    assert max(length for _, length in gate.shapes) > 120
    assert gate.shapes[2][0] == 1, "the halves are trees too"


async def test_deterministic_reads_no_trees(gate: Gate, tiny_model_dir: Path) -> None:
    async with running(
        TransformersEngine(str(tiny_model_dir), device="cpu", deterministic=True)
    ) as engine:
        gate.forget()
        job = prefix_tree_job(11, V, prompt=10, stem=40, count=20)
        result = await engine.score(job)
        assert gate.shapes == [(1, 10 + len(s.token_ids) - 1) for s in job.spans]
        assert result.computed_tokens == sum(length for _, length in gate.shapes)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("fails", [False, True])
async def test_values_that_are_not_finite_stay_with_their_span(
    gate: Gate, tmp_path: Path, poison: float, fails: bool
) -> None:
    """Masked columns are multiplied by 0, which leaves NaN what it is: their rows are asked
    for again, outside of trees; also where memory runs out on the way."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama_config(V, pad_token_id=0, eos_token_id=2))
    save_model(model, tmp_path / "clean")
    model.get_input_embeddings().weight.data[300] = poison
    directory = save_model(model, tmp_path / "poisoned")
    subject = Subject(lambda **_: None, plain_logits(tmp_path / "clean"), V)
    job = replace(prefix_tree_job(12, 300, prompt=10, stem=40, count=20), vocabulary_limit=V)
    bad = job.spans[7].token_ids.copy()
    bad[-2] = 300
    spans = list(job.spans)
    spans[7] = replace(spans[7], token_ids=bad)
    # The row before the poisoned token is its own.
    spans[8] = replace(spans[7], positions=spans[7].positions - 1)
    async with running(TransformersEngine(str(directory), device="cpu")) as engine:
        gate.forget()
        if fails:
            gate.fails = lambda shape: torch.OutOfMemoryError("full") if shape[1] > 60 else None
        result = await engine.score(replace(job, spans=tuple(spans)))
        assert [i for i, rows in enumerate(result.rows) if rows is None] == [7]
        kept = [index for index in range(20) if index != 7]
        assert_equals_reference(
            subject,
            replace(job, spans=tuple(spans[i] for i in kept)),
            replace(result, rows=tuple(result.rows[i] for i in kept)),
        )
        if not fails:
            read = sum(batch * length for batch, length in gate.shapes)
            assert result.computed_tokens <= read, "both readings count"
            assert result.computed_tokens > 9 + nodes(job)
    prompt = prefix_tree_job(13, 300, prompt=10, stem=40, count=20)
    prompt.prompt_ids[4] = 300
    async with running(TransformersEngine(str(directory), device="cpu")) as engine:
        assert all(rows is None for rows in (await engine.score(prompt)).rows)


@pytest.mark.parametrize("case", MODELS)
async def test_only_models_with_full_attention_read_trees(case: str, tmp_path: Path) -> None:
    """A stem beyond the window: a tree that ignored it would give other rows."""
    name, sizes, reads = MODELS[case]
    directory = build(name, sizes, tmp_path / "model")
    subject = Subject(lambda **_: None, plain_logits(directory), 300)
    job = prefix_tree_job(14, 300, prompt=10, stem=150, count=30)
    job = replace(job, spans=(*job.spans, every_row(ids(15, 150, 300))))
    async with running(TransformersEngine(str(directory), device="cpu", max_length=256)) as engine:
        result = await engine.score(job)
    assert_equals_reference(subject, job, result)
    assert (result.computed_tokens == 9 + nodes(job)) == reads


async def test_a_model_that_fails_the_check_is_served_without_trees(
    tiny_model_dir: Path,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As one that takes positions from its cache: a model that ignores ``position_ids``."""
    forward = LlamaModel.forward

    def by_index(self: LlamaModel, *args: Any, **named: Any) -> Any:
        mask = named.get("attention_mask")
        if mask is not None and mask.ndim == 4:
            named["position_ids"] = None
        return forward(self, *args, **named)

    monkeypatch.setattr(LlamaModel, "forward", by_index)
    job = prefix_tree_job(16, V, prompt=10, stem=40, count=20)
    with caplog.at_level(logging.WARNING):
        async with running(TransformersEngine(str(tiny_model_dir), device="cpu")) as engine:
            result = await engine.score(job)
    assert "cannot read prefix trees" in caplog.text
    assert_equals_reference(subject, job, result)
    assert result.computed_tokens > 3 * nodes(job)
