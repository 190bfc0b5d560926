"""Which connections go where there are more than the bounds allow: an order, without I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.grpc.sockets import Peer


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
