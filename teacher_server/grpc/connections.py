"""The connections of gRPC's port, as the system shows them.

gRPC's core bounds their number, and ends those that speak no HTTP/2 within
limits.header_seconds and those that are idle for minutes. It neither counts them by address
nor keeps room for a new caller while idle ones fill the bound, nor lets go of a reply that
its caller does not take. Here the process looks at its own sockets and ends such ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.grpc.sockets import Peer, Sockets, peer_of

log = logging.getLogger(__name__)

# Seconds between two looks at which connections there are.
LOOK_EVERY = 0.25
# Seconds between two lines of the log.
REPORT_EVERY = 60.0


@dataclass
class _Seen:
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


class Connections:
    """Which connections there are, and which of them are ended.

    Beyond the bound of an address its own go, and beyond that of all those of any: first
    those that never made a call of the service, the oldest first; then those without a call
    in progress, of the address that has most, the one that is idle for longest. One with a
    call in progress stays.

    Attributes:
        calls: of the service that are in progress, by gRPC's name of the peer. Who counts
            one down leaves it there with 0.
    """

    def __init__(self, bounds: ConnectionBounds, counted: Callable[[str], None]) -> None:
        """``counted`` is given the reason for which a connection is ended."""
        self.calls: Counter[str] = Counter()
        self._bounds = bounds
        self._counted = counted
        # Room that is kept for those who come next.
        self._most = bounds.total - max(1, bounds.total // 8)
        self._seen: dict[Peer, _Seen] = {}
        self._cut: dict[Peer, str] = {}
        self._sockets = Sockets(-1)
        self._ended = 0
        self._reported = -REPORT_EVERY

    def __len__(self) -> int:
        """How many there were at the last look."""
        return len(self._seen)

    def cut(self, name: str, reason: str) -> None:
        """Ends the connection of this peer of gRPC's, and every call over it, at the next
        look."""
        peer = peer_of(name)
        if peer is not None:
            self._cut[peer] = reason

    async def end_silent(self) -> None:
        """Ends those that never made a call, so that nothing waits for them at the end."""
        with contextlib.suppress(OSError):
            peers = await self._look()
            self._end(peers, (peer for peer in peers if not self._seen[peer].called), "silent")

    async def watch(self, port: int) -> None:
        """Ends what is cut or beyond the bounds, for ever."""
        self._sockets = Sockets(port)
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                peers = await self._look()
            except OSError as error:
                log.debug("gRPC's connections cannot be looked at: %s", error.strerror)
                continue
            for peer, reason in self._cut.items():
                self._end(peers, [peer], reason)
            self._cut.clear()
            self._end(peers, self._beyond(), "gave_way")
            self._report()

    async def _look(self) -> Mapping[Peer, int]:
        """The descriptor of each connection; raises OSError when no file is left to look with."""
        peers = await asyncio.to_thread(self._sockets.look)
        self._note(peers)
        return peers

    def _note(self, peers: Iterable[Peer]) -> None:
        """Keeps what is known of these connections, and of no others."""
        now = time.monotonic()
        self._seen = {
            peer: self._seen.get(peer) or _Seen(peer.address, since=now) for peer in peers
        }
        for seen in self._seen.values():
            seen.calling = False
        for name, calls in list(self.calls.items()):
            peer = peer_of(name)
            if peer in self._seen:
                seen = self._seen[peer]
                seen.since, seen.called, seen.calling = now, True, calls > 0
            if not calls:
                del self.calls[name]

    def _beyond(self) -> set[Peer]:
        """Those of the connections that have to go."""
        ranked = self._giving_way()
        count = Counter(seen.address for seen in self._seen.values())
        ended: set[Peer] = set()
        for peer in ranked:
            address = self._seen[peer].address
            if count[address] > self._bounds.per_address:
                count[address] -= 1
                ended.add(peer)
        rest = [peer for peer in ranked if peer not in ended]
        ended.update(rest[: max(0, count.total() - self._most)])
        return ended

    def _giving_way(self) -> list[Peer]:
        """Those that have no call in progress; those that go first come first."""
        count = Counter(seen.address for seen in self._seen.values())
        ranks: dict[Peer, tuple[bool, int, float]] = {}
        for peer, seen in sorted(self._seen.items(), key=_by_age):
            if not seen.calling:
                # How many its address has, once those that go before it are gone.
                ranks[peer] = (seen.called, -count[seen.address] if seen.called else 0, seen.since)
                count[seen.address] -= 1
        return sorted(ranks, key=ranks.__getitem__)

    def _end(self, peers: Mapping[Peer, int], ended: Iterable[Peer], reason: str) -> None:
        for peer in ended:
            if peer in peers and self._sockets.end(peers[peer], peer):
                self._ended += 1
                self._counted(reason)

    def _report(self) -> None:
        now = time.monotonic()
        if self._ended and now - self._reported >= REPORT_EVERY:
            log.warning(
                "ended %d gRPC connections that were beyond limits.max_connections, or did "
                "not read their replies",
                self._ended,
            )
            self._ended, self._reported = 0, now


def _by_age(item: tuple[Peer, _Seen]) -> tuple[bool, float]:
    return item[1].called, item[1].since
