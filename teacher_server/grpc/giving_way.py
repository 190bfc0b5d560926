"""Which connections go where there are more than the bounds allow, and whose are turned away: an
order and a count, without I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.grpc.sockets import Peer
from teacher_server.listen import MOST_TURNED_AWAY

# So many connections of one address that are over without a reply within WITHIN seconds are a
# flood. It is turned away for FIRST seconds, then, as long as it goes on, for twice as long each
# time, MOST at most.
FLOOD, WITHIN = 10, 0.5
FIRST, MOST = 1.0, 8.0
# Connections that came between two looks are many from this number on.
MANY = 4
# For so long after a flood new connections wait with their callers' systems. These ask again after
# a second: sooner, all of the flood would find the way open.
HELD_SECONDS = 1.5
# For so long after it came a connection may be about to call: its caller waits for two answers,
# TLS's and HTTP/2's. Of an address that is turned away so many have this time at most, since those
# who flood would have it too.
HANDSHAKE_SECONDS = 1.0
FEW = 16


@dataclass
class Seen:
    """A connection.

    Attributes:
        address: what it is counted under.
        since: when it was last seen calling, else when it was first seen.
        called: whether it ever made a call of the service.
    """

    address: str
    since: float
    called: bool = False
    calling: bool = False


def beyond(seen: Mapping[Peer, Seen], bounds: ConnectionBounds, room: int, new: float) -> set[Peer]:
    """Those that have to go.

    Beyond the bound of an address its own go, and beyond that of all those of any: first
    those that never made a call of the service, the oldest first; then those without a call
    in progress, of the address that has most, the one that is idle for longest; and last the few
    that came only now, who may be about to call. One with a call in progress stays.

    Args:
        room: connections that are kept free for those who come next, and how many of those
            that came only now go last.
        new: who came later came only now.
    """
    ranked = _giving_way(seen, room, new)
    count = Counter(one.address for one in seen.values())
    ended: set[Peer] = set()
    for peer in ranked:
        address = seen[peer].address
        if count[address] > bounds.per_address:
            count[address] -= 1
            ended.add(peer)
    rest = [peer for peer in ranked if peer not in ended]
    ended.update(rest[: max(0, count.total() - (bounds.total - room))])
    return ended


def _giving_way(seen: Mapping[Peer, Seen], room: int, new: float) -> list[Peer]:
    """Those that have no call in progress; those that go first come first."""
    count = Counter(one.address for one in seen.values())
    ranks: dict[Peer, tuple[int, int, float]] = {}
    by_age = sorted(seen.items(), key=lambda item: (item[1].called, item[1].since))
    came = [peer for peer, one in by_age if not (one.called or one.calling)]
    last = {peer for peer in came[-room:] if seen[peer].since > new}
    for peer, one in by_age:
        if peer in last:
            ranks[peer] = (2, 0, one.since)
        elif not one.calling:
            # How many its address has, once those that go before it are gone.
            ranks[peer] = (one.called, -count[one.address] if one.called else 0, one.since)
            count[one.address] -= 1
    return sorted(ranks, key=ranks.__getitem__)


def uncalled(
    seen: Mapping[Peer, Seen],
    called: Collection[Peer],
    away: Collection[str],
    room: int,
    now: float,
) -> set[Peer]:
    """Those of the addresses that are turned away over which no call was made. The last few of
    each that came only now, who may be about to call, stay.

    Args:
        called: over which a call of any service was made, since they were ``seen`` too.
        room: connections that are kept free for those who come next.
    """
    silent = [
        (peer, one)
        for peer, one in seen.items()
        if one.address in away and not one.called and peer not in called
    ]
    spared: Counter[str] = Counter()
    ended: set[Peer] = set()
    for peer, one in sorted(silent, key=lambda item: item[1].since, reverse=True):
        if now - one.since < HANDSHAKE_SECONDS and spared[one.address] < min(room, FEW):
            spared[one.address] += 1
        else:
            ended.add(peer)
    return ended


@dataclass(frozen=True)
class Away:
    """An address is turned away until then, after as many seconds."""

    until: float
    seconds: float


class Floods:
    """Addresses whose connections come only to go: they are turned away for a while.

    One of which a connection stays that was sent a reply of the service never is, since those
    who come and those who stay may be different callers there. A call alone is no such sign: who
    floods may begin one over each connection. Behind an address where none stays new callers are
    turned away with those who flood.
    """

    def __init__(self) -> None:
        # Since when, and how many: those that are over.
        self._over: dict[str, tuple[float, int]] = {}
        self._away: dict[str, Away] = {}

    def note(
        self, over: Mapping[str, int], came: Mapping[str, int], staying: Collection[str], now: float
    ) -> frozenset[str]:
        """Which addresses are turned away from now on.

        Args:
            over: how many connections of an address have ended without a reply of the service
                since the last time, however they ended: that a caller has left shows only once
                what it sent is read.
            came: how many have come. Of an address that is known they count as well: it need
                not be seen again what becomes of them.
            staying: addresses of which a connection is there that was sent a reply.
        """
        self._over = {
            address: (since, count)
            for address, (since, count) in self._over.items()
            if now - since < WITHIN
        }
        self._away = {
            address: away
            for address, away in self._away.items()
            if now < away.until + MOST and address not in staying
        }
        again = {address: number for address, number in came.items() if address in self._away}
        for address, number in (Counter(over) + Counter(again)).items():
            since, before = self._over.get(address, (now, 0))
            self._over[address] = since, before + number
            if before + number >= FLOOD and address not in staying:
                self._turn_away(address, now)
        away = [address for address, away in self._away.items() if now < away.until]
        return frozenset(away[-MOST_TURNED_AWAY:])

    @property
    def known(self) -> Collection[str]:
        """Addresses that are turned away, or were until a while ago: a flood of theirs that comes
        again is turned away again."""
        return self._away.keys()

    def expected(self, now: float) -> bool:
        """Whether a flood may go on, because one is turned away or was so just now."""
        return any(now < away.until + FIRST for away in self._away.values())

    def _turn_away(self, address: str, now: float) -> None:
        before = self._away.get(address)
        if before is not None and now < before.until:
            return  # those came before
        seconds = FIRST if before is None else min(MOST, 2 * before.seconds)
        self._away[address] = Away(now + seconds, seconds)


class Arrivals:
    """Whether new connections come in a flood of addresses that are not turned away.

    Args:
        total: connections that there may be.
    """

    def __init__(self, total: int) -> None:
        self._many = max(MANY, min(FLOOD, total // 8))
        # When those last came who came with many.
        self._last: dict[str, float] = {}

    def flood(self, came: Mapping[str, int], known: Collection[str], now: float) -> bool:
        """Whether there is one, from now on until the next time.

        Args:
            came: how many connections of an address have come since the last time.
            known: addresses that are turned away, or will be when they come again.
        """
        others = {address: number for address, number in came.items() if address not in known}
        if sum(others.values()) >= self._many:
            self._last.update(dict.fromkeys(others, now))
        self._last = {
            address: last
            for address, last in self._last.items()
            if now - last < HELD_SECONDS and address not in known
        }
        return bool(self._last)
