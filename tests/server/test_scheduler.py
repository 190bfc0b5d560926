"""The scheduler under random workloads: shares, order, priorities, removal."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from teacher_server.queue.policy import RunPolicy
from teacher_server.queue.scheduler import LOWER_SHARE, SPARE, Deadline, Scheduler, Ticket

LARGEST = 1000  # tokens of a ticket
tokens = st.integers(1, LARGEST)
weights = st.sampled_from([0.1, 0.5, 1.0, 1.0, 2.0, 7.0])


def ticket(
    size: int, run: str = "run", weight: float = 1.0, priority: int = 0, until: float = math.inf
) -> Ticket:
    return Ticket(size, RunPolicy(run, weight, priority), Deadline(until))


def drain(scheduler: Scheduler) -> Iterable[Ticket]:
    while scheduler.next() is not None:
        yield scheduler.give()


@settings(max_examples=300, deadline=None)
@given(
    runs=st.lists(
        st.tuples(weights, st.lists(tokens, min_size=1, max_size=30)), min_size=2, max_size=8
    )
)
@example(runs=[(7.0, [1] * 30), *[(0.1, [LARGEST] * 5)] * 7])
@example(runs=[(7.0, [LARGEST] * 30), *[(0.1, [1] * 5)] * 7])
@example(runs=[(10.0, [1] * 30), *[(1.0, [1] * 30)] * 7])
def test_a_waiting_run_s_tokens_are_its_share_within_one_ticket(
    runs: list[tuple[float, list[int]]],
) -> None:
    scheduler = Scheduler()
    for number, (weight, sizes) in enumerate(runs):
        for size in sizes:
            scheduler.add(ticket(size, str(number), weight))
    left = {str(number): len(sizes) for number, (_, sizes) in enumerate(runs)}
    share = {str(number): weight for number, (weight, _) in enumerate(runs)}
    total = sum(share.values())
    given, largest = dict.fromkeys(left, 0), max(max(sizes) for _, sizes in runs)
    while all(left.values()):  # everybody waits
        found = scheduler.give()
        run = found.policy.run
        left[run] -= 1
        given[run] += found.tokens
        for name, got in given.items():
            ideal = sum(given.values()) * share[name] / total
            assert abs(got - ideal) < largest * (1 + 1e-9)


events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5), tokens, st.integers(0, 30)),
        st.tuples(st.just("give"), st.integers(1, 4), st.just(0), st.just(0)),
        st.tuples(st.just("remove"), st.integers(0, 50), st.just(0), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 10), st.just(0), st.just(0)),
    ),
    max_size=150,
)


@settings(max_examples=300, deadline=None)
@given(
    events=events,
    policies=st.lists(st.tuples(weights, st.integers(-1, 1)), min_size=6, max_size=6),
)
def test_any_workload_is_conserved_ordered_and_shared(
    events: list[tuple[str, int, int, int]], policies: list[tuple[float, int]]
) -> None:
    """Arrivals, cancellations and deadlines: nothing is lost, doubled or out of its run's
    order; work is given out whenever some waits; and between two runs of one level that
    both wait, neither gets ahead of the other by more than two tickets' worth each."""
    scheduler = Scheduler()
    waiting: list[Ticket] = []
    now = 0.0
    # Virtual service since both of a pair wait without a break.
    ahead: dict[tuple[str, str], float] = defaultdict(float)

    def check() -> None:
        assert scheduler.tokens == sum(t.tokens for t in waiting) >= 0
        assert len(scheduler) == len(waiting)
        assert list(scheduler) == waiting, "order of arrival"
        names = {t.policy.run for t in waiting}
        for name in map(str, range(6)):
            own = sum(t.tokens for t in waiting if t.policy.run == name)
            assert scheduler.tokens_of(name) == own
        for pair in [p for p in ahead if not set(p) <= names]:
            del ahead[pair]

    for kind, number, size, time in events:
        if kind == "wait":
            now += number
            late = [t for t in waiting if t.deadline.passed(now)]
            assert set(scheduler.expire(now)) == set(late)
            waiting = [t for t in waiting if t not in late]
        elif kind == "add":
            weight, priority = policies[number]
            until = now + time if time else math.inf
            item = ticket(size, str(number), weight, priority, until)
            scheduler.add(item)
            waiting.append(item)
        elif kind == "remove" and waiting:
            scheduler.remove(waiting.pop(number % len(waiting)))
        elif kind == "give":
            for _ in range(min(number, len(waiting))):
                expected = scheduler.next()
                found = scheduler.give()
                assert found is expected
                run = found.policy.run
                assert found is next(t for t in waiting if t.policy.run == run)
                names = {t.policy.run for t in waiting}
                waiting.remove(found)
                for other in names - {run}:
                    if policies[int(other)][1] == policies[int(run)][1]:
                        ahead[run, other] += found.tokens / found.policy.weight
                        ahead[other, run] -= found.tokens / found.policy.weight
                check()
                for (one, other), much in ahead.items():
                    bound = LARGEST / policies[int(one)][0] + LARGEST / policies[int(other)][0]
                    assert much <= 2 * bound
        check()
    assert len(list(drain(scheduler))) == len(waiting)
    assert scheduler.next() is None
    assert scheduler.tokens == len(scheduler) == 0


@settings(max_examples=200, deadline=None)
@given(
    flood=st.lists(tokens, min_size=200, max_size=200),
    size=tokens,
    weight=weights,
    heavier=weights,
    priorities=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_nobody_starves_behind_higher_priorities_and_weights(
    flood: list[int], size: int, weight: float, heavier: float, priorities: list[int]
) -> None:
    """Floods that never end at every higher level: the lowest run is still served, after
    the bound that docs/service.md gives."""
    scheduler = Scheduler()
    levels = sorted(set(priorities))
    for priority in levels:
        for each in flood:
            scheduler.add(ticket(each, f"flood-{priority}", heavier, priority))
    low = ticket(size, "low", weight)
    scheduler.add(low)
    # Each lower level is owed its part of LOWER_SHARE, and waits its turn among them.
    bound = (size + len(levels) * LARGEST) * len(levels) / LOWER_SHARE
    before = 0
    for found in drain(scheduler):
        if found is low:
            break
        before += found.tokens
        scheduler.add(
            ticket(found.tokens, found.policy.run, found.policy.weight, found.policy.priority)
        )
        assert before <= bound + LARGEST, "it starves"


def test_a_higher_priority_goes_first_but_for_what_lower_ones_are_owed() -> None:
    scheduler = Scheduler()
    for _ in range(400):
        scheduler.add(ticket(10, "high", priority=1))
        scheduler.add(ticket(10, "low"))
    order = [scheduler.give().policy.run for _ in range(400)]
    assert order.count("low") == pytest.approx(400 * LOWER_SHARE, abs=1)
    assert order[:19] == ["high"] * 19


def test_a_pause_earns_nothing_and_costs_nothing() -> None:
    scheduler = Scheduler()
    for _ in range(300):
        scheduler.add(ticket(10, "steady"))
    for _ in range(100):
        scheduler.give()
    for _ in range(100):
        scheduler.add(ticket(10, "late"))
    order = [scheduler.give().policy.run for _ in range(100)]
    assert order.count("late") == 50
    assert {*order[:2]} == {"late", "steady"}


def test_a_small_request_goes_before_the_flood_that_came_first() -> None:
    scheduler = Scheduler()
    for _ in range(100):
        scheduler.add(ticket(1000, "flood"))
    scheduler.give()
    small = ticket(10, "small")
    scheduler.add(small)
    assert scheduler.give() is small


def test_a_weight_that_changes_holds_from_the_next_ticket_on() -> None:
    scheduler = Scheduler()
    for _ in range(50):
        scheduler.add(ticket(1, "a"))
        scheduler.add(ticket(1, "b"))
    for _ in range(10):
        scheduler.give()
    for _ in range(50):
        scheduler.add(ticket(1, "a", weight=3.0))
    order = [scheduler.give().policy.run for _ in range(40)]
    assert order.count("a") == pytest.approx(30, abs=1)


def test_weights_of_any_size_stay_sound() -> None:
    scheduler = Scheduler()
    for _ in range(3):
        scheduler.add(ticket(1, "huge", weight=1e12))
        scheduler.add(ticket(1, "tiny", weight=1e-12))
    order = [found.policy.run for found in drain(scheduler)]
    assert order == ["huge"] * 3 + ["tiny"] * 3


def test_a_deadline_that_moved_is_not_taken_for_the_old_one() -> None:
    scheduler = Scheduler()
    item = ticket(1, until=5.0)
    scheduler.add(item)
    item.deadline.extend(9.0)
    assert scheduler.expire(6.0) == []
    assert scheduler.expire(9.0) == [item]
    assert scheduler.next() is None


def test_what_has_left_is_forgotten() -> None:
    """Memory follows what waits, not how many runs and tickets there ever were."""
    scheduler = Scheduler()
    scheduler.add(ticket(1, "stays"))
    for number in range(5000):
        item = ticket(5, f"run-{number}", until=1e9)
        scheduler.add(item)
        if number % 2:
            scheduler.remove(item)
        else:
            scheduler.give()
            scheduler.add(ticket(1, "stays"))
    level = scheduler._levels[0]
    assert len(level._runs) <= 2 * level._busy + SPARE + 1
    for heap in (scheduler._deadlines, level._later, level._eligible):
        assert len(heap._entries) <= 2 * len(heap._current) + SPARE
