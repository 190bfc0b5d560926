"""Room for rows in a student's process, and turns to compute: bounded, and in order."""

from __future__ import annotations

import asyncio

import pytest

from teacher_server.workers.room import Room
from teacher_server.workers.turns import HALF_LIFE, Turns, Use

pytestmark = pytest.mark.asyncio


async def hold(room: Room, size: int, log: list[int], leave: asyncio.Event) -> None:
    async with room.hold(size):
        log.append(size)
        await leave.wait()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_room_is_given_in_order_and_never_more_than_there_is() -> None:
    room, log = Room(10), list[int]()
    leaves = [asyncio.Event() for _ in range(4)]
    sizes = (6, 7, 3, 99)
    tasks = [asyncio.create_task(hold(room, s, log, e)) for s, e in zip(sizes, leaves, strict=True)]
    await settled()
    assert log == [6]  # 3 would fit, and waits behind 7
    leaves[0].set()
    await settled()
    assert log == [6, 7, 3]
    leaves[1].set()
    await settled()
    assert log == [6, 7, 3]  # more than there is waits for all of it
    leaves[2].set()
    await settled()
    assert log == [6, 7, 3, 99]
    leaves[3].set()
    await asyncio.gather(*tasks)


async def test_who_leaves_the_queue_keeps_nobody_waiting() -> None:
    room, log = Room(10), list[int]()
    leave = asyncio.Event()
    first = asyncio.create_task(hold(room, 6, log, leave))
    await settled()
    gone = asyncio.create_task(hold(room, 9, log, leave))
    await settled()
    last = asyncio.create_task(hold(room, 4, log, leave))
    await settled()
    assert log == [6]
    gone.cancel()
    await settled()
    assert log == [6, 4]
    leave.set()
    await asyncio.gather(first, last)
    async with asyncio.timeout(1), room.hold(10):
        pass


async def turn(turns: Turns, run: str, log: list[str], leave: asyncio.Event) -> None:
    async with turns.take(run):
        log.append(run)
        await leave.wait()


async def test_the_run_that_has_used_least_is_next_and_one_run_never_has_all_turns() -> None:
    use, log = Use(lambda: 0.0), list[str]()
    turns = Turns(total=2, per_run=1, quick=0, use=use)
    use.add("greedy", 5.0)
    asked = ["greedy", "greedy", "greedy", "other", "third"]
    leaves = [asyncio.Event() for _ in asked]
    tasks = [
        asyncio.create_task(turn(turns, r, log, e)) for r, e in zip(asked, leaves, strict=True)
    ]
    await settled()
    assert log == ["greedy", "other"]
    leaves[0].set()
    await settled()
    assert log == ["greedy", "other", "third"]
    leaves[3].set()
    await settled()
    assert log == ["greedy", "other", "third", "greedy"]
    tasks[2].cancel()
    for leave in leaves:
        leave.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(1), turns.take("a"), turns.take("b"):
        pass


async def test_what_is_quick_finds_a_turn_beside_what_is_not() -> None:
    use, log, leave = Use(lambda: 0.0), list[str](), asyncio.Event()
    turns = Turns(total=1, per_run=1, quick=1, use=use, seconds=0.0)
    for run in ("first", "second"):
        use.add(run, 5.0)
    long = [asyncio.create_task(turn(turns, run, log, leave)) for run in ("first", "second")]
    await settled()
    assert log == ["first"]  # the second has used much
    for run in ("new", "newer"):  # each leaves the quick turn when it lasts
        long.append(asyncio.create_task(turn(turns, run, log, leave)))
        await settled()
    async with asyncio.timeout(1), turns.take("little"):
        pass
    assert log == ["first", "new", "newer"]
    leave.set()
    await asyncio.gather(*long)
    assert log[-1] == "second"
    async with asyncio.timeout(1), turns.take("second"), turns.take("little"):
        pass


async def test_what_is_long_ago_counts_less() -> None:
    at = 0.0
    use = Use(lambda: at)
    use.add("run", 8.0)
    at = 2 * HALF_LIFE
    assert use.of("run") == 2.0
    assert use.of("another") == 0.0


async def test_a_run_that_asks_for_much_leaves_others_their_turn() -> None:
    room, log = Room(10), list[str]()
    leaves: list[asyncio.Event] = []

    async def hold_of(run: str, leave: asyncio.Event) -> None:
        async with room.hold(10, run):
            log.append(run)
            await leave.wait()

    tasks = []
    for run in ("flood", "flood", "flood", "flood", "other"):
        leaves.append(asyncio.Event())
        tasks.append(asyncio.create_task(hold_of(run, leaves[-1])))
    await settled()
    assert log == ["flood"]
    for leave in leaves:
        leave.set()
    await asyncio.gather(*tasks)
    assert log == ["flood", "flood", "other", "flood", "flood"]
