"""The budget of bytes in flight: a pure core under random workloads, and its asyncio shell."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from teacher_proto.errors import DeadlineError, InvalidRequestError, OverloadedError

from teacher_server.queue.budget import PARTS, BudgetQueue, ByteBudget, Claim, Hold, Owner
from teacher_server.queue.byte_accounts import ADDRESS_PARTS, UNREAD_AT_ONCE, Pace
from teacher_server.settings.limits import MIB, LimitSettings

A, B, C = Owner("a"), Owner("b"), Owner("", "ipv4:127.0.0.1:1")
TOTAL, PER_OWNER, ROOM = 3200, 1600, 640
SHARED = TOTAL - TOTAL // PARTS
SMALL = PER_OWNER // PARTS


def budget(total: int = TOTAL, per_owner: int = PER_OWNER, room: int = ROOM) -> ByteBudget:
    return ByteBudget(total, per_owner, room)


sizes = st.one_of(st.integers(1, SMALL), st.integers(SMALL + 1, 860))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.integers(0, 3), sizes),
        st.tuples(st.just("grow"), st.integers(0, 40), st.integers(1, ROOM)),
        st.tuples(st.just("shrink"), st.integers(0, 40), st.integers(0, 100)),
        st.tuples(st.just("leave"), st.integers(0, 40), st.just(0)),
    ),
    max_size=120,
)


@settings(max_examples=400, deadline=None)
@given(steps=steps)
def test_bounds_hold_and_everybody_is_served_in_the_end(steps: list[tuple[str, int, int]]) -> None:
    queue = BudgetQueue(TOTAL, PER_OWNER, ROOM)
    waiting: list[Claim] = []
    held: list[Claim] = []
    grown: set[Claim] = set()

    def took(granted: list[Claim]) -> None:
        for claim in granted:
            if claim in waiting:
                waiting.remove(claim)
                held.append(claim)
        everything = held + waiting
        assert queue.held == sum(claim.size for claim in everything) <= TOTAL
        for owner, size in queue.by_owner().items():
            assert size == sum(c.size for c in everything if c.owner == owner) <= PER_OWNER

    for what, index, size in steps:
        if what == "enter":
            claim = Claim(Owner(f"run-{index}", address="" if index % 2 else "near"))
            queue.check(size, grows=False)
            waiting.append(claim)
            took(queue.offer(claim, size))
        elif held:
            claim = held[index % len(held)]
            if what == "grow" and claim not in grown:
                queue.check(claim.size + size, grows=True)
                held.remove(claim)
                waiting.append(claim)
                grown.add(claim)
                took(queue.offer(claim, claim.size + size))
            elif what == "shrink":
                took(queue.offer(claim, min(size, claim.size)))
            elif what == "leave":
                held.remove(claim)
                took(queue.leave(claim))
        assert sum(near(queue)) <= max(PER_OWNER, TOTAL // ADDRESS_PARTS)
    # Whatever is waiting gets its turn once those that were served leave.
    while held or waiting:
        assert held, "nobody can go on"
        took(queue.leave(held.pop(0)))
    assert queue.held == 0
    assert queue.by_owner() == {}


def near(queue: BudgetQueue) -> list[int]:
    return [size for owner, size in queue.by_owner().items() if owner.address]


async def entered(stack: AsyncExitStack, budget: ByteBudget, owner: Owner, size: int) -> Hold:
    return await stack.enter_async_context(budget.hold(owner, size))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_run_waits_for_its_own_bytes_and_holds_up_nobody() -> None:
    found = budget()
    async with AsyncExitStack() as first, AsyncExitStack() as stack:
        await entered(first, found, A, 860)
        waits = asyncio.create_task(entered(stack, found, A, 860))
        await settled()
        assert not waits.done()
        await entered(stack, found, B, 860)
        assert found.by_run() == {"a": 860, "b": 860}
        await first.aclose()
        await waits
        assert found.by_run() == {"a": 860, "b": 860}
    assert found.by_run() == {}


async def test_owners_take_turns_and_one_owner_s_go_in_order() -> None:
    found = budget(total=1600)
    order: list[str] = []

    async def one(name: str, owner: Owner) -> None:
        async with found.hold(owner, 800):
            order.append(name)
            await asyncio.sleep(0)

    async with found.hold(C, 800):
        work = [
            asyncio.create_task(one(name, owner))
            for name, owner in (("a1", A), ("a2", A), ("a3", A), ("b1", B), ("b2", B))
        ]
        await settled()
        assert order == []
    await asyncio.gather(*work)
    assert order == ["a1", "b1", "a2", "b2", "a3"]


async def test_a_large_one_is_not_passed_by_for_ever() -> None:
    found = budget(total=1600)
    async with AsyncExitStack() as first, AsyncExitStack() as second, AsyncExitStack() as stack:
        await entered(first, found, A, 400)
        await entered(second, found, B, 400)
        large = asyncio.create_task(entered(stack, found, C, 800))
        await settled()
        await first.aclose()
        other = asyncio.create_task(entered(stack, found, A, 300))
        await settled()
        assert not large.done()
        assert not other.done(), "it would fit, but it is not its turn"
        await second.aclose()
        await large


async def test_large_ones_never_keep_small_ones_out() -> None:
    found = budget()
    async with AsyncExitStack() as stack:
        holds = [await entered(stack, found, owner, 100 + SMALL) for owner in (A, A, B, B, C)]
        for hold, size in zip(holds, (750, 750, 750, 550), strict=False):
            await hold.resize(size)
        assert found.queue.held >= SHARED
        waits = asyncio.create_task(holds[4].resize(ROOM))
        await settled()
        assert not waits.done()
        for owner in (A, B, C):
            async with found.hold(owner, SMALL // 3) as small:
                await small.resize(SMALL // 2)
        waits.cancel()


async def test_a_hold_is_enlarged_only_where_there_is_room() -> None:
    found = budget()
    async with found.hold(A, 10) as first, found.hold(A, 10) as second:
        first.enlarge(840)
        with pytest.raises(OverloadedError) as refused:
            second.enlarge(840)
        assert refused.value.retry_after
        assert "limits.max_bytes_in_flight_per_run" in refused.value.fix
        assert second.claim.size == 10
        await first.resize(5)
        second.enlarge(840)
        with pytest.raises(InvalidRequestError, match=r"limits.max_bytes_in_flight_per_run=1600"):
            second.enlarge(861)


async def test_what_could_never_be_held_is_refused_with_the_setting() -> None:
    found = budget(total=1600)
    with pytest.raises(InvalidRequestError, match=r"limits.max_bytes_in_flight_per_run=1600"):
        async with found.hold(A, 861):
            pass
    async with found.hold(A, 860) as hold:
        with pytest.raises(InvalidRequestError) as refused:
            await hold.resize(1501)
        assert "raise limits.max_bytes_in_flight_per_run on the server" in refused.value.fix
        await hold.resize(1500)
    assert found.queue.held == 0


async def test_a_deadline_or_a_cancellation_frees_its_place() -> None:
    found = budget()
    async with AsyncExitStack() as first, AsyncExitStack() as stack:
        hold = await entered(first, found, A, 800)
        with pytest.raises(DeadlineError, match=r"limits.max_bytes_in_flight_per_run"):
            async with found.hold(A, 860, deadline=time.monotonic()):
                pass
        leaving = asyncio.create_task(entered(stack, found, A, 860))
        await settled()
        leaving.cancel()
        await settled()
        assert leaving.cancelled()
        other = await entered(stack, found, A, 100)
        with pytest.raises(DeadlineError):
            await other.resize(801, deadline=time.monotonic())
        assert other.claim.size == 100
        waits = asyncio.create_task(other.resize(1400, math.inf))
        await settled()
        await hold.resize(50)
        await waits
        assert found.by_run() == {"a": 1450}
    assert found.by_run() == {}


def test_the_settings_hold_the_largest_request_with_its_reply() -> None:
    plain = LimitSettings()
    assert plain.bytes_in_flight == 512 * MIB
    assert plain.bytes_in_flight_per_run * (PARTS - 1) // PARTS >= 128 * MIB
    large = LimitSettings(max_request_bytes=512 * MIB, max_reply_bytes=1024 * MIB)
    assert large.bytes_in_flight_per_run * (PARTS - 1) // PARTS >= 1536 * MIB
    assert large.bytes_in_flight >= 2 * 1536 * MIB
    for small in (
        {"max_bytes_in_flight": 100 * MIB},
        {"max_bytes_in_flight_per_run": 100 * MIB},
        {"max_bytes_in_flight_per_run": 600 * MIB},
    ):
        with pytest.raises(ValidationError, match="max_bytes_in_flight"):
            LimitSettings(**small)
    LimitSettings(
        max_bytes_in_flight=100 * MIB, max_tokenizer_bytes=16 * MIB, max_reply_bytes=16 * MIB
    )


def test_limits_of_any_size_leave_room_for_what_they_allow() -> None:
    limits = LimitSettings(max_request_bytes=1000, max_tokenizer_bytes=1, max_reply_bytes=777)
    found = BudgetQueue(limits.bytes_in_flight, limits.bytes_in_flight_per_run, 777)
    found.check(1000, grows=False)
    found.check(1777, grows=True)


async def test_replies_that_are_there_never_wait() -> None:
    """However much larger they are than was expected of them."""
    found = budget()

    async def one(number: int) -> None:
        async with found.hold(Owner(f"run-{number}"), 10) as hold:
            await hold.resize(ROOM - 40)
            await asyncio.sleep(0)
            hold.settle(4 * ROOM)
            assert hold.claim.size == 4 * ROOM
            await asyncio.sleep(0)

    async with asyncio.timeout(10):
        await asyncio.gather(*(one(number) for number in range(40)))
    assert found.queue.held == 0


async def test_an_address_has_a_part_of_all_and_its_connections_take_turns() -> None:
    found = budget(total=8 * PER_OWNER)
    most = 8 * PER_OWNER // ADDRESS_PARTS
    ports = [Owner("", f"10.0.0.1:{port}", "10.0.0.1") for port in range(40)]
    async with AsyncExitStack() as stack:
        waiting = [asyncio.create_task(entered(stack, found, one, 800)) for one in ports]
        await settled()
        assert 0 < found.queue.held <= most
        await entered(stack, found, Owner("", "10.0.0.2:1", "10.0.0.2"), 800)
        await entered(stack, found, A, 800)
        await entered(stack, found, ports[-1]._replace(peer="10.0.0.1:99"), SMALL // 4)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def test_messages_of_unknown_size_are_few_at_once() -> None:
    queue = BudgetQueue(TOTAL, PER_OWNER, ROOM)
    claims = [Claim(A, unread=True) for _ in range(3 * UNREAD_AT_ONCE)]
    granted = [one for claim in claims for one in queue.offer(claim, queue.unread)]
    assert granted == claims[:UNREAD_AT_ONCE]
    # One that is read, or charged with all that it may be, makes room for the next.
    assert queue.settle(claims[0], 5) == [claims[UNREAD_AT_ONCE]]
    assert queue.offer(claims[1], 400) == [claims[1], claims[UNREAD_AT_ONCE + 1]]
    # Small bodies whose size is known are not among them.
    assert len(queue.offer(Claim(A), SMALL // 2)) == 1


def test_slow_small_bodies_leave_the_part_of_the_small_ones() -> None:
    queue = BudgetQueue(TOTAL, PER_OWNER, ROOM)
    large = Claim(Owner("", "1:1", "1"))
    queue.offer(large, 860)  # there is no more room among the large ones
    slow = [Claim(Owner("", f"1:{port + 2}", "1")) for port in range(3)]
    granted = [one for claim in slow for one in queue.offer(claim, SMALL)]
    assert granted == slow[:1]
    assert queue.give_way() == []
    queue.slow(slow[0], Pace.SLOW)
    assert queue.give_way() == slow[:1]
    assert queue.give_way() == [], "it is told once"
    assert queue.leave(slow[0]) == [slow[1]]
    # Nobody waits behind one that found room among the large ones.
    queue.leave(large)
    queue.slow(slow[1], Pace.SLOW)
    assert slow[1].large
    assert queue.give_way() == []


def test_a_slow_body_gives_way_to_its_own_owner_only_when_it_stalls() -> None:
    queue = BudgetQueue(TOTAL, PER_OWNER, ROOM)
    claims = [Claim(A, unread=True) for _ in range(UNREAD_AT_ONCE + 1)]
    for claim in claims:
        queue.offer(claim, queue.unread)
    queue.slow(claims[0], Pace.SLOW)
    assert queue.give_way() == []
    queue.slow(claims[0], Pace.STALLED)
    assert queue.give_way() == [claims[0]]
    queue.keep(claims[0])
    assert queue.leave(claims[0]) == [claims[-1]]
    assert queue.give_way() == []
