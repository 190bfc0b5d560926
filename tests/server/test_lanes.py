"""Who waits for whom in the threads that read, render and tokenize."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator

import pytest

from teacher_server.lanes import HEAVY_THREADS, LIGHT_BYTES, MAX_OWNERS, Lanes
from tests.server.running import LONG

HEAVY = LIGHT_BYTES + 1


class Held:
    """Work that begins, and ends when it is told to."""

    def __init__(self, order: list[str], name: str) -> None:
        self._order, self._name = order, name
        self.begun, self._end = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self._order.append(self._name)
        self.begun.set()
        assert self._end.wait(LONG)
        return self._name

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, LONG)

    def end(self) -> None:
        self._end.set()


class Hall:
    def __init__(self) -> None:
        self.lanes, self.order = Lanes(), list[str]()
        self.works: list[Held] = []

    def start(self, name: str, owner: str, size: int = HEAVY) -> tuple[Held, asyncio.Task[str]]:
        work = Held(self.order, name)
        self.works.append(work)
        return work, asyncio.create_task(self.lanes.run(work, size=size, owner=owner))


@pytest.fixture
async def hall() -> AsyncIterator[Hall]:
    made = Hall()
    yield made
    for work in made.works:
        work.end()


async def test_one_owner_leaves_a_thread_to_others(hall: Hall) -> None:
    first, first_done = hall.start("a1", "a")
    _, waits = hall.start("a2", "a")
    await first.has_begun()
    other, other_done = hall.start("b1", "b")
    other.end()
    assert await other_done == "b1"
    assert hall.order == ["a1", "b1"]
    assert not waits.done()
    hall.works[1].end()
    first.end()
    assert [await first_done, await waits] == ["a1", "a2"]


async def test_light_work_does_not_wait_for_heavy_work(hall: Hall) -> None:
    for number in range(HEAVY_THREADS + 1):
        hall.start(f"heavy {number}", f"owner {number}")
    for work in hall.works[:HEAVY_THREADS]:
        await work.has_begun()
    light, done = hall.start("light", "owner 0", size=LIGHT_BYTES)
    light.end()
    assert await done == "light"
    assert "heavy 2" not in hall.order


async def test_owners_that_wait_take_turns(hall: Hall) -> None:
    for number in range(HEAVY_THREADS):
        await hall.start(f"before {number}", f"before {number}")[0].has_begun()
    waiting = [
        hall.start(name, name[0])[1] for name in ("a1", "a2", "a3", "b1", "c1") for _ in range(1)
    ]
    await asyncio.sleep(0)
    for work in hall.works[HEAVY_THREADS:]:
        work.end()
    hall.works[0].end()  # one thread is free: one after the other
    await asyncio.gather(*waiting)
    assert hall.order[HEAVY_THREADS:] == ["a1", "b1", "c1", "a2", "a3"]


async def test_work_that_is_given_up_before_its_turn_is_never_done(hall: Hall) -> None:
    first, _ = hall.start("a1", "a")
    _, given_up = hall.start("a2", "a")
    third, third_done = hall.start("a3", "a")
    await first.has_begun()
    given_up.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await given_up
    first.end()
    third.end()
    assert await third_done == "a3"
    assert hall.order == ["a1", "a3"]


async def test_work_that_has_begun_keeps_its_thread_when_it_is_given_up(hall: Hall) -> None:
    first, given_up = hall.start("a1", "a")
    await first.has_begun()
    given_up.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await given_up
    second, done = hall.start("a2", "a")
    await asyncio.sleep(0)
    assert not second.begun.is_set()
    first.end()
    second.end()
    assert await done == "a2"


async def test_a_turn_that_is_given_to_who_has_just_gone_goes_on(hall: Hall) -> None:
    first, first_done = hall.start("a1", "a")
    _, gone = hall.start("a2", "a")
    third, third_done = hall.start("a3", "a")
    await first.has_begun()
    first_done.add_done_callback(lambda _: gone.cancel())
    first.end()
    third.end()
    hall.works[1].end()
    assert await third_done == "a3"
    with contextlib.suppress(asyncio.CancelledError):
        await gone


def spend(seconds: float) -> None:
    """Keeps the processor busy for so long, in this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize("size", [HEAVY, LIGHT_BYTES])
async def test_time_is_shared_and_not_the_number_of_pieces(hall: Hall, size: int) -> None:
    """An owner of long pieces waits until one of short pieces has had as much time."""
    held = [hall.start(f"before {n}", f"before {n}", size) for n in range(HEAVY_THREADS)]
    for work, _ in held:
        await work.has_begun()
    order: list[str] = []

    def piece(owner: str, seconds: float) -> asyncio.Task[None]:
        def work() -> None:
            order.append(owner)
            spend(seconds)

        return asyncio.create_task(hall.lanes.run(work, size=size, owner=owner))

    waiting = [piece("long", 0.05) for _ in range(3)] + [piece("short", 0.001) for _ in range(10)]
    await asyncio.sleep(0)
    held[0][0].end()  # one thread is free: one after the other
    await asyncio.gather(*waiting)
    assert order == ["long", *["short"] * 10, "long", "long"]


async def test_having_been_away_earns_nothing(hall: Hall) -> None:
    held, _ = hall.start("before", "before")
    await held.has_begun()
    order: list[str] = []

    def piece(owner: str) -> asyncio.Task[None]:
        def work() -> None:
            order.append(owner)
            spend(0.01)

        return asyncio.create_task(hall.lanes.run(work, size=HEAVY, owner=owner))

    for _ in range(8):
        await piece("old")
    order.clear()
    await asyncio.gather(*[piece(owner) for owner in ("late", "old") for _ in range(6)])
    assert order[0] == "late", "who has used less is not first"
    assert order[:6].count("old") >= 2, "the newcomer makes up for what it never asked for"


async def test_owners_without_work_are_forgotten(hall: Hall) -> None:
    for number in range(3 * MAX_OWNERS):
        await hall.lanes.run(lambda: spend(1e-5), size=1, owner=f"run {number}")
    assert len(hall.lanes._light._owners) <= 2 * MAX_OWNERS
