"""The bytes of request bodies and replies that the server holds, of both wires, on an event
loop: ``BudgetQueue`` decides who may hold how many.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from teacher_proto.errors import DeadlineError, OverloadedError

from teacher_server.queue.byte_accounts import PARTS, PER_OWNER, TOTAL, Claim, Owner, Pace
from teacher_server.queue.byte_queue import BudgetQueue

__all__ = ["PARTS", "BudgetQueue", "ByteBudget", "Claim", "Hold", "Owner", "no_room"]

# A body that is not there after so many seconds arrives slowly; after STALLED_AFTER its own
# owner waits for it no longer than others do.
SLOW_AFTER = 0.25
STALLED_AFTER = 5.0
# When one who was refused may come back, seconds.
RETRY_SECONDS = 1.0


class Hold:
    """Bytes held by one call; see ``ByteBudget.hold``.

    Attributes:
        claim: what it holds, to look at.
        body: bytes of the request, once it was read.
        gave_way: whether its body came so slowly that others have its room.
    """

    def __init__(self, budget: ByteBudget, claim: Claim, deadline: float) -> None:
        self.body = 0
        self._budget = budget
        self.claim = claim
        self._deadline = deadline

    @property
    def gave_way(self) -> bool:
        return self.claim.left

    async def resize(self, size: int, deadline: float = math.inf) -> None:
        """Holds ``size`` bytes instead; more than now waits for room, less never does.

        Args:
            deadline: of a wait, ``time.monotonic``.

        Raises:
            InvalidRequestError: more than could ever be held.
            DeadlineError: there was no room until the deadline; what was held still is.
        """
        self._budget.queue.check(size, grows=True)
        await self._budget.wait(self.claim, size, deadline)

    async def expect(self, reply: int) -> None:
        """Holds the body and ``reply`` bytes, as ``resize`` does, until the call's deadline."""
        await self.resize(self.body + reply, self._deadline)

    def grow(self, reply: int) -> bool:
        """Whether the body and ``reply`` bytes are held, as ``expect`` has it, without a wait;
        where there is no room now nothing changes."""
        size = self.body + reply
        return size <= self.claim.size or self._budget.queue.enlarge(self.claim, size, grows=True)

    def settle(self, size: int) -> None:
        """Holds ``size`` bytes, which are there already: it never waits, and goes beyond the
        bounds where they were expected to be fewer."""
        self._budget.tell(self._budget.queue.settle(self.claim, size))

    def enlarge(self, size: int) -> None:
        """Holds ``size`` bytes, more than now, at once and as one that only now enters.

        Raises:
            InvalidRequestError: more than could ever be held.
            OverloadedError: there is no room for them now.
        """
        queue = self._budget.queue
        queue.check(size, grows=False)
        if not queue.enlarge(self.claim, size):
            raise no_room(f"{size} bytes of a body that came without its length")

    async def enter(self, size: int) -> None:
        """Holds ``size`` bytes instead as one that only now enters, before anything of a body
        was read; until the call's deadline, as ``ByteBudget.hold``."""
        self._budget.queue.check(size, grows=False)
        self.settle(0)
        self.claim.entered = False
        await self._budget.wait(self.claim, size, self._deadline)

    async def charge(self, size: int) -> None:
        """Waits for room for ``size`` bytes of a message of which some may be there, as one
        that only now enters and keeps what it holds meanwhile.

        Raises:
            InvalidRequestError: more than could ever be held.
        """
        self._budget.queue.check(size, grows=False)
        await self._budget.wait(self.claim, size, math.inf)

    @contextmanager
    def arriving(
        self, give_way: Callable[[], None], slow_after: float = SLOW_AFTER
    ) -> Iterator[None]:
        """While a body arrives: where it is slow, small ones that wait have its room.

        Args:
            give_way: called once when it has to end for them.
            slow_after: seconds; 0 of one that is slow already.
        """
        loop = asyncio.get_running_loop()
        claim, budget = self.claim, self._budget
        budget.giving_way[claim] = give_way
        timers = [
            loop.call_later(seconds, lambda pace: budget.tell(budget.queue.slow(claim, pace)), pace)
            for seconds, pace in ((slow_after, Pace.SLOW), (STALLED_AFTER, Pace.STALLED))
        ]
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()
            budget.queue.keep(claim)
            del budget.giving_way[claim]


class ByteBudget:
    """The budget on an event loop: ``async with budget.hold(owner, size) as hold``.

    Args:
        total: bytes of everybody.
        per_owner: bytes of one owner.
        reply_room: bytes of the largest reply, for which a hold may grow.

    Attributes:
        giving_way: what to call for a claim whose body has to give way.
    """

    def __init__(self, total: int, per_owner: int, reply_room: int = 0) -> None:
        self.queue = BudgetQueue(total, per_owner, reply_room)
        self.giving_way: dict[Claim, Callable[[], None]] = {}
        self._waiting: dict[Claim, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def hold(
        self, owner: Owner, size: int, deadline: float = math.inf, *, unread: bool = False
    ) -> AsyncIterator[Hold]:
        """Waits for room for ``size`` bytes and holds them, or what ``resize`` makes of them,
        until the block ends; cancelling the caller frees them.

        Args:
            deadline: of the wait, ``time.monotonic``.
            unread: they stand for a message of unknown size.

        Raises:
            InvalidRequestError: more than could ever be held.
            DeadlineError: there was no room until the deadline.
        """
        self.queue.check(size, grows=False)
        claim = Claim(owner, unread=unread)
        try:
            await self.wait(claim, size, deadline)
            yield Hold(self, claim, deadline)
        finally:
            self.tell(self.queue.leave(claim))

    def by_run(self) -> dict[str, int]:
        """run -> bytes held; those of callers without a run under the empty name."""
        found: dict[str, int] = {}
        for owner, size in self.queue.by_owner().items():
            found[owner.run] = found.get(owner.run, 0) + size
        return found

    async def wait(self, claim: Claim, size: int, deadline: float) -> None:
        """Until the claim holds ``size`` bytes; see ``Hold.resize``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[claim] = future
        self.tell(self.queue.offer(claim, size))
        try:
            async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
                await future
        except TimeoutError:
            raise DeadlineError(
                f"the deadline passed while {size} bytes waited for room",
                fix="give the call more time, send less at once, or raise "
                f"{PER_OWNER} and {TOTAL} on the server",
            ) from None
        finally:
            if self._waiting.pop(claim, None) is not None:
                self.tell(self.queue.stay(claim))

    def tell(self, granted: list[Claim]) -> None:
        """Lets those go on that have room, and those end whose room others wait for."""
        for claim in granted:
            future = self._waiting.pop(claim, None)
            if future is not None and not future.done():
                future.set_result(None)
        for claim in self.queue.give_way():
            self.giving_way[claim]()


def no_room(what: str) -> OverloadedError:
    """The refusal of a body for which there is no room."""
    return OverloadedError(
        f"there is no room for {what}",
        where="the request's body",
        fix=f"send less at once, or raise {PER_OWNER} and {TOTAL} on the server",
        reason="TOO_MANY_BYTES",
        retry_after=RETRY_SECONDS,
    )
