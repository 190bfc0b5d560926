"""Whose turn it is: fair shares of tokens between runs, pure and deterministic.

``Scheduler`` holds the tickets that wait and decides which one is next. It has no clock,
tasks or locks; every operation takes O(log n).

Within a *level* (a priority), runs share by weight. The order is worst-case fair
weighted fair queueing with the virtual time of WF2Q+ (Bennett and Zhang, 1997),
counted in tokens. With w the weights of the runs that wait, a level's virtual
time V grows by tokens / sum(w) with every ticket that is admitted. A run's first
ticket starts at S = max(V, end of the run's previous ticket) and ends at
F = S + tokens / weight. Of the runs with S <= V, which are those that had no more
than their share, the one with the smallest F is next. While a run waits, the tokens
it was given differ from its weighted share by about one ticket at most. A run that
comes back after a pause starts at V: pauses earn nothing.

Higher priorities go first. While lower ones wait, ``LOWER_SHARE`` of the admitted
tokens is reserved for them, split evenly, so that nobody starves.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from teacher_server.queue.policy import RunPolicy

# Of the tokens admitted while lower levels wait, the part that is reserved for them together.
LOWER_SHARE = 0.05
# What is out of date is thrown out when that halves what is held, and not below this many.
SPARE = 64

T = TypeVar("T", bound=Hashable)


@dataclass(eq=False, slots=True)
class Deadline:
    """A point on the monotonic clock, seconds; ``inf`` when there is none.

    It can move later while work waits, because a second caller of the same work
    may have more time.
    """

    at: float

    def extend(self, at: float) -> None:
        self.at = max(self.at, at)

    def passed(self, now: float) -> bool:
        return now >= self.at


@dataclass(eq=False)
class Ticket:
    """One piece of work that asks to be admitted.

    Attributes:
        tokens: what it costs.
        policy: of the run it belongs to.
        deadline: until when it is wanted.
        begun: part of the same work was done before it; it is never refused.
        further: tokens that the same work may ask for later, besides.
        held: of those, what the quota still holds for it.
        arrived: when it was offered, seconds of the queue's clock.
    """

    tokens: int
    policy: RunPolicy
    deadline: Deadline
    begun: bool = False
    further: int = 0
    held: int = 0
    arrived: float = 0.0


class _Heap(Generic[T]):
    """Items by key, those of equal keys in the order they were set.

    Moving and dropping an item leaves its old entry where it is until it comes first.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, T]] = []
        self._current: dict[T, tuple[float, int, T]] = {}
        self._count = itertools.count()

    def set(self, item: T, key: float) -> None:
        """Adds an item, or moves it to another key."""
        entry = self._current[item] = (key, next(self._count), item)
        heapq.heappush(self._entries, entry)
        if len(self._entries) > 2 * len(self._current) + SPARE:
            self._entries = list(self._current.values())
            heapq.heapify(self._entries)

    def discard(self, item: T) -> None:
        self._current.pop(item, None)

    def first(self) -> tuple[float, T] | None:
        """(key, item) of the smallest key."""
        while self._entries:
            key, _, item = self._entries[0]
            if self._current.get(item) is self._entries[0]:
                return key, item
            heapq.heappop(self._entries)
        return None


@dataclass(eq=False)
class _Run:
    """A run within a level. ``start``: S of its first ticket, else the end of its last one."""

    name: str
    weight: float
    start: float = 0.0
    waiting: OrderedDict[Ticket, None] = field(default_factory=OrderedDict)

    @property
    def first(self) -> Ticket:
        return next(iter(self.waiting))


class _PriorityLevel:
    """The runs of one priority. ``owed``: tokens that are reserved for it and not admitted yet."""

    def __init__(self) -> None:
        self.owed = 0.0
        self._virtual = 0.0
        self._weights = 0.0  # of the runs that wait
        self._busy = 0  # how many of them there are
        self._runs: dict[str, _Run] = {}
        self._later: _Heap[_Run] = _Heap()  # by S
        self._eligible: _Heap[_Run] = _Heap()  # those with S <= V, by F

    def add(self, ticket: Ticket) -> None:
        run = self._runs.get(ticket.policy.run)
        if run is None:
            run = self._runs[ticket.policy.run] = _Run(ticket.policy.run, ticket.policy.weight)
        elif run.weight != ticket.policy.weight:
            self._weights += (ticket.policy.weight - run.weight) if run.waiting else 0.0
            run.weight = ticket.policy.weight
        run.waiting[ticket] = None
        if run.first is ticket:
            run.start = max(run.start, self._virtual)
            self._weights += run.weight
            self._busy += 1
            self._later.set(run, run.start)

    def next(self) -> Ticket:
        """The ticket to admit; some ticket has to wait."""
        return self._choose().first

    def give(self) -> Ticket:
        """Removes and returns ``next``."""
        run = self._choose()
        ticket = run.first
        run.start += ticket.tokens / run.weight
        # The sum may have lost a small weight beside a large one that has left.
        self._virtual += ticket.tokens / max(self._weights, run.weight)
        self._take_out(run, ticket)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        self._take_out(self._runs[ticket.policy.run], ticket)

    def share(self, policy: RunPolicy) -> float:
        """The part of the level's tokens that a run of this policy gets while it waits."""
        run = self._runs.get(policy.run)
        others = self._weights - (run.weight if run is not None and run.waiting else 0.0)
        return policy.weight / (policy.weight + max(0.0, others))

    @property
    def waits(self) -> bool:
        return self._busy > 0

    def _choose(self) -> _Run:
        if self._eligible.first() is None:
            earliest = self._later.first()
            assert earliest is not None
            self._virtual = max(self._virtual, earliest[0])
        while (entry := self._later.first()) is not None and entry[0] <= self._virtual:
            run = entry[1]
            self._later.discard(run)
            self._eligible.set(run, run.start + run.first.tokens / run.weight)
        chosen = self._eligible.first()
        assert chosen is not None
        return chosen[1]

    def _take_out(self, run: _Run, ticket: Ticket) -> None:
        was_first = run.first is ticket
        del run.waiting[ticket]
        if not was_first:
            return
        self._eligible.discard(run)
        self._later.discard(run)
        if run.waiting:
            self._later.set(run, run.start)
            return
        self._weights -= run.weight
        self._busy -= 1
        if not self._busy:
            self.owed = self._weights = 0.0
            self._runs.clear()
        elif len(self._runs) > 2 * self._busy + SPARE:
            self._runs = {
                name: one
                for name, one in self._runs.items()
                if one.waiting or one.start > self._virtual
            }


class Scheduler:
    """Every ticket that waits, by priority and run."""

    def __init__(self) -> None:
        self.tokens = 0
        self._tickets: OrderedDict[Ticket, None] = OrderedDict()
        self._run_tokens: dict[str, int] = {}
        self._begun: Counter[str] = Counter()  # tokens of what has begun, by run
        self._levels: dict[int, _PriorityLevel] = {}
        self._deadlines: _Heap[Ticket] = _Heap()

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._tickets

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        """In order of arrival."""
        return iter(self._tickets)

    def tokens_of(self, run: str) -> int:
        """Tokens of ``run`` that wait."""
        return self._run_tokens.get(run, 0)

    def begun_of_others(self, run: str) -> int:
        """Tokens that wait of what other runs than ``run`` have begun."""
        return self._begun.total() - self._begun[run]

    def add(self, ticket: Ticket) -> None:
        """Adds a ticket; tickets of one run and priority keep their order."""
        level = self._levels.get(ticket.policy.priority)
        if level is None:
            level = self._levels[ticket.policy.priority] = _PriorityLevel()
        level.add(ticket)
        self._tickets[ticket] = None
        self.tokens += ticket.tokens
        run = ticket.policy.run
        self._run_tokens[run] = self._run_tokens.get(run, 0) + ticket.tokens
        if ticket.begun:
            self._begun[run] += ticket.tokens
        self._deadlines.set(ticket, ticket.deadline.at)

    def next(self) -> Ticket | None:
        """Whose turn it is; None when nobody waits."""
        return self._levels[self._choose()].next() if self._levels else None

    def give(self) -> Ticket:
        """Removes and returns ``next``, and counts it as admitted."""
        priority = self._choose()
        level = self._levels[priority]
        ticket = level.give()
        if level.owed:
            level.owed = max(0.0, level.owed - ticket.tokens)
        lower = [other for p, other in self._levels.items() if p < priority]
        for other in lower:
            other.owed += ticket.tokens * LOWER_SHARE / len(lower)
        self._forget(ticket, level)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """The ticket waits no longer and was never admitted."""
        level = self._levels[ticket.policy.priority]
        level.remove(ticket)
        self._forget(ticket, level)

    def expire(self, now: float) -> list[Ticket]:
        """Removes and returns the tickets whose deadline has passed."""
        expired = []
        while (entry := self._deadlines.first()) is not None and entry[0] <= now:
            ticket = entry[1]
            if ticket.deadline.passed(now):
                self.remove(ticket)
                expired.append(ticket)
            else:
                self._deadlines.set(ticket, ticket.deadline.at)
        return expired

    def share(self, policy: RunPolicy) -> float:
        """Of the tokens admitted from now on, the part that this run gets while it waits."""
        level = self._levels.get(policy.priority)
        part = 1.0 if level is None else level.share(policy)
        if any(priority > policy.priority for priority in self._levels):
            lower = set(self._levels) | {policy.priority}
            return part * LOWER_SHARE / (len(lower) - 1)
        return part * (1 - LOWER_SHARE if len(self._levels) > (level is not None) else 1.0)

    def _choose(self) -> int:
        """The level that is next: one whose reserved tokens suffice, else the highest."""
        highest = max(self._levels)
        owed = [
            (level.owed, priority)
            for priority, level in self._levels.items()
            if priority < highest and level.owed >= level.next().tokens
        ]
        return max(owed)[1] if owed else highest

    def _forget(self, ticket: Ticket, level: _PriorityLevel) -> None:
        del self._tickets[ticket]
        self._deadlines.discard(ticket)
        self.tokens -= ticket.tokens
        run = ticket.policy.run
        self._run_tokens[run] -= ticket.tokens
        if not self._run_tokens[run]:
            del self._run_tokens[run]
        if ticket.begun:
            self._begun[run] -= ticket.tokens
            if not self._begun[run]:
                del self._begun[run]
        if not level.waits:
            del self._levels[ticket.policy.priority]
