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
    IDLE is between two requests, NEW has sent something and nothing of it was read yet, WAITS
    keeps the server waiting for the rest of a body or for room to write, BUSY never gives
    way. Of NEW and WAITS those go first of which there are more: a flood of one of them leaves
    the other alone. Where one of an address's own gives way, idle ones of all three ranks are
    weighed with these, and those that are NEW and ask for health go last.
    """

    STRANGER = 0
    VISITOR = 1
    IDLE = 2
    NEW = 3
    WAITS = 4
    BUSY = 5


# Kinds of connections that give way.
IDLE_RANKS, NEW_RANK, WAITING_RANK = (
    (Rank.STRANGER, Rank.VISITOR, Rank.IDLE),
    (Rank.NEW,),
    (Rank.WAITS,),
)


@dataclass(eq=False)
class Entry:
    """One connection in the table.

    Attributes:
        reserved: beyond the bounds; it may ask for liveness and readiness only.
        rests: its rank while it is idle.
        asks_health: what it asks first is liveness or readiness. It is known before it is NEW.
    """

    address: str
    reserved: bool
    rank: Rank = Rank.STRANGER
    rests: Rank = Rank.STRANGER
    asks_health: bool = False


@dataclass
class _Group:
    """Connections of one address; of each rank in the order in which they took it."""

    ranks: dict[Rank, dict[Entry, None]] = field(
        default_factory=lambda: {rank: {} for rank in Rank}
    )
    ask_health: dict[Entry, None] = field(default_factory=dict)
    size: int = 0

    def __len__(self) -> int:
        return self.size

    def __contains__(self, entry: Entry) -> bool:
        return entry in self.of(entry)

    def of(self, entry: Entry) -> dict[Entry, None]:
        """Those among which this one goes first when it is the first."""
        new = entry.rank is Rank.NEW
        return self.ask_health if new and entry.asks_health else self.ranks[entry.rank]

    def add(self, entry: Entry) -> None:
        """As the last one of its rank."""
        self.of(entry)[entry] = None
        self.size += 1

    def remove(self, entry: Entry) -> None:
        del self.of(entry)[entry]
        self.size -= 1

    def count(self, rank: Rank) -> int:
        return len(self.ranks[rank]) + (len(self.ask_health) if rank is Rank.NEW else 0)

    def first(self, rank: Rank) -> Entry | None:
        found = next(iter(self.ranks[rank]), None)
        return next(iter(self.ask_health), None) if found is None and rank is Rank.NEW else found


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

    def enter(
        self, address: str, rank: Rank = Rank.STRANGER, *, asks_health: bool = False
    ) -> tuple[Entry, Entry | None]:
        """The new connection's entry, and the one that has to be closed for it."""
        address = neighbourhood(address)
        gone = None
        if not self._has_room(address):
            gone = self._giving_way(address)
            if gone is None:
                return self._enter_reserve(address, asks_health)
            self.leave(gone)
        entry = Entry(address, reserved=False, rank=rank, asks_health=asks_health)
        self._add(entry)
        return entry, gone

    def next_to_go(self, address: str) -> Entry | None:
        """The one that would have to be closed for a new connection of this address."""
        address = neighbourhood(address)
        return None if self._has_room(address) else self._giving_way(address)

    def leave(self, entry: Entry) -> None:
        """The connection is closed; saying so twice does no harm."""
        if entry.reserved:
            self._reserve.pop(entry, None)
            return
        group = self._groups.get(entry.address)
        if group is None or entry not in group:
            return
        group.remove(entry)
        self._count -= 1
        if not group:
            del self._groups[entry.address]

    def move(self, entry: Entry, rank: Rank) -> None:
        """What the connection does from this moment; the same rank anew is progress."""
        if entry.reserved:
            return
        group = self._groups.get(entry.address)
        if group is None or entry not in group:
            return  # it has left
        group.remove(entry)
        entry.rank = rank
        group.add(entry)

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
        return self._idlest_of_all([NEW_RANK])

    def _has_room(self, address: str) -> bool:
        own = len(self._groups.get(address, ()))
        return own < self._bounds.per_address and self._count < self._bounds.total

    def _giving_way(self, address: str) -> Entry | None:
        own = self._groups.get(address)
        if own is None or len(own) < self._bounds.per_address:
            return self._idlest_of_all([NEW_RANK, WAITING_RANK])
        kinds = _by_number([own], [IDLE_RANKS, NEW_RANK, WAITING_RANK])
        held = [*(own.ranks[rank] for kind in kinds for rank in kind), own.ask_health]
        return next((next(iter(entries)) for entries in held if entries), None)

    def _idlest_of_all(self, after_idle: list[tuple[Rank, ...]]) -> Entry | None:
        kinds = [IDLE_RANKS, *_by_number(self._groups.values(), after_idle)]
        for rank in (rank for kind in kinds for rank in kind):
            groups = [group for group in self._groups.values() if group.count(rank)]
            if groups:
                return max(groups, key=len).first(rank)
        return None

    def _enter_reserve(self, address: str, asks_health: bool) -> tuple[Entry, Entry | None]:
        gone = None
        if len(self._reserve) >= RESERVE:
            gone = next(iter(self._reserve))
            del self._reserve[gone]
        entry = Entry(address, reserved=True, asks_health=asks_health)
        self._reserve[entry] = None
        return entry, gone

    def _add(self, entry: Entry) -> None:
        group = self._groups.get(entry.address)
        if group is None:
            group = self._groups[entry.address] = _Group()
        group.add(entry)
        self._count += 1


def _by_number(groups: Iterable[_Group], kinds: list[tuple[Rank, ...]]) -> list[tuple[Rank, ...]]:
    """The kind of which these groups have most comes first."""
    held = list(groups)
    return sorted(
        kinds, key=lambda kind: -sum(group.count(rank) for group in held for rank in kind)
    )
