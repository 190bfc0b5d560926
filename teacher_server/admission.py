"""Admission by tokens: what may enter an engine, what waits, what is refused.

``AdmissionQueue`` is the pure core: no clock of its own, no tasks, no locks.
``Admission`` is the asyncio shell around it. The order is first in, first out;
``AdmissionQueue._next`` is the one place that decides who is next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from teacher_proto.errors import DeadlineError, OverloadedError

# What a refused caller is told before any throughput was measured, and the
# bounds of every hint, seconds.
FIRST_HINT = 1.0
MIN_HINT = 0.1
MAX_HINT = 60.0


class Deadline:
    """A point on the monotonic clock, seconds; ``inf`` when there is none.

    It can move later while work waits, because a second caller of the same work
    may have more time.
    """

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at = at

    def extend(self, at: float) -> None:
        self.at = max(self.at, at)

    def passed(self, now: float) -> bool:
        return now >= self.at


@dataclass(eq=False)
class Ticket:
    """One piece of work: what it costs, whose it is, until when it is wanted."""

    tokens: int
    run: str
    deadline: Deadline
    arrived: float = 0.0


class Throughput:
    """Tokens per second while the engine is busy, forgetting what is long past."""

    def __init__(self, window: float = 30.0) -> None:
        self._window = window
        self._tokens = 0.0
        self._busy = 0.0
        self._since: float | None = None

    def observe(self, now: float, *, busy: bool, finished_tokens: int = 0) -> None:
        """Records what ended at ``now`` and whether the engine is busy from then on."""
        if self._since is not None:
            self._busy += max(0.0, now - self._since)
        self._tokens += finished_tokens
        if self._busy > self._window:
            self._busy /= 2
            self._tokens /= 2
        self._since = now if busy else None

    def rate(self) -> float | None:
        """Tokens per second; None before anything finished."""
        if self._busy <= 0 or self._tokens <= 0:
            return None
        return self._tokens / self._busy


class AdmissionQueue:
    """A token-bounded queue in front of a token-bounded engine.

    At most ``max_inflight_tokens`` are admitted at once, except that one ticket
    larger than that is admitted when nothing else is in flight. At most
    ``max_queue_tokens`` wait.
    """

    def __init__(self, *, max_inflight_tokens: int, max_queue_tokens: int) -> None:
        self.max_inflight_tokens = max_inflight_tokens
        self.max_queue_tokens = max_queue_tokens
        self.inflight_tokens = 0
        self.queued_tokens = 0
        self.throughput = Throughput()
        self._queue: dict[Ticket, None] = {}
        self._inflight: set[Ticket] = set()

    def offer(self, ticket: Ticket, now: float) -> bool:
        """Takes a new ticket: True when it is admitted at once, False when it waits.

        Raises:
            OverloadedError: it would have to wait and the queue has no room.
        """
        ticket.arrived = now
        if not self._queue and self._fits(ticket):
            self._admit(ticket, now)
            return True
        if self.queued_tokens + ticket.tokens > self.max_queue_tokens:
            raise OverloadedError(
                f"the queue holds {self.queued_tokens} tokens and the request's {ticket.tokens} "
                f"do not fit into limits.max_queue_tokens={self.max_queue_tokens}",
                fix="retry after the hinted time, send less at once, or raise "
                "limits.max_queue_tokens on the server",
                retry_after=self.retry_after(ticket.tokens),
            )
        self._queue[ticket] = None
        self.queued_tokens += ticket.tokens
        return False

    def leave(self, ticket: Ticket, now: float, *, completed: bool) -> None:
        """The ticket waits no longer or its work ended; does nothing when it is not held."""
        if ticket in self._queue:
            del self._queue[ticket]
            self.queued_tokens -= ticket.tokens
        elif ticket in self._inflight:
            self._inflight.remove(ticket)
            self.inflight_tokens -= ticket.tokens
            self.throughput.observe(
                now,
                busy=bool(self._inflight),
                finished_tokens=ticket.tokens if completed else 0,
            )

    def advance(self, now: float) -> tuple[list[Ticket], list[Ticket]]:
        """(admitted, expired): moves what fits into flight and drops what came too late."""
        admitted: list[Ticket] = []
        expired = [ticket for ticket in self._queue if ticket.deadline.passed(now)]
        for ticket in expired:
            self.leave(ticket, now, completed=False)
        while (ticket_ := self._next()) is not None and self._fits(ticket_):
            self.leave(ticket_, now, completed=False)
            self._admit(ticket_, now)
            admitted.append(ticket_)
        return admitted, expired

    def retry_after(self, tokens: int) -> float:
        """Seconds until the queue has moved on far enough for ``tokens`` more."""
        rate = self.throughput.rate()
        if rate is None:
            return FIRST_HINT
        missing = self.queued_tokens + tokens - self.max_queue_tokens
        return min(MAX_HINT, max(MIN_HINT, missing / rate))

    def oldest_wait(self, now: float) -> float:
        """Seconds the first in the queue has waited; 0 when nobody waits."""
        first = next(iter(self._queue), None)
        return 0.0 if first is None else now - first.arrived

    def _next(self) -> Ticket | None:
        return next(iter(self._queue), None)

    def _fits(self, ticket: Ticket) -> bool:
        return not self._inflight or (
            self.inflight_tokens + ticket.tokens <= self.max_inflight_tokens
        )

    def _admit(self, ticket: Ticket, now: float) -> None:
        if not self._inflight:
            self.throughput.observe(now, busy=True)
        self._inflight.add(ticket)
        self.inflight_tokens += ticket.tokens


class Admission:
    """The queue on an event loop: ``async with admission.slot(ticket)``."""

    def __init__(self, queue: AdmissionQueue, clock: Callable[[], float] = time.monotonic) -> None:
        self.queue = queue
        self._clock = clock
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def slot(self, ticket: Ticket) -> AsyncIterator[float]:
        """Waits for room in the engine and gives the seconds waited.

        Cancelling the waiter frees its place, queued or in flight.

        Raises:
            OverloadedError: no room in the queue.
            DeadlineError: the ticket's deadline passed before it was its turn.
        """
        if ticket.deadline.passed(self._clock()):
            raise expired_in_queue()
        completed = False
        try:
            if not self.queue.offer(ticket, self._clock()):
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting[ticket] = future
                await future
            yield self._clock() - ticket.arrived
            completed = True
        finally:
            self._waiting.pop(ticket, None)
            self.queue.leave(ticket, self._clock(), completed=completed)
            self._advance()

    def oldest_wait(self) -> float:
        return self.queue.oldest_wait(self._clock())

    def _advance(self) -> None:
        admitted, expired = self.queue.advance(self._clock())
        for ticket in admitted:
            future = self._waiting.pop(ticket)
            if not future.done():
                future.set_result(None)
        for ticket in expired:
            future = self._waiting.pop(ticket)
            if not future.done():
                future.set_exception(expired_in_queue())


def expired_in_queue() -> DeadlineError:
    return DeadlineError(
        "the deadline passed while the request waited; nothing was computed for it",
        fix="give the call more time, or send less at once",
    )
