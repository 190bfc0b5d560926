"""Replies are computed once and kept within bounds."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import pytest
from teacher_proto.errors import EngineError, TeacherUnavailableError

from teacher_server.queue.scheduler import Deadline
from teacher_server.scoring.replay import Key, ReplayWindow

KEY: Key = ("run", "id", b"digest")


class Work:
    """Counts computations; each waits for the gate and returns a new value."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.deadlines: list[Deadline] = []
        self.gate = asyncio.Event()

    async def __call__(self, deadline: Deadline) -> bytes:
        self.calls += 1
        call = self.calls
        self.deadlines.append(deadline)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b"reply %d" % call


def window(**changes: float) -> ReplayWindow:
    return ReplayWindow(**({"max_entries": 2, "max_bytes": 100, "max_seconds": 10.0} | changes))  # type: ignore[arg-type]


def opened() -> Work:
    work = Work()
    work.gate.set()
    return work


async def test_a_repeat_gives_the_same_bytes_and_computes_nothing() -> None:
    replay, work = window(), opened()
    assert await replay.answer(KEY, math.inf, work) == (b"reply 1", False)
    assert await replay.answer(KEY, math.inf, work) == (b"reply 1", True)
    other = ("run", "id", b"another body")
    assert await replay.answer(other, math.inf, work) == (b"reply 2", False)


async def test_a_duplicate_joins_and_outlives_the_original() -> None:
    replay, work = window(), Work()
    original = asyncio.create_task(replay.answer(KEY, 5.0, work))
    await asyncio.sleep(0)
    joiner = asyncio.create_task(replay.answer(KEY, 9.0, work))
    await asyncio.sleep(0)
    original.cancel()
    await asyncio.wait({original})
    work.gate.set()
    assert await joiner == (b"reply 1", True)
    assert original.cancelled()
    assert (work.calls, work.cancelled) == (1, 0)
    assert work.deadlines[0].at == 9.0, "the joiner's later deadline holds"


async def test_the_work_stops_with_its_last_caller_and_a_new_one_starts_again() -> None:
    replay, work = window(), Work()
    callers = [asyncio.create_task(replay.answer(KEY, math.inf, work)) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    again = asyncio.create_task(replay.answer(KEY, math.inf, work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    work.gate.set()
    assert await again == (b"reply 2", False)
    assert (work.calls, work.cancelled) == (2, 1)


async def test_stopped_work_that_ends_late_does_not_disturb_its_successor() -> None:
    replay, successor = window(), Work()
    cleanup = asyncio.Event()

    async def lingering(deadline: Deadline) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            await cleanup.wait()
        return b"never"

    stopped = asyncio.create_task(replay.answer(KEY, math.inf, lingering))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stopped.cancel()
    await asyncio.wait({stopped})
    callers = [asyncio.create_task(replay.answer(KEY, math.inf, successor))]
    await asyncio.sleep(0)
    cleanup.set()
    for _ in range(5):
        await asyncio.sleep(0)
    callers.append(asyncio.create_task(replay.answer(KEY, math.inf, successor)))
    await asyncio.sleep(0)
    successor.gate.set()
    assert await asyncio.gather(*callers) == [(b"reply 1", False), (b"reply 1", True)]


async def test_a_failure_reaches_every_caller_and_is_not_kept() -> None:
    replay, good = window(), opened()
    gate = asyncio.Event()

    async def bad(deadline: Deadline) -> bytes:
        await gate.wait()
        raise EngineError("no")

    callers = [asyncio.create_task(replay.answer(KEY, math.inf, bad)) for _ in range(2)]
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [EngineError, EngineError]
    assert await replay.answer(KEY, math.inf, good) == (b"reply 1", False)


async def test_abandoned_work_fails_with_the_error_given() -> None:
    replay, work = window(), Work()
    caller = asyncio.create_task(replay.answer(KEY, math.inf, work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    replay.abandon(TeacherUnavailableError("gone"))
    with pytest.raises(TeacherUnavailableError, match="gone"):
        await caller
    await replay.close()
    assert work.cancelled == 1


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"max_entries": 2}, [False, True, True]),
        ({"max_entries": 0}, [False, False, False]),
        ({"max_entries": 9, "max_bytes": 14}, [False, True, True]),
        ({"max_entries": 9, "max_bytes": 6}, [False, False, False]),
    ],
)
async def test_the_window_is_bounded(changes: dict[str, float], kept: list[bool]) -> None:
    replay, work = window(**changes), opened()
    keys: list[Key] = [("run", str(number), b"") for number in range(3)]
    for key in keys:
        await replay.answer(key, math.inf, work)
    assert replay.kept_bytes <= replay.max_bytes
    found = {key: (await replay.answer(key, math.inf, work))[1] for key in reversed(keys)}
    assert [found[key] for key in keys] == kept


async def test_old_replies_are_forgotten() -> None:
    now = 0.0
    replay = ReplayWindow(max_entries=9, max_bytes=99, max_seconds=10.0, clock=lambda: now)
    work: Callable[[Deadline], Awaitable[bytes]] = opened()
    await replay.answer(KEY, math.inf, work)
    now = 9.9
    assert (await replay.answer(KEY, math.inf, work))[1]
    now = 10.0
    assert not (await replay.answer(KEY, math.inf, work))[1]
    assert replay.kept_bytes == len(b"reply 2")
