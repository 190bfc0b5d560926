"""The admission queue: a pure core under random workloads, and its asyncio shell."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_proto.errors import DeadlineError, OverloadedError

from teacher_server.admission import (
    FIRST_HINT,
    Admission,
    AdmissionQueue,
    Deadline,
    Throughput,
    Ticket,
)


def ticket(tokens: int, until: float = math.inf) -> Ticket:
    return Ticket(tokens=tokens, run="run", deadline=Deadline(until))


events = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.integers(1, 60), st.integers(0, 20)),
        st.tuples(st.just("finish"), st.integers(0, 10), st.booleans()),
        st.tuples(st.just("withdraw"), st.integers(0, 10), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 10), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(events=events)
def test_bounds_order_and_work_conservation_hold_under_any_workload(
    events: list[tuple[str, int, int]],
) -> None:
    queue = AdmissionQueue(max_inflight_tokens=50, max_queue_tokens=100)
    now = 0.0
    waiting: list[Ticket] = []
    inflight: list[Ticket] = []

    def settle() -> None:
        admitted, expired = queue.advance(now)
        for item in expired:
            assert item.deadline.passed(now)
            waiting.remove(item)
        for item in admitted:
            assert not item.deadline.passed(now), "expired work was admitted"
            assert item is waiting[0], "not first in, first out"
            inflight.append(waiting.pop(0))

    for kind, number, extra in events:
        if kind == "wait":
            now += number
        elif kind == "offer":
            item = ticket(number, now + extra if extra else math.inf)
            before = sum(t.tokens for t in waiting)
            try:
                (inflight if queue.offer(item, now) else waiting).append(item)
            except OverloadedError:
                assert before + number > 100
        elif kind == "finish" and inflight:
            item = inflight.pop(number % len(inflight))
            queue.leave(item, now, completed=bool(extra))
        elif kind == "withdraw" and waiting:
            item = waiting.pop(number % len(waiting))
            queue.leave(item, now, completed=False)
        settle()
        assert queue.queued_tokens == sum(t.tokens for t in waiting) <= 100
        assert queue.inflight_tokens == sum(t.tokens for t in inflight)
        assert queue.inflight_tokens <= 50 or len(inflight) == 1
        if waiting:
            assert inflight, "the engine idles while work waits"
            assert queue.inflight_tokens + waiting[0].tokens > 50

    while waiting or inflight:
        queue.leave(inflight.pop(), now, completed=True)
        settle()
    assert queue.queued_tokens == queue.inflight_tokens == 0


@pytest.mark.parametrize(("tokens", "refused"), [(9, False), (10, False), (11, True)])
def test_the_queue_takes_exactly_its_limit(tokens: int, refused: bool) -> None:
    queue = AdmissionQueue(max_inflight_tokens=5, max_queue_tokens=10)
    assert queue.offer(ticket(5), 0.0)
    if not refused:
        assert not queue.offer(ticket(tokens), 0.0)
        return
    with pytest.raises(OverloadedError, match=r"limits\.max_queue_tokens=10"):
        queue.offer(ticket(tokens), 0.0)


def test_hints_follow_the_measured_throughput() -> None:
    queue = AdmissionQueue(max_inflight_tokens=100, max_queue_tokens=100)
    first = ticket(100)
    queue.offer(first, 0.0)
    queue.offer(ticket(100), 0.0)
    with pytest.raises(OverloadedError) as unknown:
        queue.offer(ticket(50), 0.0)
    assert unknown.value.retry_after == FIRST_HINT
    queue.leave(first, 4.0, completed=True)  # 25 tokens per second
    queue.advance(4.0)
    queue.offer(ticket(100), 4.0)
    with pytest.raises(OverloadedError) as measured:
        queue.offer(ticket(50), 4.0)
    assert measured.value.retry_after == pytest.approx(50 / 25)


def test_idle_time_does_not_count_as_throughput() -> None:
    meter = Throughput()
    meter.observe(0.0, busy=True)
    meter.observe(2.0, busy=False, finished_tokens=20)
    meter.observe(1000.0, busy=True)
    meter.observe(1001.0, busy=False, finished_tokens=10)
    assert meter.rate() == pytest.approx(10.0)


async def test_a_waiter_past_its_deadline_is_told_and_never_admitted() -> None:
    now = 0.0
    admission = Admission(AdmissionQueue(max_inflight_tokens=1, max_queue_tokens=9), lambda: now)
    entered: list[str] = []

    async def work(name: str, until: float) -> None:
        async with admission.slot(ticket(1, until)):
            entered.append(name)
            if name == "first":
                await release.wait()

    release = asyncio.Event()
    first = asyncio.create_task(work("first", math.inf))
    await asyncio.sleep(0)
    late = asyncio.create_task(work("late", 5.0))
    last = asyncio.create_task(work("last", math.inf))
    await asyncio.sleep(0)
    assert admission.queue.queued_tokens == 2
    now = 6.0
    release.set()
    with pytest.raises(DeadlineError):
        await late
    await asyncio.gather(first, last)
    assert entered == ["first", "last"]
    with pytest.raises(DeadlineError):
        await work("already late", 6.0)
    assert admission.queue.queued_tokens == admission.queue.inflight_tokens == 0


async def test_cancelling_frees_the_place_queued_or_admitted() -> None:
    admission = Admission(AdmissionQueue(max_inflight_tokens=1, max_queue_tokens=9))
    entered: list[int] = []

    async def work(number: int) -> None:
        async with admission.slot(ticket(1)):
            entered.append(number)
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(work(number)) for number in range(4)]
    await asyncio.sleep(0)
    assert entered == [0]
    tasks[1].cancel()  # queued
    await asyncio.wait({tasks[1]})
    assert admission.queue.queued_tokens == 2
    tasks[0].cancel()  # in flight: the next one is admitted
    await asyncio.sleep(0)
    assert admission.queue.queued_tokens == 1
    tasks[2].cancel()  # admitted, but not running yet
    await asyncio.wait({tasks[2]})
    await asyncio.sleep(0)
    assert entered == [0, 3]
    tasks[3].cancel()
    await asyncio.wait({tasks[3]})
    assert admission.queue.queued_tokens == admission.queue.inflight_tokens == 0
