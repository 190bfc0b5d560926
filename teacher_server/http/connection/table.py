"""Which connections may be open, and which gives way when no more fit: counting, without I/O."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.access.peers import neighbourhood

# Connections beyond the bounds, which may ask for liveness and readiness only.
RESERVE = 16


class Rank(enum.IntEnum):
    """What a connection is doing; those of the lowest rank give way first.

    STRANGER is idle and had no answer yet, VISITOR is idle and had answers to health alone,
    IDLE is between two requests, NEW was taken just now and nothing of it was read yet, WAITS
    keeps the server waiting for the rest of a body or for room to write, BUSY never gives
    way. Of NEW and WAITS those go first of which there are more: a flood of one of them
    leaves the other alone.
    """

    STRANGER = 0
    VISITOR = 1
    IDLE = 2
    NEW = 3
    WAITS = 4
    BUSY = 5


@dataclass(eq=False)
class Entry:
    """One connection in the table.

    Attributes:
        reserved: beyond the bounds; it may ask for liveness and readiness only.
        rests: its rank while it is idle.
    """

    address: str
    reserved: bool
    rank: Rank = Rank.STRANGER
    rests: Rank = Rank.STRANGER


@dataclass
class _Group:
    """Connections of one address; of each rank in the order in which they took it."""

    ranks: dict[Rank, dict[Entry, None]] = field(
        default_factory=lambda: {rank: {} for rank in Rank}
    )

    def __len__(self) -> int:
        return sum(len(entries) for entries in self.ranks.values())

    def first(self, rank: Rank) -> Entry | None:
        return next(iter(self.ranks[rank]), None)


class Table:
    """At most ``bounds.total`` connections, ``bounds.per_address`` of one address, and
    ``RESERVE`` more.

    Where no more fit, the connection that has been idle for longest gives way to the new
    one: of the new one's own address where that address has its share, else of the address
    that has most. So idle connections, however many, keep nobody out.
    """

    def __init__(self, bounds: ConnectionBounds) -> None:
        self._bounds = bounds
        self.most = bounds.total
        self._groups: dict[str, _Group] = {}
        self._reserve: dict[Entry, None] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count + len(self._reserve)

    def enter(self, address: str, rank: Rank = Rank.STRANGER) -> tuple[Entry, Entry | None]:
        """The new connection's entry, and the one that has to be closed for it."""
        address = neighbourhood(address)
        gone = None
        if not self._has_room(address):
            gone = self._giving_way(address)
            if gone is None:
                return self._enter_reserve(address)
            self.leave(gone)
        entry = Entry(address, reserved=False, rank=rank)
        self._add(entry)
        return entry, gone

    def leave(self, entry: Entry) -> None:
        """The connection is closed; saying so twice does no harm."""
        if entry.reserved:
            self._reserve.pop(entry, None)
            return
        group = self._groups.get(entry.address)
        if group is None or entry not in group.ranks[entry.rank]:
            return
        del group.ranks[entry.rank][entry]
        self._count -= 1
        if not group:
            del self._groups[entry.address]

    def move(self, entry: Entry, rank: Rank) -> None:
        """What the connection does from this moment; the same rank anew is progress."""
        if entry.reserved:
            return
        group = self._groups.get(entry.address)
        if group is None or entry not in group.ranks[entry.rank]:
            return  # it has left
        del group.ranks[entry.rank][entry]
        entry.rank = rank
        group.ranks[rank][entry] = None

    def rest(self, entry: Entry, *, let_in: bool) -> None:
        """The connection is idle after an answer; ``let_in``: not to health or a refusal."""
        entry.rests = max(entry.rests, Rank.IDLE if let_in else Rank.VISITOR)
        self.move(entry, entry.rests)

    def promote(self, entry: Entry) -> bool:
        """Whether a reserved connection found room within the bounds."""
        if not self._has_room(entry.address):
            return False
        self.leave(entry)
        entry.reserved = False
        self._add(entry)
        return True

    def idlest(self) -> Entry | None:
        """The connection that gives way when files are short, whatever its address."""
        return self._idlest_of_all(below=Rank.WAITS)

    def _has_room(self, address: str) -> bool:
        own = len(self._groups.get(address, ()))
        return own < self._bounds.per_address and self._count < self._bounds.total

    def _giving_way(self, address: str) -> Entry | None:
        own = self._groups.get(address)
        if own is None or len(own) < self._bounds.per_address:
            return self._idlest_of_all(below=Rank.BUSY)
        return next((e for rank in _order([own], Rank.BUSY) if (e := own.first(rank))), None)

    def _idlest_of_all(self, below: Rank) -> Entry | None:
        for rank in _order(self._groups.values(), below):
            groups = [group for group in self._groups.values() if group.ranks[rank]]
            if groups:
                return max(groups, key=len).first(rank)
        return None

    def _enter_reserve(self, address: str) -> tuple[Entry, Entry | None]:
        gone = None
        if len(self._reserve) >= RESERVE:
            gone = next(iter(self._reserve))
            del self._reserve[gone]
        entry = Entry(address, reserved=True)
        self._reserve[entry] = None
        return entry, gone

    def _add(self, entry: Entry) -> None:
        self._groups.setdefault(entry.address, _Group()).ranks[entry.rank][entry] = None
        self._count += 1


def _order(groups: Iterable[_Group], below: Rank) -> list[Rank]:
    """The ranks below this one, in the order in which they give way among these groups."""
    found = [rank for rank in Rank if rank < below]
    if Rank.WAITS in found:
        new, waits = 0, 0
        for group in groups:
            new += len(group.ranks[Rank.NEW])
            waits += len(group.ranks[Rank.WAITS])
        if waits > new:
            found[Rank.NEW], found[Rank.WAITS] = Rank.WAITS, Rank.NEW
    return found
