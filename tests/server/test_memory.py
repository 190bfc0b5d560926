"""What large bodies leave in the allocator's heaps goes back to the system."""

from __future__ import annotations

import asyncio
import platform
from pathlib import Path

import pytest

from teacher_server import memory
from teacher_server.queue.budget import ByteBudget
from teacher_server.queue.byte_accounts import Owner
from tests.server.running import Running, eventually
from tests.support.http2 import message, raw_caller

MIB = 1 << 20
BLOCK = 32 * 1024


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its heaps are glibc's")
def test_free_pages_in_the_middle_of_a_heap_are_given_back() -> None:
    blocks = [bytearray(b"a") * BLOCK for _ in range(96 * MIB // BLOCK)]
    last = bytearray(b"a") * BLOCK  # what lies behind them keeps them from being given back
    del blocks
    before = resident()
    memory.give_back_free_pages()
    assert before - resident() > 48 * MIB
    assert last


async def test_pages_are_given_back_after_many_bytes_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, looked, passed = 0, 0, 0

    def give() -> None:
        nonlocal given
        given += 1

    def bytes_passed() -> int:
        nonlocal looked
        looked += 1
        return passed

    async def look_on() -> None:
        until = looked + 3
        await eventually(lambda: looked >= until)

    monkeypatch.setattr(memory, "give_back_free_pages", give)
    monkeypatch.setattr(memory, "LOOK_SECONDS", 0.001)
    watching = asyncio.create_task(memory.give_back_after(bytes_passed))
    await look_on()
    passed = memory.GIVEN_BACK_AFTER - 1
    await look_on()
    assert given == 0
    passed += 1
    await eventually(lambda: given == 1)
    await look_on()
    assert given == 1
    watching.cancel()


async def test_the_budget_counts_bodies_that_it_holds_no_more() -> None:
    budget = ByteBudget(8 * MIB, 4 * MIB)
    async with budget.hold(Owner("run", "", ""), MIB) as hold:
        hold.body = MIB
        assert budget.passed == 0
    async with budget.hold(Owner("run", "", ""), MIB):
        pass
    assert budget.passed == MIB


async def test_a_server_gives_back_what_large_bodies_left(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(
        memory, "give_back_free_pages", lambda: loop.call_soon_threadsafe(given.set)
    )
    monkeypatch.setattr(memory, "GIVEN_BACK_AFTER", MIB)
    async with raw_caller(server.server.grpc_address) as caller:
        caller.begin(1, "/teacher_proto.v1.TeacherScoringService/Score")
        await caller.send(1, message(2 * MIB) + b"\xff" * 2 * MIB, end=True)
        await asyncio.wait_for(given.wait(), 60)
