"""The admission queue: a pure core under random workloads, and its asyncio shell."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_proto.errors import DeadlineError, OverloadedError

from teacher_server.queue.admission import (
    FIRST_HINT,
    GOLDEN,
    MAX_HINT,
    MIN_HINT,
    Admission,
    AdmissionQueue,
)
from teacher_server.queue.policy import RunPolicy
from teacher_server.queue.quota import Quotas
from teacher_server.queue.scheduler import Deadline, Ticket
from teacher_server.queue.throughput import Throughput


def ticket(tokens: int, until: float = math.inf, run: str = "run", **policy: Any) -> Ticket:
    return Ticket(tokens, RunPolicy(run, **policy), Deadline(until))


def refusal(queue: AdmissionQueue, item: Ticket, now: float) -> OverloadedError | None:
    """Why ``item`` cannot enter now; None when it can. Nothing is taken in."""
    try:
        queue.check(item.policy, item.tokens, now)
    except OverloadedError as error:
        return error
    return None


events = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["offer 1", "offer 2"]), st.integers(1, 60), st.integers(0, 20)),
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
            first = next(t for t in waiting if t.policy.run == item.policy.run)
            assert item is first, "not first in, first out within its run"
            waiting.remove(item)
            inflight.append(item)

    for kind, number, extra in events:
        if kind == "wait":
            now += number
        elif kind.startswith("offer"):
            item = ticket(number, now + extra if extra else math.inf, run=kind)
            free = 100 - sum(t.tokens for t in waiting)
            own = sum(t.tokens for t in waiting if t.policy.run == kind)
            refused = refusal(queue, item, now)
            if refused is None:
                (inflight if queue.offer(item, now) else waiting).append(item)
            else:
                assert number > free or (own and own + number > free - number)
                assert refused.retry_after is not None
                assert MIN_HINT <= refused.retry_after <= MAX_HINT
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
            assert queue.inflight_tokens + max(t.tokens for t in waiting) > 50

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
        queue.offer(ticket(50, run="another"), 4.0)
    assert measured.value.reason == "OVERLOADED"
    assert measured.value.retry_after == pytest.approx(50 / 25)
    with pytest.raises(OverloadedError, match="the part of one run") as own:
        queue.offer(ticket(0), 4.0)
    assert own.value.reason == "RUN_QUEUE_FULL"
    # The run's part and the queue shrink together: 25 tokens a second each. What it has
    # waiting takes 4 seconds, over which those it is told to come back are spread.
    assert own.value.retry_after == pytest.approx(100 / 50 + GOLDEN * 4.0)


def test_a_hint_is_true_when_nobody_else_comes() -> None:
    """An engine of 100 tokens a second; the run comes back when it was told to."""
    queue = AdmissionQueue(max_inflight_tokens=10, max_queue_tokens=1000)
    now = 0.0
    inflight: list[Ticket] = []
    for run in ("mine", "other", "another"):
        for _ in range(30):
            item = ticket(10, run=run)
            if refusal(queue, item, now) is None and queue.offer(item, now):
                inflight.append(item)

    def step() -> None:
        nonlocal now
        now += 0.1
        queue.leave(inflight.pop(), now, completed=True)
        inflight.extend(queue.advance(now)[0])

    for _ in range(5):
        step()
    while (refused := refusal(queue, ticket(10, run="mine"), now)) is None:
        queue.offer(ticket(10, run="mine"), now)
    assert refused.retry_after is not None
    back = now + refused.retry_after
    hints = [refusal(queue, ticket(10, run="mine"), now) for _ in range(100)]
    waits = sorted(hint.retry_after or 0.0 for hint in hints if hint is not None)
    drained = 3 * sum(t.tokens for t in queue._waiting if t.policy.run == "mine") / 100.0
    steps = [after - before for before, after in itertools.pairwise(waits)]
    assert max(steps) < 0.03 * drained, "all come back at once"
    assert waits[-1] < refused.retry_after + drained, "the run runs dry"
    while now < back + 0.2:  # two tickets' time: the hint counts tokens, not tickets
        step()
    queue.offer(ticket(10, run="mine"), now)


def test_floods_leave_room_for_runs_that_have_nothing_waiting() -> None:
    queue = AdmissionQueue(max_inflight_tokens=10, max_queue_tokens=1024)
    for number in range(4):
        flood = ticket(8, run=f"flood-{number}")
        while (full := refusal(queue, flood, 0.0)) is None:
            queue.offer(ticket(8, run=f"flood-{number}"), 0.0)
        assert full.reason == "RUN_QUEUE_FULL"
    assert not queue.offer(ticket(32, run="newcomer"), 0.0)


def test_a_quota_refuses_before_anything_is_counted() -> None:
    quotas = Quotas()
    one, two = (
        AdmissionQueue(max_inflight_tokens=10, max_queue_tokens=20, quotas=quotas) for _ in range(2)
    )
    one.offer(ticket(40, tokens_per_minute=60), 0.0)
    with pytest.raises(OverloadedError) as found:
        two.offer(ticket(40, tokens_per_minute=60), 0.0)  # one quota over all teachers
    assert found.value.retry_after == pytest.approx(20.0)
    assert two.queued_tokens == two.inflight_tokens == 0
    with pytest.raises(OverloadedError, match="max_queue_tokens"):
        one.offer(ticket(21, tokens_per_minute=60), 0.0 + 1.0)
    two.offer(ticket(20, tokens_per_minute=60), 1.0)  # the refused one was not counted


def test_a_small_ticket_passes_one_that_needs_more_room() -> None:
    queue = AdmissionQueue(max_inflight_tokens=10, max_queue_tokens=100)
    queue.offer(ticket(6, run="large"), 0.0)
    large, small = ticket(9, run="large"), ticket(2, run="small")
    queue.offer(large, 0.0)
    assert queue.advance(0.0) == ([], [])
    queue.offer(small, 0.0)
    assert queue.advance(0.0) == ([small], [])


def test_idle_time_does_not_count_as_throughput() -> None:
    meter = Throughput()
    meter.observe(0.0, busy=True)
    meter.observe(2.0, busy=False, finished_tokens=20)
    meter.observe(1000.0, busy=True)
    meter.observe(1001.0, busy=False, finished_tokens=10)
    assert meter.rate() == pytest.approx(10.0)


def begun(tokens: int, held: int = 0, run: str = "run", **policy: Any) -> Ticket:
    made = ticket(tokens, run=run, **policy)
    made.begun, made.held = True, held
    return made


def test_what_one_run_has_begun_takes_no_room_of_another() -> None:
    queue = AdmissionQueue(max_inflight_tokens=10, max_queue_tokens=4000)
    queue.offer(ticket(10, run="one"), 0.0)
    later = [begun(513, run="one") for _ in range(63)]
    assert not any(queue.offer(item, 0.0) for item in later)
    assert queue.queued_tokens == 63 * 513
    with pytest.raises(OverloadedError):
        queue.offer(ticket(10, run="one"), 0.0)
    assert not queue.offer(ticket(4000, run="two"), 0.0)
    with pytest.raises(OverloadedError, match=r"^4000 tokens wait"):
        queue.offer(ticket(10, run="three"), 0.0)
    for item in later:
        queue.leave(item, 0.0, completed=False)
    assert queue.queued_tokens == 4000
    assert queue._waiting.begun_of_others("two") == 0


def test_work_is_taken_in_when_there_is_room_for_what_it_may_ask_for_later() -> None:
    queue = AdmissionQueue(max_inflight_tokens=5, max_queue_tokens=100)
    queue.offer(ticket(5, run="other"), 0.0)
    assert not queue.check(RunPolicy("one"), 10, 0.0, further=500)  # all room there is
    queue.offer(ticket(60, run="another"), 0.0)
    assert not queue.check(RunPolicy("one"), 10, 0.0, further=30)
    with pytest.raises(OverloadedError):
        queue.check(RunPolicy("one"), 10, 0.0, further=31)


def test_many_small_requests_do_not_overdraw_a_quota_together() -> None:
    """Each is of 10 tokens and asks for 513 later: what the quota holds for them is enough."""
    queue = AdmissionQueue(max_inflight_tokens=1 << 20, max_queue_tokens=1 << 20)
    policy = RunPolicy("run", tokens_per_minute=4000)
    taken: list[Ticket] = []
    for _ in range(64):
        first = Ticket(10, policy, Deadline(math.inf), further=513)
        with contextlib.suppress(OverloadedError):
            queue.offer(first, 0.0)
            taken.append(first)
    assert len(taken) == 4000 // 523
    for first in taken:
        later = begun(500, first.held, tokens_per_minute=4000)
        queue.offer(later, 0.0)
        queue.give_back(policy, later.held, 0.0)
    queue.check(policy, 4000 - len(taken) * 510, 0.0)
    with pytest.raises(OverloadedError):
        queue.check(policy, 4001 - len(taken) * 510, 0.0)
    # A quota that could never hold all of it takes it in when it is full.
    queue.check(RunPolicy("small", tokens_per_minute=100), 10, 0.0, further=513)


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
