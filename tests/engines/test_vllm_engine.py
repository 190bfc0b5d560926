"""The vLLM engine in its own ways: the prefix cache, memory, cancellation, death, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
import torch
from teacher_proto.errors import ConfigurationError, TeacherUnavailableError
from transformers import LlamaForCausalLM

from tests.engines.conformance import (
    Subject,
    assert_equals_reference,
    assert_well_formed,
    make_job,
    running,
)
from tests.engines.vllm_subjects import vllm_engine
from tests.server.processes import LONG
from tests.support.models import make_tiny_model, save_model, tiny_llama_config
from tests.support.reference import plain_logits

if TYPE_CHECKING:
    from teacher_server.engines.vllm.engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]

SIZE = 320
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(
        tmp_path_factory.mktemp("models") / "wide",
        num_attention_heads=2,
        num_key_value_heads=1,
    )


@pytest.fixture
def unknown_model(model: Path, tmp_path: Path) -> Path:
    """The same files under an architecture that nothing knows."""
    directory = tmp_path / "unknown"
    shutil.copytree(model, directory)
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(config.replace("LlamaForCausalLM", "NoSuchForCausalLM"))
    return directory


@pytest.fixture
def on_a_cpu() -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("spinning costs nothing where the cores do not compute")
    import teacher_server.engines.vllm.engine  # noqa: F401  (sets how long processes spin)


async def test_processes_hardly_spin_on_a_cpu(on_a_cpu: None) -> None:
    """vLLM names this default; it must still be the one that sets how long they spin."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    given = inspect.signature(SpinCondition.__init__).parameters
    assert {name: p.default for name, p in given.items() if p.default is not p.empty} == {
        "busy_loop_s": 0.005
    }


class Polling:
    """A poller that reports when it is asked, and keeps for how long it would sleep."""

    def __init__(self, poller: Any) -> None:
        self.poller, self.asked, self.timeouts = poller, threading.Event(), set[int]()

    def poll(self, timeout: int) -> Any:
        self.timeouts.add(timeout)
        self.asked.set()
        return self.poller.poll(timeout)


async def test_a_message_is_read_whose_notification_is_lost(on_a_cpu: None) -> None:
    """Stock vLLM sleeps for five seconds before it looks again."""
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    writer = MessageQueue(n_reader=1, n_local_reader=1)
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    writer._spin_condition.notify = lambda: None
    polling = reader._spin_condition.poller = Polling(reader._spin_condition.poller)
    with ThreadPoolExecutor(1) as pool:
        ready = pool.submit(writer.wait_until_ready)
        reader.wait_until_ready()
        ready.result(LONG)
        read = pool.submit(reader.dequeue, timeout=LONG)
        assert polling.asked.wait(LONG)
        writer.enqueue("here")
        assert read.result(LONG) == "here"
    assert polling.timeouts == {50}


@pytest.fixture(scope="module")
def subject(model: Path) -> Subject:
    return Subject(lambda: vllm_engine(model), plain_logits(model), SIZE, accuracy=TOLERANCE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: Path) -> AsyncIterator[VllmEngine]:
    """Steps of 64 tokens, so that most sequences take several."""
    started = vllm_engine(model, max_batch_tokens=64)
    async with running(started):
        yield started


async def test_a_prompt_is_computed_once_for_its_group_and_for_later_jobs(
    engine: VllmEngine, subject: Subject
) -> None:
    job = make_job(1, SIZE, prompt=200, lengths=(20,) * 6)
    together = await engine.score(job)
    # Blocks are 32 tokens: 192 of the prompt's 200 can be shared.
    assert together.computed_tokens == 192 + 6 * (8 + 19)
    again = await engine.score(job)
    assert again.computed_tokens == 6 * (8 + 19), "the prompt is in the cache"
    assert_equals_reference(subject, job, together)
    assert_equals_reference(subject, job, again)


async def test_scored_tokens_are_read_again_however_often_they_were_scored(
    engine: VllmEngine, subject: Subject
) -> None:
    """A longer request leaves a shorter one's rows in the cache; they are not taken from there."""
    long = make_job(2, SIZE, prompt=40, lengths=(150,))
    first = await engine.score(long)
    assert_equals_reference(subject, long, first)
    (span,) = long.spans
    for positions in (np.arange(150), np.arange(64, 150), np.array([3, 149])):
        job = replace(long, spans=(replace(span, positions=positions.astype(np.int32)),))
        result = await engine.score(job)
        assert_equals_reference(subject, job, result)
        # Everything before the first row's block may come from the cache, nothing after.
        read = 39 + int(positions[0])
        assert result.computed_tokens == 189 - read // 32 * 32


async def test_rows_do_not_depend_on_what_the_cache_holds(
    engine: VllmEngine, subject: Subject
) -> None:
    base = make_job(3, SIZE, prompt=96, lengths=(40, 33, 64))
    jobs = [
        base,
        replace(base, spans=base.spans[::-1]),
        replace(base, prompt_ids=np.concatenate([base.prompt_ids, base.spans[0].token_ids])),
        replace(base, prompt_ids=base.prompt_ids[:70]),
        make_job(4, SIZE, prompt=5, lengths=(100,)),
    ]
    generator = np.random.default_rng(0)
    for _ in range(3):
        for index in generator.permutation(len(jobs)):
            assert_equals_reference(subject, jobs[index], await engine.score(jobs[index]))
        order = generator.permutation(len(jobs))
        results = await asyncio.gather(*(engine.score(jobs[index]) for index in order))
        for index, result in zip(order, results, strict=True):
            assert_equals_reference(subject, jobs[index], result)


async def test_a_cache_that_is_too_small_for_all_makes_requests_wait(
    model: Path, subject: Subject
) -> None:
    """Preempted requests start over and give the same rows."""
    # Keys and values of a token: 3 layers x 2 x 32 x 4 bytes; room for 2 of 8 sequences.
    small = vllm_engine(
        model,
        max_batch_tokens=256,
        max_length=256,
        options={"kv_cache_memory_bytes": 600 * 3 * 2 * 32 * 4},
    )
    job = make_job(5, SIZE, prompt=20, lengths=(200,) * 8)
    async with running(small):
        assert_equals_reference(subject, job, await small.score(job))


async def test_cancelled_work_leaves_the_engine(engine: VllmEngine, subject: Subject) -> None:
    """What is cancelled is not computed: its last sequence never reaches the cache."""
    big = make_job(6, SIZE, prompt=10, lengths=(400,) * 40, top_k=64)
    read = np.concatenate([big.prompt_ids, big.spans[-1].token_ids[:380]])
    probe = replace(make_job(7, SIZE, lengths=(1,)), prompt_ids=read)
    task = asyncio.ensure_future(engine.score(big))
    neighbour = make_job(8, SIZE, prompt=10, lengths=(5,))
    beside = asyncio.ensure_future(engine.score(neighbour))
    await asyncio.sleep(0)
    assert engine.in_flight
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_equals_reference(subject, neighbour, await beside)
    assert engine.in_flight == 0
    assert (await engine.score(probe)).computed_tokens == 390
    await engine.score(big)
    assert (await engine.score(probe)).computed_tokens == 390 - 384, "it would have been seen"


async def test_memory_stays_within_blocks(engine: VllmEngine) -> None:
    """All rows, the whole vocabulary, many sequences: the worker grows by what it returns."""
    job = make_job(8, SIZE, prompt=4, lengths=(500,) * 24, top_k=SIZE)
    await engine.score(job)
    worker = max(_processes(), key=lambda process: process.memory_info().rss)
    before = worker.memory_info().rss
    for seed in range(9, 12):
        await engine.score(make_job(seed, SIZE, prompt=4, lengths=(500,) * 24, top_k=SIZE))
    reply = 24 * 500 * SIZE * 8
    assert worker.memory_info().rss - before < 2 * reply


async def test_a_response_of_32k_tokens_fits_a_small_budget(tmp_path: Path) -> None:
    """K=128 in steps of 512; its logits alone would be 1 GiB, its hidden states 8 MiB."""
    size, length = 8192, 32 * 1024
    config = tiny_llama_config(
        size, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=length + 64
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        directory = save_model(LlamaForCausalLM(config), tmp_path / "long")
    engine = vllm_engine(directory, max_batch_tokens=512)
    warm_up, job = (
        make_job(15, size, prompt=16, lengths=(count,), top_k=128) for count in (600, length)
    )
    async with running(engine):
        await engine.score(warm_up)
        workers = _processes("VLLM")
        before = sum(worker.memory_info().rss for worker in workers)
        result = await engine.score(job)
        peak = sum(_peak(worker.pid) for worker in workers)
    assert result.computed_tokens == 16 + length - 1
    assert_well_formed(job, job.spans[0], result.rows[0])
    assert peak - before < 400 * 2**20
    (rows,), (span,) = result.rows, job.spans
    read = np.concatenate([job.prompt_ids, span.token_ids[:-1]])
    last = plain_logits(directory)(read)[-1]
    assert rows.support is not None
    expected = np.sort(last - np.log(np.exp(last).sum()))[::-1][:128]
    np.testing.assert_allclose(rows.support.log_probs[-1], expected, rtol=0, atol=1e-3)


async def test_the_engines_death_fails_what_is_in_flight_and_is_announced(model: Path) -> None:
    engine = vllm_engine(model, max_batch_tokens=64)
    others = {process.pid for process in _processes()}
    deaths: list[BaseException] = []
    async with running(engine):
        told = asyncio.Event()
        engine.on_death(lambda error: (deaths.append(error), told.set()))
        work = asyncio.ensure_future(
            engine.score(make_job(13, SIZE, prompt=10, lengths=(400,) * 60))
        )
        await asyncio.sleep(0)
        assert engine.in_flight
        (core,) = (p for p in _processes("EngineCore") if p.pid not in others)
        os.kill(core.pid, signal.SIGKILL)
        with pytest.raises(TeacherUnavailableError, match="engine died"):
            await asyncio.wait_for(work, 60)
        await asyncio.wait_for(told.wait(), 60)
        assert len(deaths) == 1
        with pytest.raises(TeacherUnavailableError):
            await engine.score(make_job(14, SIZE))
        late = asyncio.Event()
        engine.on_death(lambda error: late.set())
        await asyncio.wait_for(late.wait(), 5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_length": 100_000}, "max_model_len"),
        ({"options": {"kv_cache_memory_bytes": 4096}}, "cache blocks"),
        ({"options": {"tensor_parallel_sise": 2}}, "tensor_parallel_size"),
        ({"options": {"tensor_parallel_size": 3}}, "heads"),
        ({"options": {"quantization": "awq"}}, "awq"),
    ],
)
async def test_what_cannot_be_served_is_one_clear_error(
    model: Path, changes: dict[str, object], says: str
) -> None:
    before = {process.pid for process in _processes("VLLM")}
    engine = vllm_engine(model, **changes)
    with pytest.raises(ConfigurationError) as refused:
        await engine.start()
    assert says.lower() in str(refused.value).lower()
    left = {process.pid for process in _processes("VLLM")} - before
    assert not left


async def test_a_checkpoint_vllm_cannot_read_is_one_clear_error(unknown_model: Path) -> None:
    with pytest.raises(ConfigurationError, match="NoSuchForCausalLM"):
        await vllm_engine(unknown_model).start()


def _processes(title: str = "") -> list[psutil.Process]:
    """Living processes below this one whose command line has ``title``."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and title in " ".join(process.cmdline()):
                found.append(process)
    return found


def _peak(pid: int) -> int:
    """Peak resident bytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
