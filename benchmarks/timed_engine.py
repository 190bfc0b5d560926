"""An engine of set service time: what the service does to time, without a model's noise.

It serves jobs in the order they came, one after the other, each for
``tokens / rate`` seconds in a thread of its own, and hands each back at its end.
Its rows say that every id of the vocabulary is equally likely.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from teacher_proto.errors import TeacherUnavailableError
from teacher_proto.rows import Rows, Support, Values

from teacher_server.engines.base import EngineDescription, Job, JobResult, ScoredSpan
from teacher_server.scoring.jobs import tokens_of


@dataclass(eq=False)
class _Task:
    job: Job
    future: asyncio.Future[JobResult]
    dropped: bool = False


class TimedEngine:
    """Implements ``teacher_server.engines.base.Engine``.

    Args:
        rate: tokens per second.
        pass_tokens: tokens of the largest job, which is one indivisible pass.
        began: called in the engine's thread with each job as its computing starts.
    """

    def __init__(
        self,
        *,
        rate: float,
        pass_tokens: int,
        vocabulary_size: int,
        max_length: int,
        began: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self._rate = rate
        self._began = began
        self.description = EngineDescription(
            engine="timed",
            model=f"{rate:g} tokens/s",
            weights_digest="0" * 64,
            dtype="float32",
            quantization="",
            adapter_digest="",
            vocabulary_size=vocabulary_size,
            max_length=max_length,
            deterministic=True,
            pass_tokens=pass_tokens,
        )
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="timed-engine", daemon=True)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def score(self, job: Job) -> JobResult:
        if self._loop is None or not self._thread.is_alive():
            raise TeacherUnavailableError("the engine is closed", where="engine")
        task = _Task(job, self._loop.create_future())
        self._tasks.put(task)
        try:
            return await task.future
        finally:
            task.dropped = True

    def on_death(self, callback: Callable[[BaseException], None]) -> None:
        """A sleeping thread does not die."""

    async def close(self) -> None:
        self._tasks.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        assert self._loop is not None
        while (task := self._tasks.get()) is not None:
            if task.dropped:
                continue
            self._began(task.job)
            begin = time.monotonic()
            time.sleep(tokens_of(task.job) / self._rate)
            rows = tuple(self._rows(task.job, span) for span in task.job.spans)
            result = JobResult(rows, tokens_of(task.job), time.monotonic() - begin)
            self._loop.call_soon_threadsafe(_settle, task.future, result)

    def _rows(self, job: Job, span: ScoredSpan) -> Rows:
        count = len(span.positions)
        even = np.float32(-math.log(self.description.vocabulary_size))
        ids = np.arange(job.top_k, dtype=np.int32)
        return Rows(
            support=Support(
                np.broadcast_to(ids, (count, job.top_k)),
                np.full((count, job.top_k), even, np.float32),
                np.full(count, job.top_k, np.int32),
            ),
            sampled=Values(np.full(count, even, np.float32), np.ones(count, np.bool_))
            if job.want_sampled
            else None,
        )


def _settle(future: asyncio.Future[JobResult], result: JobResult) -> None:
    if not future.done():
        future.set_result(result)
