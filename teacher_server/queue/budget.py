"""The bytes of request bodies and replies that the server holds: who may hold how many.

``BudgetQueue`` is the pure core, without a clock, tasks or locks. ``ByteBudget`` runs it on
an event loop, for both wires.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from teacher_proto.errors import DeadlineError, InvalidRequestError, OverloadedError

TOTAL = "limits.max_bytes_in_flight"
PER_OWNER = "limits.max_bytes_in_flight_per_run"
# Larger holds leave one part in so many of each bound to small ones, so that large bodies
# and replies that nobody sends or reads to their end never keep a small request out.
PARTS = 16
LARGEST_SMALL = 1 << 20
# When one who was refused may come back, seconds.
RETRY_SECONDS = 1.0


class Owner(NamedTuple):
    """Whose bytes they are: a run's, or those of one peer where no run is known."""

    run: str
    peer: str = ""


@dataclass(eq=False)
class Claim:
    """Bytes that are held, and how many are asked for instead."""

    owner: Owner
    size: int = 0
    wanted: int = 0


class _Line:
    """Claims that wait: in order of arrival within an owner, owners in turn."""

    def __init__(self) -> None:
        self._owners: OrderedDict[Owner, deque[Claim]] = OrderedDict()

    def add(self, claim: Claim) -> None:
        self._owners.setdefault(claim.owner, deque()).append(claim)

    def discard(self, claim: Claim) -> None:
        waiting = self._owners.get(claim.owner)
        if waiting is not None and claim in waiting:
            waiting.remove(claim)
            if not waiting:
                del self._owners[claim.owner]

    def heads(self) -> Iterable[Claim]:
        return [waiting[0] for waiting in self._owners.values()]

    def served(self, claim: Claim) -> None:
        """Takes the claim out; its owner's next turn is after everybody else's."""
        self._owners.move_to_end(claim.owner)
        self.discard(claim)


@dataclass
class _Account:
    """One bound and what is held of it, of which ``small`` is in small holds."""

    setting: str
    bound: int
    held: int = 0
    small: int = 0

    @property
    def part(self) -> int:
        """Bytes that only small holds may have."""
        return self.bound // PARTS

    def take(self, size: int, *, small: bool) -> None:
        self.held += size
        if small:
            self.small += size


class BudgetQueue:
    """At most ``total`` bytes are held, at most ``per_owner`` of them by one owner.

    A claim enters, and may then grow once, when the size of its reply is known. What enters
    leaves ``reply_room`` of both bounds free, so that whatever has entered can grow in the
    end. Those that grow go before those that enter, small ones before large ones, and a
    claim that waits for its own owner's bytes holds up nobody else.
    """

    def __init__(self, total: int, per_owner: int, reply_room: int = 0) -> None:
        self.small = min(LARGEST_SMALL, per_owner // PARTS)
        self._per_owner = per_owner
        self._reply_room = reply_room
        self._total = _Account(TOTAL, total)
        self._owners: dict[Owner, _Account] = {}
        self._lines = {
            (grows, small): _Line() for grows in (True, False) for small in (True, False)
        }

    @property
    def held(self) -> int:
        return self._total.held

    def by_owner(self) -> dict[Owner, int]:
        return {owner: account.held for owner, account in self._owners.items()}

    def check(self, size: int, *, grows: bool) -> None:
        """Raises InvalidRequestError for bytes that could never be held."""
        if size <= self.small:
            return
        for account in (_Account(PER_OWNER, self._per_owner), self._total):
            most = account.bound - account.part - (0 if grows else self._reply_room)
            if size > most:
                raise InvalidRequestError(
                    f"{size} bytes are to be held at once; the most is {most} "
                    f"({account.setting}={account.bound})",
                    where="the request's body",
                    fix=f"split the request, or raise {account.setting} on the server",
                    reason="LIMIT_EXCEEDED",
                )

    def offer(self, claim: Claim, size: int) -> list[Claim]:
        """Asks for ``size`` bytes instead of those held; returns every claim granted now.

        Less than is held is granted at once. The claim is granted later, by another call,
        when it is not among those returned.
        """
        claim.wanted = size
        if size <= claim.size:
            self._take(claim)
            return [claim, *self._advance()]
        self._line(claim).add(claim)
        return self._advance()

    def enlarge(self, claim: Claim, size: int) -> bool:
        """Grants ``size`` bytes if they fit at once, as bytes that enter; else does nothing."""
        if self._short(claim, size, grows=False) is not None:
            return False
        claim.wanted = size
        self._take(claim)
        return True

    def stay(self, claim: Claim) -> list[Claim]:
        """Waits no longer and keeps what it holds; returns every claim granted by that."""
        for line in self._lines.values():
            line.discard(claim)
        return self._advance()

    def leave(self, claim: Claim) -> list[Claim]:
        """Waits no longer and holds nothing; returns every claim granted by that."""
        claim.wanted = 0
        self._take(claim)
        return self.stay(claim)

    def _line(self, claim: Claim) -> _Line:
        return self._lines[claim.size > 0, claim.wanted <= self.small]

    def _advance(self) -> list[Claim]:
        granted: list[Claim] = []
        for (grows, _), line in self._lines.items():
            while (claim := self._next(line, grows)) is not None:
                line.served(claim)
                self._take(claim)
                granted.append(claim)
        return granted

    def _next(self, line: _Line, grows: bool) -> Claim | None:
        for claim in line.heads():
            short = self._short(claim, claim.wanted, grows)
            if short is None:
                return claim
            if short == TOTAL:
                return None  # it is its turn: nobody of this line passes it by
        return None

    def _short(self, claim: Claim, size: int, grows: bool) -> str | None:
        """The setting whose bound leaves no room; None when there is room in both."""
        own = self._owners.get(claim.owner) or _Account(PER_OWNER, self._per_owner)
        for account in (own, self._total):
            if not self._fits(account, claim, size, grows):
                return account.setting
        return None

    def _fits(self, account: _Account, claim: Claim, size: int, grows: bool) -> bool:
        held = account.held + size - claim.size
        small = account.small - (claim.size if claim.size <= self.small else 0)
        shared = account.bound - account.part
        if size <= self.small:
            if grows:
                return held <= account.bound
            return small + size <= account.part or held <= shared - self._reply_room
        if grows:
            return held <= account.bound and held - small <= shared
        return held <= shared - self._reply_room

    def _take(self, claim: Claim) -> None:
        own = self._owners.setdefault(claim.owner, _Account(PER_OWNER, self._per_owner))
        for account in (own, self._total):
            account.take(-claim.size, small=claim.size <= self.small)
            account.take(claim.wanted, small=claim.wanted <= self.small)
        claim.size = claim.wanted
        if own.held == 0:
            del self._owners[claim.owner]


class Hold:
    """Bytes held by one call; see ``ByteBudget.hold``.

    Attributes:
        body: bytes of the request, once it was read.
    """

    def __init__(self, budget: ByteBudget, claim: Claim, deadline: float) -> None:
        self.body = 0
        self._budget = budget
        self._claim = claim
        self._deadline = deadline

    @property
    def size(self) -> int:
        return self._claim.size

    async def resize(self, size: int, deadline: float = math.inf) -> None:
        """Holds ``size`` bytes instead; more than now waits for room, less never does.

        Args:
            deadline: of a wait, ``time.monotonic``.

        Raises:
            InvalidRequestError: more than could ever be held.
            DeadlineError: there was no room until the deadline; what was held still is.
        """
        self._budget.queue.check(size, grows=True)
        await self._budget.wait(self._claim, size, deadline)

    async def expect(self, reply: int) -> None:
        """Holds the body and ``reply`` bytes, as ``resize`` does, until the call's deadline."""
        await self.resize(self.body + reply, self._deadline)

    def enlarge(self, size: int) -> None:
        """Holds ``size`` bytes, more than now, at once and as one that only now enters.

        Raises:
            InvalidRequestError: more than could ever be held.
            OverloadedError: there is no room for them now.
        """
        queue = self._budget.queue
        queue.check(size, grows=False)
        if not queue.enlarge(self._claim, size):
            raise OverloadedError(
                f"there is no room for {size} bytes of a body that arrives slowly",
                where="the request's body",
                fix=f"send less at once, or raise {PER_OWNER} and {TOTAL} on the server",
                reason="TOO_MANY_BYTES",
                retry_after=RETRY_SECONDS,
            )


class ByteBudget:
    """The budget on an event loop: ``async with budget.hold(owner, size) as hold``.

    Args:
        total: bytes of everybody.
        per_owner: bytes of one owner.
        reply_room: bytes of the largest reply, for which a hold may grow.
    """

    def __init__(self, total: int, per_owner: int, reply_room: int = 0) -> None:
        self.queue = BudgetQueue(total, per_owner, reply_room)
        self._waiting: dict[Claim, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def hold(
        self, owner: Owner, size: int, deadline: float = math.inf
    ) -> AsyncIterator[Hold]:
        """Waits for room for ``size`` bytes and holds them, or what ``resize`` makes of them,
        until the block ends; cancelling the caller frees them.

        Args:
            deadline: of the wait, ``time.monotonic``.

        Raises:
            InvalidRequestError: more than could ever be held.
            DeadlineError: there was no room until the deadline.
        """
        self.queue.check(size, grows=False)
        claim = Claim(owner)
        try:
            await self.wait(claim, size, deadline)
            yield Hold(self, claim, deadline)
        finally:
            self._settle(self.queue.leave(claim))

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
        self._settle(self.queue.offer(claim, size))
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
                self._settle(self.queue.stay(claim))

    def _settle(self, granted: list[Claim]) -> None:
        for claim in granted:
            future = self._waiting.pop(claim, None)
            if future is not None and not future.done():
                future.set_result(None)
