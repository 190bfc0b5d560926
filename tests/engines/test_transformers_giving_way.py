"""What is read in the middle of a larger batch: which jobs, how many, and at whose cost."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import EngineError
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from teacher_server.engines.base import Engine, Job, JobResult
from teacher_server.engines.torch import engine_thread, transformers
from teacher_server.engines.torch.engine_thread import EngineThread
from teacher_server.engines.torch.head import LanguageModelHead
from teacher_server.engines.torch.scorer import Unit
from teacher_server.engines.torch.transformers import TransformersEngine
from teacher_server.engines.torch.trunk import Trunk
from tests.engines.conformance import Subject, assert_equals_reference, ids, make_job, running
from tests.support.gate import Gate

V = 320


def long_job(seed: int = 1) -> Job:
    return make_job(seed, V, prompt=200, lengths=(200,))


def small_job(seed: int = 2) -> Job:
    return make_job(seed, V, prompt=5, lengths=(6,))


async def score_behind(
    engine: Engine, gate: Gate, jobs: list[Job]
) -> tuple[list[JobResult | BaseException], list[int]]:
    """The results of jobs that come, but for the first, while that is read; and the order in
    which they ended."""
    ended: list[int] = []

    def begin(number: int) -> asyncio.Future[JobResult]:
        future = asyncio.ensure_future(engine.score(jobs[number]))
        future.add_done_callback(lambda _: ended.append(number))
        return future

    gate.forget()
    gate.shut()
    futures = [begin(0)]
    await gate.reached()
    futures += [begin(number) for number in range(1, len(jobs))]
    await asyncio.sleep(0)
    gate.open()
    return await asyncio.gather(*futures, return_exceptions=True), ended


def assert_equal_references(
    subject: Subject, jobs: list[Job], results: list[JobResult | BaseException]
) -> None:
    for job, result in zip(jobs, results, strict=True):
        assert isinstance(result, JobResult)
        assert_equals_reference(subject, job, result)


@pytest.mark.parametrize("block", [32, 8192])
async def test_a_small_job_is_read_in_the_middle_of_a_long_one(
    gate: Gate,
    tiny_model_dir: Path,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
) -> None:
    """Also where the long one is read by one forward: between two of its layers."""
    monkeypatch.setattr(transformers, "CPU_PACKED_TOKENS", 32)
    rows = []

    def noting(self: LanguageModelHead, hidden: torch.Tensor, *how: Any) -> Any:
        rows.append(len(hidden))
        return score(self, hidden, *how)

    score = LanguageModelHead.score
    engine = TransformersEngine(str(tiny_model_dir), device="cpu", max_batch_tokens=block)
    ended: list[str] = []
    async with running(engine):
        monkeypatch.setattr(LanguageModelHead, "score", noting)
        gate.forget()
        gate.shut()
        jobs = [make_job(1, V, prompt=200, lengths=(200,)), make_job(2, V, prompt=5, lengths=(6,))]
        long = asyncio.ensure_future(engine.score(jobs[0]))
        long.add_done_callback(lambda _: ended.append("long"))
        await gate.reached()
        small = asyncio.ensure_future(engine.score(jobs[1]))
        small.add_done_callback(lambda _: ended.append("small"))
        await asyncio.sleep(0)
        gate.open()
        for job, result in zip(jobs, await asyncio.gather(long, small), strict=True):
            assert_equals_reference(subject, job, result)
    assert gate.shapes[:2] == [(1, min(block, 399)), (1, 10)]
    assert ended == ["small", "long"]
    assert rows[0] < rows[1], "the head of the small one comes before the long one's"


async def test_a_long_job_gives_way_to_as_many_tokens_as_its_own(
    gate: Gate, tiny_model_dir: Path
) -> None:
    engine = TransformersEngine(str(tiny_model_dir), device="cpu", max_batch_tokens=32)
    async with running(engine):
        _, ended = await score_behind(
            engine, gate, [long_job(), *(small_job(seed) for seed in range(2, 62))]
        )
    # 10 tokens each, beside 399; the pass that reaches the bound is read whole.
    assert 30 < ended.index(0) <= 42


async def test_seconds_are_counted_for_one_job_alone(
    gate: Gate, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that each forward moves on by one: those of all jobs are the forwards."""
    engine = TransformersEngine(str(tiny_model_dir), device="cpu", max_batch_tokens=32)
    now = 0.0

    def tick(shape: tuple[int, ...]) -> None:
        nonlocal now
        now += 1

    async with running(engine):
        monkeypatch.setattr(engine_thread, "time", SimpleNamespace(perf_counter=lambda: now))
        gate.fails = tick
        results, ended = await score_behind(
            engine, gate, [long_job(), *(small_job(seed) for seed in range(2, 12))]
        )
    assert ended[-1] == 0
    seconds = [result.engine_seconds for result in results if isinstance(result, JobResult)]
    assert len(seconds) == 11
    assert sum(seconds) == pytest.approx(len(gate.shapes))
    assert seconds[0] == pytest.approx(sum(batch * length > 30 for batch, length in gate.shapes), 4)


async def test_a_small_job_that_does_not_fit_beside_a_long_one_waits_for_its_end(
    gate: Gate, tiny_model_dir: Path, subject: Subject
) -> None:
    engine = TransformersEngine(str(tiny_model_dir), device="cpu", max_batch_tokens=32)
    failures = [torch.OutOfMemoryError("full")]

    def once(shape: tuple[int, ...]) -> Exception | None:
        return failures.pop() if shape == (1, 10) and failures else None

    jobs = [long_job(), small_job()]
    async with running(engine):
        gate.fails = once
        results, ended = await score_behind(engine, gate, jobs)
    assert_equal_references(subject, jobs, results)
    assert ended == [0, 1]
    assert gate.shapes[:2] == [(1, 32), (1, 10)]
    assert gate.shapes[-1] == (1, 10)
    assert gate.shapes.count((1, 10)) == 2, "nothing is tried beside it again"


async def test_a_job_that_cannot_be_unpacked_fails_alone(
    gate: Gate, tiny_model_dir: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(str(tiny_model_dir), device="cpu", max_batch_tokens=32)
    jobs = [long_job(), small_job(2), small_job(3), small_job(4)]
    of = Unit.of

    def refusing(key: int, job: Job, span: Any) -> Unit:
        if job is jobs[2]:
            raise MemoryError
        return of(key, job, span)

    monkeypatch.setattr(Unit, "of", refusing)
    async with running(engine):
        results, _ = await score_behind(engine, gate, jobs)
        failed = results.pop(2)
        assert isinstance(failed, EngineError)
        assert "MemoryError" in failed.what
        del jobs[2]
        assert_equal_references(subject, jobs, results)


async def test_the_rest_of_a_large_job_is_no_small_one(
    gate: Gate, tiny_model_dir: Path, subject: Subject
) -> None:
    engine = TransformersEngine(str(tiny_model_dir), device="cpu", max_batch_tokens=32)
    jobs = [
        make_job(1, V, prompt=5, lengths=(400, 6)),
        make_job(2, V, prompt=5, lengths=(8,)),
    ]
    async with running(engine):
        results, _ = await score_behind(engine, gate, jobs)
    assert_equal_references(subject, jobs, results)
    assert gate.shapes[:2] == [(1, 32), (1, 12)]
    assert gate.shapes[-1] == (1, 10), "it is read after the batch"


async def test_a_batch_looks_at_who_waits_once_and_when_somebody_comes(
    gate: Gate, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    give_way = EngineThread._give_way

    def counting(self: EngineThread, units: Mapping[int, Unit], spare: int) -> int:
        nonlocal looks
        looks += 1
        return give_way(self, units, spare)

    monkeypatch.setattr(EngineThread, "_give_way", counting)
    engine = TransformersEngine(str(tiny_model_dir), device="cpu", max_batch_tokens=32)
    async with running(engine):
        looks = 0
        await score_behind(engine, gate, [long_job()])
        assert looks == 1
        looks = 0
        await score_behind(engine, gate, [long_job(), small_job(), long_job(3)])
        # The first; what it finds; nothing more. Then that of the second long job.
        assert looks == 4


@pytest.mark.parametrize(
    "module",
    [
        LlamaModel(
            LlamaConfig(
                vocab_size=V,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
            )
        ),
        GPT2Model(GPT2Config(vocab_size=V, n_embd=16, n_layer=3, n_head=2)),
    ],
)
def test_a_forward_looks_between_its_layers_whatever_their_list_is_called(
    module: torch.nn.Module,
) -> None:
    trunk = Trunk(module, module.config, 64, cacheable=True)
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1

    with torch.inference_mode():
        trunk.flat([ids(1, 10, V)], [np.arange(10)], check)
    assert looks == 1 + 3


async def test_jobs_of_an_engine_that_reads_each_alone_come_in_their_order(
    gate: Gate, tiny_model_dir: Path
) -> None:
    """Many continuations are so many batches, each within a pass: none gives way."""
    engine = TransformersEngine(str(tiny_model_dir), device="cpu", deterministic=True)
    jobs = [make_job(1, V, prompt=100, lengths=(30,) * 20), small_job()]
    async with running(engine):
        _, ended = await score_behind(engine, gate, jobs)
    assert ended == [0, 1]
