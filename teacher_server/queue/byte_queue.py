"""Who may hold how many bytes: the pure core of the budget, without a clock, tasks or locks."""

from __future__ import annotations

from collections import OrderedDict, deque

from teacher_server.queue.byte_accounts import (
    PER_ADDRESS,
    PER_OWNER,
    TOTAL,
    Accounts,
    Claim,
    Owner,
    Pace,
)


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

    def heads(self) -> list[Claim]:
        return [waiting[0] for waiting in self._owners.values()]

    def served(self, claim: Claim) -> None:
        """Takes the claim out; its owner's next turn is after everybody else's."""
        self._owners.move_to_end(claim.owner)
        self.discard(claim)


class BudgetQueue:
    """At most ``total`` bytes are held, at most ``per_owner`` of them by one owner, and where
    no run is known at most a quarter of them, or as much as one owner's, by one address.

    A claim enters, and may then grow once, when the size of its reply is known. What enters
    leaves ``reply_room`` of each bound free, so that whatever has entered can grow in the
    end. Those that grow go before those that enter, small ones before large ones, and a
    claim that waits for bytes of its own owner or address holds up nobody else. ``settle``
    alone goes beyond the bounds, for bytes that are there already.
    """

    def __init__(self, total: int, per_owner: int, reply_room: int = 0) -> None:
        self._accounts = Accounts(total, per_owner, reply_room)
        self.small, self.unread = self._accounts.small, self._accounts.unread
        self.check = self._accounts.check
        # In the order in which they are served; those that enter: small ones, messages of
        # unknown size, large ones.
        self._growing_small, self._growing = _Line(), _Line()
        self._small, self._unread, self._large = _Line(), _Line(), _Line()
        self._lines = (
            (self._growing_small, True),
            (self._growing, True),
            (self._small, False),
            (self._unread, False),
            (self._large, False),
        )
        # Those whose bodies take their time, in the order in which they became so.
        self._slow: dict[Claim, None] = {}

    @property
    def held(self) -> int:
        return self._accounts.total.held

    def by_owner(self) -> dict[Owner, int]:
        return {owner: account.held for owner, account in self._accounts.owners.items()}

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

    def enlarge(self, claim: Claim, size: int, *, grows: bool = False) -> bool:
        """Grants ``size`` bytes if they fit at once, else does nothing; ``grows``: they are of
        a reply, not bytes that enter."""
        if self._accounts.short(claim, size, grows=grows) is not None:
            return False
        claim.wanted = size
        self._take(claim)
        return True

    def settle(self, claim: Claim, size: int) -> list[Claim]:
        """Holds ``size`` bytes, which are there whole, whether there was room or not; returns
        every claim granted by that."""
        claim.wanted = size
        self._accounts.count(claim, -1)
        claim.unread = claim.large = False
        claim.entered = True
        claim.size = size
        self._accounts.count(claim, 1)
        self._slow.pop(claim, None)
        return self._advance()

    def slow(self, claim: Claim, pace: Pace) -> list[Claim]:
        """Its body takes its time: where it holds room of the small ones it leaves that, at
        once if there is other room; returns every claim granted by that."""
        if claim.size > self.small or claim.large:
            return []
        claim.pace = pace
        self._slow[claim] = None
        short = self._accounts.short(claim, claim.size, grows=False, large=True)
        if not claim.unread and short is None:
            self._accounts.count(claim, -1)
            claim.large = True
            self._accounts.count(claim, 1)
            del self._slow[claim]
        return self._advance()

    def keep(self, claim: Claim) -> None:
        """Its body is there: it gives way to nobody any more, unless it was told to."""
        if not claim.left:
            self._slow.pop(claim, None)

    def give_way(self) -> list[Claim]:
        """Slow claims that have to leave, since small ones wait for their room: for each owner
        that waits the one that has been slow for longest. They are told once."""
        found: list[Claim] = []
        waiting = [*self._small.heads(), *self._unread.heads()] if self._slow else []
        leaving = {claim for claim in self._slow if claim.left}
        for head in waiting:
            short = self._accounts.short(head, head.wanted, grows=False)
            if short is None:
                continue
            room = [claim for claim in self._slow if _same_account(short, claim, head)]
            if expected := leaving.intersection(room):
                leaving.remove(expected.pop())  # its room is for this one
                continue
            for claim in room:
                others = claim.owner != head.owner
                if not claim.left and (others or (claim is not head and claim.pace > Pace.SLOW)):
                    claim.left = True
                    found.append(claim)
                    break
        return found

    def stay(self, claim: Claim) -> list[Claim]:
        """Waits no longer and keeps what it holds; returns every claim granted by that."""
        for line, _ in self._lines:
            line.discard(claim)
        return self._advance()

    def leave(self, claim: Claim) -> list[Claim]:
        """Waits no longer and holds nothing; returns every claim granted by that."""
        claim.wanted = 0
        self._take(claim)
        self._slow.pop(claim, None)
        return self.stay(claim)

    def _line(self, claim: Claim) -> _Line:
        small = claim.wanted <= self.small
        if claim.entered and not claim.unread:
            return self._growing_small if small else self._growing
        if not small:
            return self._large
        return self._unread if claim.unread else self._small

    def _advance(self) -> list[Claim]:
        granted: list[Claim] = []
        again = True
        while again:  # a message that is charged makes room for the next of unknown size
            again = False
            for line, grows in self._lines:
                while (claim := self._next(line, grows)) is not None:
                    again = again or claim.unread
                    line.served(claim)
                    self._take(claim)
                    granted.append(claim)
        return granted

    def _next(self, line: _Line, grows: bool) -> Claim | None:
        held_up: set[str] = set()
        for claim in line.heads():
            if claim.owner.address in held_up:
                continue
            short = self._accounts.short(claim, claim.wanted, grows)
            if short is None:
                return claim
            if short == TOTAL:
                return None  # it is its turn: nobody of this line passes it by
            if short == PER_ADDRESS:
                held_up.add(claim.owner.address)
        return None

    def _take(self, claim: Claim) -> None:
        self._accounts.count(claim, -1)
        claim.entered = True
        claim.size = claim.wanted
        if claim.size > self.unread:
            claim.unread = False
        if claim.size > self.small:
            self._slow.pop(claim, None)
        self._accounts.count(claim, 1)


def _same_account(setting: str, one: Claim, other: Claim) -> bool:
    """Whether both hold bytes of one account of this bound."""
    if setting == PER_OWNER:
        return one.owner == other.owner
    return setting == TOTAL or one.owner.address == other.owner.address
