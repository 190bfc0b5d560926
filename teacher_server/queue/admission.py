"""Admission by tokens: what may enter an engine, what waits, and what is refused.

``AdmissionQueue`` is the pure core, without a clock, tasks or locks; the ``scheduler``
decides who is next. ``Admission`` runs it on an event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from teacher_proto.errors import DeadlineError, OverloadedError

from teacher_server.queue.policy import RunPolicy
from teacher_server.queue.quota import Quotas
from teacher_server.queue.scheduler import Scheduler, Ticket
from teacher_server.queue.throughput import Throughput

# When a refused caller should come back, seconds: before any throughput was measured, and
# the bounds of every hint.
FIRST_HINT = 1.0
MIN_HINT = 0.1
MAX_HINT = 60.0
# Multiples of it, modulo 1, are spread evenly, however many there are.
GOLDEN = 0.6180339887498949


class AdmissionQueue:
    """A token-bounded queue in front of a token-bounded engine.

    At most ``max_inflight_tokens`` are in flight at once; a larger ticket is admitted when
    nothing else is in flight. At most ``max_queue_tokens`` wait of work that has not begun. A
    run that already waits may take no more of them than it leaves free, so that another run
    finds room however much the first ones send.

    What has begun is never refused, and takes room of its own run alone. Work is taken in when
    there is room and quota for what it may ask for later too, as far as that is known; the
    quota holds this for it until it is given back. ``max_queue_tokens`` and a minute's quota
    bound it: a request that they hold is not refused for ever for what it may ask for later.
    """

    def __init__(
        self, *, max_inflight_tokens: int, max_queue_tokens: int, quotas: Quotas | None = None
    ) -> None:
        self.max_inflight_tokens = max_inflight_tokens
        self.max_queue_tokens = max_queue_tokens
        self.inflight_tokens = 0
        self.throughput = Throughput()
        self._quotas = quotas or Quotas()
        self._waiting = Scheduler()
        self._inflight: set[Ticket] = set()
        self._refusals = 0

    @property
    def queued_tokens(self) -> int:
        return self._waiting.tokens

    def check(self, policy: RunPolicy, tokens: int, now: float, further: int = 0) -> bool:
        """True when a ticket of this many tokens would be admitted at once, False when it
        would wait.

        Args:
            further: as in ``Ticket``.

        Raises:
            OverloadedError: it would have to wait and the queue has no room for the
                run, or the run has used its quota.
            InvalidRequestError: the run's quota is smaller than the ticket.
        """
        self._quotas.check(policy, tokens + _held(policy, tokens, further), now)
        enters = self._enters(tokens)
        if not enters:
            self._check_room(policy, min(tokens + further, max(tokens, self.max_queue_tokens)))
        return enters

    def offer(self, ticket: Ticket, now: float) -> bool:
        """Takes a new ticket: True when it is admitted at once, False when it waits.

        Raises:
            OverloadedError, InvalidRequestError: as ``check``; never for what has begun.
        """
        if ticket.begun:
            enters = self._enters(ticket.tokens)
        else:
            enters = self.check(ticket.policy, ticket.tokens, now, ticket.further)
            ticket.held = _held(ticket.policy, ticket.tokens, ticket.further)
            self._quotas.take(ticket.policy, ticket.held, now)
        held = min(ticket.held, ticket.tokens) if ticket.begun else 0
        ticket.held -= held
        self._quotas.take(ticket.policy, ticket.tokens - held, now)
        ticket.arrived = now
        self._waiting.add(ticket)
        if enters:
            self._admit(self._waiting.give(), now)
        return enters

    def give_back(self, policy: RunPolicy, held: int, now: float) -> None:
        """What the quota held for work that has ended is the run's again."""
        self._quotas.give_back(policy, held, now)

    def leave(self, ticket: Ticket, now: float, *, completed: bool) -> None:
        """The ticket waits no longer or its work ended; does nothing when it is not held."""
        if ticket in self._inflight:
            self._inflight.remove(ticket)
            self.inflight_tokens -= ticket.tokens
            self.throughput.observe(
                now,
                busy=bool(self._inflight),
                finished_tokens=ticket.tokens if completed else 0,
            )
        elif ticket in self._waiting:
            self._waiting.remove(ticket)

    def advance(self, now: float) -> tuple[list[Ticket], list[Ticket]]:
        """(admitted, expired): admits what fits and drops what has passed its deadline."""
        admitted: list[Ticket] = []
        expired = self._waiting.expire(now)
        while (ticket := self._waiting.next()) is not None and self._fits(ticket.tokens):
            self._admit(self._waiting.give(), now)
            admitted.append(ticket)
        return admitted, expired

    def by_run(self, now: float) -> dict[str, tuple[int, float]]:
        """run -> (tokens that wait, seconds the first of them has waited)."""
        found: dict[str, tuple[int, float]] = {}
        for ticket in self._waiting:
            run = ticket.policy.run
            if run not in found:
                found[run] = self._waiting.tokens_of(run), now - ticket.arrived
        return found

    def oldest_wait(self, now: float) -> float:
        """Seconds the longest wait so far has taken; 0 when nobody waits."""
        first = next(iter(self._waiting), None)
        return 0.0 if first is None else now - first.arrived

    def _enters(self, tokens: int) -> bool:
        return self._fits(tokens) and not len(self._waiting)

    def _fits(self, tokens: int) -> bool:
        return not self._inflight or self.inflight_tokens + tokens <= self.max_inflight_tokens

    def _check_room(self, policy: RunPolicy, tokens: int) -> None:
        waiting = self.queued_tokens - self._waiting.begun_of_others(policy.run)
        free = self.max_queue_tokens - waiting
        own = self._waiting.tokens_of(policy.run)
        # The first of a run needs room, every further one leaves as much as the run has.
        missing = tokens - free if own == 0 else own + tokens - (free - tokens)
        if missing <= 0:
            return
        full = tokens > free
        raise OverloadedError(
            f"{waiting} tokens wait, {own} of them of run {policy.run!r}, and the "
            f"request's {tokens} do not fit into "
            f"{'' if full else 'the part of one run of '}"
            f"limits.max_queue_tokens={self.max_queue_tokens}",
            fix="retry after the hinted time, send less at once, or raise "
            "limits.max_queue_tokens on the server",
            reason="" if full else "RUN_QUEUE_FULL",
            retry_after=self._hint(policy, missing, own),
        )

    def _hint(self, policy: RunPolicy, missing: int, own: int) -> float:
        """Seconds until ``missing`` tokens fit, if nobody else comes.

        Room grows as the queue is served, and a second time as the run's own part of it
        is. Callers of one run that are refused one after the other are spread over the
        time in which the run's waiting tokens are served: they do not all come back at
        once, and the run never lacks work.
        """
        rate = self.throughput.rate()
        if rate is None:
            return FIRST_HINT
        own_rate = rate * self._waiting.share(policy)
        self._refusals += 1
        spread = (self._refusals - 1) * GOLDEN % 1.0
        seconds = missing / (rate + own_rate if own else rate) + spread * own / own_rate
        return min(MAX_HINT, max(MIN_HINT, seconds))

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
        """Waits for room in the engine and yields the seconds waited.

        Cancelling the caller frees its place, in the queue or in flight.

        Raises:
            OverloadedError, InvalidRequestError: see ``AdmissionQueue.check``.
            DeadlineError: the ticket's deadline passed before it was its turn.
        """
        if ticket.deadline.passed(self._clock()):
            raise expired_in_queue(ticket)
        completed = False
        try:
            if not self.queue.offer(ticket, self._clock()):
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting[ticket] = future
                self._advance()  # it may be next, before one that waits for more room
                await future
            yield self._clock() - ticket.arrived
            completed = True
        finally:
            self._waiting.pop(ticket, None)
            self.queue.leave(ticket, self._clock(), completed=completed)
            self._advance()

    def check(self, policy: RunPolicy, tokens: int) -> None:
        """Refuses at once what ``slot`` would refuse; see ``AdmissionQueue.check``."""
        self.queue.check(policy, tokens, self._clock())

    def give_back(self, policy: RunPolicy, held: int) -> None:
        """See ``AdmissionQueue.give_back``."""
        self.queue.give_back(policy, held, self._clock())

    def oldest_wait(self) -> float:
        return self.queue.oldest_wait(self._clock())

    def by_run(self) -> dict[str, tuple[int, float]]:
        return self.queue.by_run(self._clock())

    def _advance(self) -> None:
        admitted, expired = self.queue.advance(self._clock())
        for ticket in admitted:
            future = self._waiting.pop(ticket)
            if not future.done():
                future.set_result(None)
        for ticket in expired:
            future = self._waiting.pop(ticket)
            if not future.done():
                future.set_exception(expired_in_queue(ticket))


def _held(policy: RunPolicy, tokens: int, further: int) -> int:
    """Of ``further``, what the run's quota holds for work of ``tokens``: no more than makes a
    minute's quota with them."""
    quota = policy.tokens_per_minute
    return 0 if quota is None else min(further, max(quota - tokens, 0))


def expired_in_queue(ticket: Ticket) -> DeadlineError:
    lost = "what was computed for it is lost" if ticket.begun else "nothing was computed for it"
    return DeadlineError(
        f"the deadline passed while the request waited; {lost}",
        fix="give the call more time, or send less at once",
    )
