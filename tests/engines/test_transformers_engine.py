"""The engine as a neighbour among jobs: packing, cancelling, failing, closing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError, EngineError, TeacherUnavailableError

from teacher_server.engines.base import Engine, Job, JobResult
from teacher_server.engines.torch.transformers import TransformersEngine
from teacher_server.scoring.jobs import tokens_of
from tests.engines.conformance import (
    Subject,
    assert_equals_reference,
    assert_same_bytes,
    ids,
    make_job,
    running,
)
from tests.support.gate import Gate

V = 320


async def occupy(engine: Engine, gate: Gate) -> asyncio.Task[JobResult]:
    """A job whose forward stands at the shut gate; what comes next has to wait."""
    gate.shut()
    task = asyncio.ensure_future(engine.score(make_job(99, V, prompt=3, lengths=(2,))))
    await gate.reached()
    gate.forget()
    return task


async def test_waiting_jobs_of_like_length_share_a_forward(
    engine: Engine, gate: Gate, subject: Subject
) -> None:
    first = await occupy(engine, gate)
    jobs = [make_job(seed, V, prompt=20 + seed, lengths=(30,)) for seed in range(5)]
    tasks = [asyncio.ensure_future(engine.score(job)) for job in jobs]
    await asyncio.sleep(0)
    gate.open()
    for job, result in zip(jobs, await asyncio.gather(*tasks), strict=True):
        assert_equals_reference(subject, job, result)
    assert gate.shapes == [(5, 53)]
    await first


async def test_groups_of_several_jobs_share_a_forward_padded_on_the_left(
    engine: Engine, gate: Gate, subject: Subject
) -> None:
    first = await occupy(engine, gate)
    jobs = [
        make_job(1, V, prompt=40, lengths=(10, 12)),
        make_job(2, V, prompt=47, lengths=(11, 9, 10)),
        replace(make_job(3, V, prompt=40, lengths=(12,)), prompt_ids=ids(1, 40, V)),
    ]
    tasks = [asyncio.ensure_future(engine.score(job)) for job in jobs]
    await asyncio.sleep(0)
    gate.open()
    results = await asyncio.gather(*tasks)
    for job, result in zip(jobs, results, strict=True):
        assert_equals_reference(subject, job, result)
    assert gate.shapes == [(2, 46), (6, 12)], "equal prompts of two jobs are one"
    assert sum(r.computed_tokens for r in results) == 39 + 46 + 22 + 30 + 12
    await first


async def test_a_cancelled_job_that_waits_is_never_computed(
    engine: Engine, gate: Gate, subject: Subject
) -> None:
    first = await occupy(engine, gate)
    kept_job = make_job(1, V, prompt=20, lengths=(30,))
    cancelled = asyncio.ensure_future(engine.score(make_job(2, V, prompt=20, lengths=(30,))))
    kept = asyncio.ensure_future(engine.score(kept_job))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    gate.open()
    assert_equals_reference(subject, kept_job, await kept)
    assert gate.shapes == [(1, 49)]
    await first


async def test_a_cancelled_job_stops_between_blocks(
    gate: Gate, tiny_model_dir: Path, subject: Subject
) -> None:
    engine = TransformersEngine(str(tiny_model_dir), device="cpu", max_batch_tokens=32)
    async with running(engine):
        gate.forget()
        gate.shut()
        long = asyncio.ensure_future(engine.score(make_job(1, V, prompt=200, lengths=(200,))))
        await gate.reached()
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        gate.open()
        job = make_job(2, V, prompt=5, lengths=(6,))
        assert_equals_reference(subject, job, await engine.score(job))
        assert gate.shapes == [(1, 32), (1, 10)], "one block of 13 was computed, then the next job"


async def test_cancelling_one_of_a_batch_leaves_the_others(
    engine: Engine, gate: Gate, subject: Subject
) -> None:
    first = await occupy(engine, gate)
    jobs = [make_job(seed, V, prompt=20, lengths=(30,)) for seed in range(3)]
    tasks = [asyncio.ensure_future(engine.score(job)) for job in jobs]
    await asyncio.sleep(0)
    gate.open()
    gate.shut()
    await first
    await gate.reached()
    tasks[1].cancel()
    gate.open()
    for index in (0, 2):
        assert_equals_reference(subject, jobs[index], await tasks[index])
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]


async def test_closing_fails_what_waits_and_what_runs(engine: Engine, gate: Gate) -> None:
    runs = await occupy(engine, gate)
    waits = asyncio.ensure_future(engine.score(make_job(1, V)))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(engine.close())
    await asyncio.sleep(0)
    gate.open()
    await closing
    with pytest.raises(TeacherUnavailableError, match="closed"):
        await waits
    # The forward in progress may end before the engine looks up; it never hangs.
    outcome = (await asyncio.gather(runs, return_exceptions=True))[0]
    assert isinstance(outcome, JobResult | TeacherUnavailableError)
    with pytest.raises(TeacherUnavailableError):
        await engine.score(make_job(2, V))


async def test_an_error_fails_its_batch_and_nothing_else(
    engine: Engine, gate: Gate, subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    gate.fails = lambda shape: RuntimeError("a kernel is missing") if shape[1] > 60 else None
    deaths: list[BaseException] = []
    engine.on_death(deaths.append)
    bad, good = make_job(1, V, prompt=60, lengths=(30,)), make_job(2, V, prompt=10)
    with pytest.raises(EngineError, match="scoring failed: RuntimeError") as caught:
        await engine.score(bad)
    assert "kernel" not in str(caught.value), "the caller is told the text of an exception"
    (line,) = (one for one in caplog.records if one.getMessage() == "a batch failed")
    assert f"reference {line.__dict__['fields']['reference']} " in str(caught.value)
    assert "a kernel is missing" in caplog.text
    assert_equals_reference(subject, good, await engine.score(good))
    assert deaths == []


async def test_out_of_memory_splits_the_batch(engine: Engine, gate: Gate, subject: Subject) -> None:
    gate.fails = lambda shape: torch.OutOfMemoryError("full") if shape[0] > 2 else None
    first = await occupy(engine, gate)
    jobs = [make_job(seed, V, prompt=20, lengths=(30,)) for seed in range(5)]
    jobs.append(make_job(7, V, prompt=30, lengths=(8,) * 6))
    tasks = [asyncio.ensure_future(engine.score(job)) for job in jobs]
    await asyncio.sleep(0)
    gate.open()
    for job, result in zip(jobs, await asyncio.gather(*tasks), strict=True):
        assert_equals_reference(subject, job, result)
    assert max(shape[0] for shape in gate.shapes) > 2
    await first


async def test_out_of_memory_shortens_the_forwards_of_a_lone_sequence(
    engine: Engine, gate: Gate, subject: Subject
) -> None:
    gate.fails = lambda shape: torch.OutOfMemoryError("full") if shape[1] > 100 else None
    job = make_job(1, V, prompt=300, lengths=(100,))
    assert_equals_reference(subject, job, await engine.score(job))
    assert gate.shapes[:2] == [(1, 399), (1, 199)]
    gate.forget()
    other = make_job(2, V, prompt=50, lengths=(20,))
    assert_equals_reference(subject, other, await engine.score(other))
    assert gate.shapes == [(1, 69)], "later sequences run in full forwards again"


async def test_a_sequence_that_never_fits_fails_alone(
    engine: Engine, gate: Gate, subject: Subject
) -> None:
    too_big, fits = make_job(1, V, prompt=300, lengths=(100,)), make_job(2, V, prompt=20)
    message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"
    first = await occupy(engine, gate)
    big = asyncio.ensure_future(engine.score(too_big))
    await asyncio.sleep(0)
    gate.fails = lambda shape: RuntimeError(message) if shape[1] > 30 else None
    small = asyncio.ensure_future(engine.score(fits))
    await asyncio.sleep(0)
    gate.open()
    with pytest.raises(EngineError, match="399 tokens does not fit in memory") as caught:
        await big
    assert caught.value.reason == "OUT_OF_MEMORY"
    assert_equals_reference(subject, fits, await small)
    await first


async def test_a_lost_device_ends_the_engine(engine: Engine, gate: Gate) -> None:
    deaths: list[BaseException] = []
    died = asyncio.Event()
    engine.on_death(deaths.append)
    engine.on_death(lambda error: died.set())
    first = await occupy(engine, gate)
    gate.fails = lambda shape: RuntimeError("CUDA error: device-side assert triggered")
    waiting = [asyncio.ensure_future(engine.score(make_job(seed, V))) for seed in range(3)]
    await asyncio.sleep(0)
    gate.open()
    for task in (first, *waiting):
        with pytest.raises(TeacherUnavailableError, match="died of RuntimeError") as caught:
            await task
        assert "CUDA" not in str(caught.value)
    await asyncio.wait_for(died.wait(), timeout=30)
    assert [str(error) for error in deaths] == ["CUDA error: device-side assert triggered"]
    with pytest.raises(TeacherUnavailableError, match="died"):
        await engine.score(make_job(5, V))
    late = asyncio.Event()
    engine.on_death(lambda error: late.set())
    await asyncio.wait_for(late.wait(), timeout=30)


async def test_long_sequences_run_in_bounded_forwards(
    gate: Gate, tiny_model_dir: Path, subject: Subject
) -> None:
    engine = TransformersEngine(str(tiny_model_dir), device="cpu", max_batch_tokens=64)
    async with running(engine):
        gate.forget()
        flat = make_job(1, V, prompt=300, lengths=(150,))
        group = make_job(2, V, prompt=300, lengths=(150, 20, 90))
        for job in (flat, group):
            assert_equals_reference(subject, job, await engine.score(job))
        assert max(batch * length for batch, length in gate.shapes) <= 64


async def test_deterministic_bytes_do_not_depend_on_the_service_of_others(
    gate: Gate, tiny_model_dir: Path
) -> None:
    jobs = [
        make_job(seed, V, prompt=5 + seed % 9, lengths=(4 + seed % 11,) * 2) for seed in range(40)
    ]
    engine = TransformersEngine(str(tiny_model_dir), device="cpu", deterministic=True)
    async with running(engine):
        gate.forget()
        alone = [await engine.score(job) for job in jobs]
        assert all(batch == 1 for batch, _ in gate.shapes)
        generator = np.random.default_rng(0)
        for _ in range(3):
            order = generator.permutation(len(jobs))
            results = await asyncio.gather(*(engine.score(jobs[i]) for i in order))
            for index, result in zip(order, results, strict=True):
                assert_same_bytes(alone[index], result)


async def test_computed_tokens_count_a_shared_prompt_once(engine: Engine) -> None:
    job: Job = make_job(1, V, prompt=100, lengths=(10, 20, 15, 5))
    result = await engine.score(job)
    # The prompt but for its last token; each continuation but for its last token,
    # after the prompt's last one.
    assert result.computed_tokens == 99 + 10 + 20 + 15 + 5
    assert result.computed_tokens < tokens_of(job)


@pytest.mark.parametrize("name", ["max_batch_tokens", "head_block_rows"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    settings: dict[str, int] = {name: 0}
    with pytest.raises(ConfigurationError, match=f"{name}: 0 is below 1"):
        TransformersEngine("anything", **settings)  # type: ignore[arg-type]
