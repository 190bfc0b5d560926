"""What is held of the bytes in flight, by owner, by address and in all, and what fits beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from teacher_proto.errors import InvalidRequestError

TOTAL = "limits.max_bytes_in_flight"
PER_OWNER = "limits.max_bytes_in_flight_per_run"
PER_ADDRESS = f"a quarter of {TOTAL}"
# Larger holds leave one part in so many of each bound to small ones, so that large bodies
# and replies that nobody sends or reads to their end never keep a small request out.
PARTS = 16
LARGEST_SMALL = 1 << 20
# Where no run is known, the connections of one address have one part in so many of all.
ADDRESS_PARTS = 4
# Messages of unknown size that one owner may have read at once, before they are charged.
UNREAD_AT_ONCE = 8


class Owner(NamedTuple):
    """Whose bytes they are: a run's, or, where none is known, those of one peer, which are
    those of its address (or /64 of IPv6) as well."""

    run: str
    peer: str = ""
    address: str = ""


class Pace(IntEnum):
    """How a body arrives: a SLOW one gives way to other owners' small ones that wait for its
    room, a STALLED one to its own owner's as well."""

    PROMPT = 0
    SLOW = 1
    STALLED = 2


@dataclass(eq=False)
class Claim:
    """Bytes that are held, and how many are asked for instead.

    Attributes:
        unread: it stands for a message of unknown size, of which more may be there.
        entered: it was let in, and may grow now, however few bytes it holds.
        large: it counts among the large ones, however few its bytes are.
        left: it gave way, and is about to leave.
    """

    owner: Owner
    size: int = 0
    wanted: int = 0
    unread: bool = False
    entered: bool = False
    large: bool = False
    pace: Pace = Pace.PROMPT
    left: bool = False


@dataclass
class Account:
    """One bound and what is held of it, of which ``small`` is in small holds and ``unread``
    stands for messages of unknown size."""

    setting: str
    bound: int
    held: int = 0
    small: int = 0
    unread: int = 0

    @property
    def part(self) -> int:
        """Bytes that only small holds may have."""
        return self.bound // PARTS


class Accounts:
    """Every bound and what is held of it.

    Attributes:
        small: the most bytes of a small hold.
        unread: what a message of unknown size is charged with at first.
    """

    def __init__(self, total: int, per_owner: int, reply_room: int) -> None:
        self.small = min(LARGEST_SMALL, per_owner // PARTS)
        self.unread = max(1, min(LARGEST_SMALL, per_owner // PARTS // UNREAD_AT_ONCE))
        self.total = Account(TOTAL, total)
        self.owners: dict[Owner, Account] = {}
        self._addresses: dict[str, Account] = {}
        self._per_owner = per_owner
        self._per_address = max(per_owner, total // ADDRESS_PARTS)
        self._reply_room = reply_room

    def check(self, size: int, *, grows: bool) -> None:
        """Raises InvalidRequestError for bytes that could never be held."""
        if size <= self.small:
            return
        for account in (Account(PER_OWNER, self._per_owner), self.total):
            most = account.bound - account.part - (0 if grows else self._reply_room)
            if size > most:
                raise InvalidRequestError(
                    f"{size} bytes are to be held at once; the most is {most} "
                    f"({account.setting}={account.bound})",
                    where="the request's body",
                    fix=f"split the request, or raise {account.setting} on the server",
                    reason="LIMIT_EXCEEDED",
                )

    def _of(self, owner: Owner) -> Iterator[Account]:
        yield self.owners.get(owner) or Account(PER_OWNER, self._per_owner)
        if owner.address:
            found = self._addresses.get(owner.address)
            yield found or Account(PER_ADDRESS, self._per_address)
        yield self.total

    def short(self, claim: Claim, size: int, grows: bool, large: bool = False) -> str | None:
        """The setting whose bound leaves no room; None when there is room in all."""
        for account in self._of(claim.owner):
            if not self._fits(account, claim, size, grows, large):
                return account.setting
        return None

    def _fits(self, account: Account, claim: Claim, size: int, grows: bool, large: bool) -> bool:
        held = account.held + size - claim.size
        small = account.small - (claim.size if self.is_small(claim) else 0)
        shared = account.bound - account.part
        if grows:
            return held <= account.bound and (size <= self.small or held - small <= shared)
        if size <= self.small and not large:
            if claim.unread and account.unread - claim.size * claim.unread + size > account.part:
                return False
            return small + size <= account.part or held <= shared - self._reply_room
        # Small ones take nothing of the room of this one while they keep to their part.
        return held - min(small, account.part) <= shared - self._reply_room

    def is_small(self, claim: Claim) -> bool:
        return claim.size <= self.small and not claim.large

    def count(self, claim: Claim, sign: int) -> None:
        """Adds what the claim holds to its accounts, or takes it away."""
        owner, size = claim.owner, sign * claim.size
        self.owners.setdefault(owner, Account(PER_OWNER, self._per_owner))
        if owner.address:
            new = Account(PER_ADDRESS, self._per_address)
            self._addresses.setdefault(owner.address, new)
        for account in self._of(owner):
            account.held += size
            account.small += size if self.is_small(claim) else 0
            account.unread += size if claim.unread else 0
        if sign > 0 and not self.owners[owner].held:
            del self.owners[owner]
            if owner.address and not self._addresses[owner.address].held:
                del self._addresses[owner.address]
