"""Which connections go where there are more than the bounds allow, and whose are turned away: an
order and a count, without I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.grpc.sockets import Peer
from teacher_server.listen import MOST_TURNED_AWAY

# So many connections of one address that have left without a reply within WITHIN seconds are a
# flood. It is turned away for FIRST seconds, then, as long as it goes on, for twice as long each
# time, MOST at most.
FLOOD, WITHIN = 10, 0.5
FIRST, MOST = 1.0, 8.0


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
        # Since when, and how many: those that have left.
        self._left: dict[str, tuple[float, int]] = {}
        self._away: dict[str, Away] = {}

    def note(self, left: Mapping[str, int], staying: Collection[str], now: float) -> frozenset[str]:
        """Which addresses are turned away from now on.

        Args:
            left: how many connections of an address have left without a reply of the service
                since the last time.
            staying: addresses of which a connection is there that was sent a reply.
        """
        self._left = {
            address: (since, count)
            for address, (since, count) in self._left.items()
            if now - since < WITHIN
        }
        self._away = {
            address: away
            for address, away in self._away.items()
            if now < away.until + MOST and address not in staying
        }
        for address, number in left.items():
            since, before = self._left.get(address, (now, 0))
            self._left[address] = since, before + number
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
