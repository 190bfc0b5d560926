"""What waits for vLLM's outputs, without vLLM: order, cancelling, death, data-parallel ranks."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from teacher_proto.errors import TeacherUnavailableError

from teacher_server.engines.vllm.requests import PendingRequests


class Client:
    """Keeps what it is given; outputs and failures are put into ``answers``."""

    def __init__(self, expected: int) -> None:
        self.given: list[Any] = []
        self.complete = asyncio.Event()
        self.expected = expected
        self.aborted: list[str] = []
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.asked = False

    async def add_request_async(self, request: Any) -> None:
        self.given.append(request)
        if len(self.given) == self.expected:
            self.complete.set()

    async def abort_requests_async(self, names: list[str]) -> None:
        self.aborted += names

    async def answers_taken(self) -> None:
        """Returns once all answers were read and the next one is asked for."""
        await self.answers.join()

    async def get_output_async(self) -> Any:
        if self.asked:
            self.answers.task_done()
        self.asked = True
        answer = await self.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return SimpleNamespace(outputs=answer)


def requests(count: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(request_id="", data_parallel_rank=None) for _ in range(count)]


def output(request: Any, reason: str | None = "length") -> SimpleNamespace:
    return SimpleNamespace(request_id=request.request_id, finish_reason=reason)


async def test_outputs_come_in_the_order_of_the_requests() -> None:
    client = Client(3)
    pending = PendingRequests(client, ranks=1)
    reader = asyncio.ensure_future(pending.read())
    work = asyncio.ensure_future(pending.run(requests(3), tokens=30))
    await client.complete.wait()
    assert len(pending) == 3
    assert [one.data_parallel_rank for one in client.given] == [None] * 3
    answers = [output(one) for one in client.given]
    client.answers.put_nowait([output(client.given[0], reason=None), *answers[::-1]])
    assert await work == answers
    assert len(pending) == 0
    assert client.aborted == []
    reader.cancel()


async def test_a_cancelled_job_leaves_only_what_is_answered() -> None:
    client = Client(3)
    pending = PendingRequests(client, ranks=1)
    reader = asyncio.ensure_future(pending.read())
    work = asyncio.ensure_future(pending.run(requests(3), tokens=30))
    await client.complete.wait()
    client.answers.put_nowait([output(client.given[1])])
    await client.answers_taken()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert client.aborted == [client.given[0].request_id, client.given[2].request_id]
    assert len(pending) == 0
    reader.cancel()


async def test_death_fails_what_is_pending_and_nothing_is_aborted() -> None:
    client = Client(2)
    pending = PendingRequests(client, ranks=1)
    reader = asyncio.ensure_future(pending.read())
    work = asyncio.ensure_future(pending.run(requests(2), tokens=20))
    await client.complete.wait()
    cause = RuntimeError("the core is gone")
    client.answers.put_nowait(cause)
    assert await reader is cause
    with pytest.raises(TeacherUnavailableError, match="the engine died of RuntimeError"):
        await work
    assert client.aborted == []


async def test_a_job_goes_to_the_rank_with_the_fewest_tokens() -> None:
    client = Client(6)
    pending = PendingRequests(client, ranks=2)
    jobs = [
        asyncio.ensure_future(pending.run(requests(count), tokens))
        for count, tokens in ((2, 100), (1, 10), (1, 10), (1, 200), (1, 10))
    ]
    await client.complete.wait()
    assert [one.data_parallel_rank for one in client.given] == [0, 0, 1, 1, 1, 0]
    pending.end(None)
    for job in jobs:
        with pytest.raises(TeacherUnavailableError, match="closed"):
            await job
